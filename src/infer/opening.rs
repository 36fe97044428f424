//! Opening a checkpoint through an index beside the user's cache.
//!
//! The first opening reads the headers and writes the index; the next ones read the index alone.
//! Law: the index holds only while the files are those that it was written for (names, lengths,
//! times, inodes); otherwise, or where it is damaged, headers are read again.

use crate::base::{Error, Result, checksum};
use crate::model::checkpoint::{Entries, Row, Source};
use crate::storage::catalog::{self, Blocks, Record};
use std::path::{Path, PathBuf};

/// How a checkpoint was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opening {
    /// From its headers: there was no index.
    First,
    /// From the index.
    Indexed,
    /// From its headers: the index was of other files, or damaged.
    Renewed,
}

/// What is kept for this user: `$XDG_CACHE_HOME/semoe`, or `~/.cache/semoe`.
pub fn user_folder() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    let cache = set("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| set("HOME").map(|home| PathBuf::from(home).join(".cache")));
    cache.map(|cache| cache.join("semoe"))
}

/// The folder for indices, `index` in [`user_folder`].
pub fn cache_folder() -> Option<PathBuf> {
    user_folder().map(|folder| folder.join("index"))
}

/// Opens the checkpoint at `path` with an index in `cache`, which is made where it is missing.
///
/// # Errors
/// As [`Source::open`]; Io when the index cannot be written.
pub fn open(path: &Path, cache: &Path) -> Result<(Source, Opening)> {
    let (path, folder) = (real(path)?, folder_of(path, cache)?);
    // A damaged index is one that is written again.
    let found = catalog::read(&folder).unwrap_or_default();
    let known = found.is_some() || folder.exists();
    if let Some(source) = found.and_then(|(text, blocks)| from_index(&path, &text, blocks)) {
        return Ok((source, Opening::Indexed));
    }
    let source = Source::open(&path)?;
    let Entries { meta, rows } = source.entries();
    let text = serde_json::to_string(&meta)
        .map_err(|e| Error::bug("an index has no JSON form").from_source(e))?;
    let blocks = rows.into_iter().map(|Row { key, file, offset, len, dtype, shape }| {
        (key, Record { file, offset, len, dtype, shape })
    });
    catalog::write(&folder, &text, blocks)?;
    Ok((source, if known { Opening::Renewed } else { Opening::First }))
}

/// The folder in `cache` of the index of the checkpoint at `path`.
///
/// # Errors
/// Input where there is none.
pub fn folder_of(path: &Path, cache: &Path) -> Result<PathBuf> {
    Ok(cache.join(name_of(&real(path)?)))
}

fn real(path: &Path) -> Result<PathBuf> {
    path.canonicalize()
        .map_err(|e| Error::input(format!("no checkpoint at {}", path.display())).from_source(e))
}

fn from_index(path: &Path, text: &str, blocks: Blocks) -> Option<Source> {
    let meta = serde_json::from_str(text).ok()?;
    let row = |(key, Record { file, offset, len, dtype, shape })| Row {
        key,
        file,
        offset,
        len,
        dtype,
        shape,
    };
    let rows = blocks.into_iter().map(row).collect();
    Source::from_entries(path, Entries { meta, rows }).ok()
}

/// A checkpoint's folder: its own name, for people, and a sum of its path.
fn name_of(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let plain: String =
        name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(60).collect();
    let bytes = path.as_os_str().as_encoded_bytes();
    let (low, high) = (checksum::crc32c(bytes), checksum::crc32c_append(0x5e30e, bytes));
    format!("{plain}-{low:08x}{high:08x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn copy_of(family: &str, to: &Path) {
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/hf").join(family);
        for entry in std::fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }

    #[test]
    fn an_index_is_used_until_a_file_changes() {
        let (dir, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        copy_of("qwen3_moe", dir.path());
        let open = || open(dir.path(), cache.path()).unwrap();
        let (first, how) = open();
        assert_eq!(how, Opening::First);
        let (second, how) = open();
        assert_eq!(how, Opening::Indexed);
        assert_eq!(first.entries(), second.entries());

        // The same bytes in a new file: nothing but its identity differs.
        let shard = dir.path().join("model-00003-of-00005.safetensors");
        let bytes = std::fs::read(&shard).unwrap();
        std::fs::remove_file(&shard).unwrap();
        std::fs::write(&shard, &bytes).unwrap();
        assert_eq!(open().1, Opening::Renewed);
        assert_eq!(open().1, Opening::Indexed);

        // A config that says something else.
        let config = dir.path().join("config.json");
        let text = std::fs::read_to_string(&config).unwrap();
        std::fs::write(&config, text.replace("10000.0", "20000.0")).unwrap();
        let (changed, how) = open();
        assert_eq!((how, changed.config().rope_theta), (Opening::Renewed, 20_000.0));

        // A shard that was cut off is noticed, and refused.
        std::fs::write(&shard, &bytes[..bytes.len() - 1]).unwrap();
        let e = super::open(dir.path(), cache.path()).unwrap_err();
        assert!(e.to_string().contains("truncated"), "{e}");
    }

    #[test]
    fn a_damaged_index_is_written_again() {
        let (dir, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        copy_of("mixtral", dir.path());
        open(dir.path(), cache.path()).unwrap();
        let folder = folder_of(&real(dir.path()).unwrap(), cache.path()).unwrap();
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_file() {
                std::fs::write(path, b"garbage").unwrap();
            }
        }
        assert_eq!(open(dir.path(), cache.path()).unwrap().1, Opening::Renewed);
        assert_eq!(open(dir.path(), cache.path()).unwrap().1, Opening::Indexed);
    }
}
