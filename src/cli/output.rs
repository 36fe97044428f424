//! Standard output. A reader that went away (`semoe config show FILE | head -1`) is no error.

use crate::base::{Error, Result};
use std::io::{ErrorKind, Write};

/// Writes `text` to standard output.
///
/// # Errors
/// `Io` when it cannot be written for another reason than a closed pipe.
pub fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written.map_err(|e| Error::io("writing to standard output", e)),
    }
}
