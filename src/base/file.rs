//! Small files that are there as a whole or not at all, and JSON files that may be missing.

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

/// A JSON file's value; None when there is no such file.
///
/// # Errors
/// Input when it is not JSON, `Io` when it cannot be read.
pub fn read_json(path: &Path) -> Result<Option<serde_json::Value>> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io(format!("reading {}", path.display()), e)),
    };
    serde_json::from_str(&text)
        .map(Some)
        .map_err(|e| Error::input(format!("{} is not JSON", path.display())).from_source(e))
}
