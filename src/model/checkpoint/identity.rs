//! Whether files are still those that were opened: names, lengths, inodes, times of change.

use crate::base::{Error, Result};
use std::fmt::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Files beside the tensors that decide what a folder means.
const BESIDE: [&str; 7] = [
    "config.json",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
    "chat_template.jinja",
    super::store::INDEX,
];

/// A text that differs when one of `files`, or of what lies beside them in `folder`, was
/// written, replaced, added or removed.
///
/// # Errors
/// Io, naming a file that cannot be asked about.
pub(super) fn of(files: &[PathBuf], folder: Option<&Path>) -> Result<String> {
    let mut text = String::new();
    for file in files {
        let meta = std::fs::metadata(file)
            .map_err(|e| Error::io(format!("reading {}", file.display()), e))?;
        push(&mut text, file, &meta);
    }
    for name in BESIDE {
        let Some(path) = folder.map(|folder| folder.join(name)) else { break };
        match std::fs::metadata(&path) {
            Ok(meta) => push(&mut text, &path, &meta),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(Error::io(format!("reading {}", path.display()), e)),
        }
    }
    Ok(text)
}

fn push(text: &mut String, path: &Path, meta: &std::fs::Metadata) {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    // Writing to a String cannot fail.
    let _ = writeln!(
        text,
        "{name} {} {}.{:09} {}:{}",
        meta.len(),
        meta.mtime(),
        meta.mtime_nsec(),
        meta.dev(),
        meta.ino()
    );
}
