//! Small files that are there as a whole or not at all.

use super::{Error, Result};
use std::fs::File;
use std::io::Write;
use std::path::Path;

/// Replaces the file at `path` as a whole: after a crash it is the old one or the new one.
///
/// # Errors
/// When the file cannot be written.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".tmp");
    let beside = path.with_file_name(name);
    let replace = || {
        let mut file = File::create(&beside)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&beside, path)?;
        sync_name(path)
    };
    replace().map_err(|e| Error::io(format!("writing {}", path.display()), e))
}

/// Makes the name of a file or folder durable.
///
/// # Errors
/// When the folder that holds it cannot be synced.
pub fn sync_name(path: &Path) -> std::io::Result<()> {
    let dir = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(dir)?.sync_all()
}
