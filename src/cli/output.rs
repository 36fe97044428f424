//! Standard output. A reader that went away (`semoe config show FILE | head -1`) is no error.

use crate::base::{Error, Result};
use serde::Serialize;
use std::io::{ErrorKind, Write};
use std::path::Path;

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

/// Writes `value` to a file as JSON.
///
/// # Errors
/// `Io`, naming the file.
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|e| Error::bug("a report has no JSON form").from_source(e))?;
    std::fs::write(path, text + "\n")
        .map_err(|e| Error::io(format!("writing {}", path.display()), e))
}

/// Writes `text` to standard error: what is not the answer itself.
///
/// # Errors
/// As [`print()`].
pub fn note(text: &str) -> Result<()> {
    match std::io::stderr().lock().write_all(text.as_bytes()) {
        Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written.map_err(|e| Error::io("writing to standard error", e)),
    }
}
