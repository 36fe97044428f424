//! An index of files that somebody else wrote: block → file, offset, length, type, shape.
//!
//! Law: a catalogue is read whole or not at all; it goes with a text (who the files were), and
//! whoever opens it decides by that text whether it still holds. One at a time uses it, of all threads and
//! processes: a file beside it is locked meanwhile.

use super::index::SledIndex;
use crate::base::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::path::Path;

/// Where one block lies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Its place in the list of files that the catalogue's text holds.
    pub file: usize,
    pub offset: u64,
    pub len: u64,
    pub dtype: String,
    pub shape: Vec<u64>,
}

/// Blocks by their keys.
pub type Blocks = Vec<(String, Record)>;

/// Written last, so that a catalogue that was cut off has none.
const TEXT: &[u8] = b"text";
const BLOCK: &[u8] = b"block/";
const CACHE: u64 = 8 << 20;

/// Waits until nobody else uses the catalogue in `dir`, and keeps others out while the answer lives.
fn alone(dir: &Path) -> Result<File> {
    let path = dir.with_added_extension("lock");
    let failed = |e| Error::io(format!("locking {}", path.display()), e);
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(failed)?;
    }
    let file = File::options().create(true).truncate(false).write(true).open(&path);
    let file = file.map_err(failed)?;
    file.lock().map_err(failed)?;
    Ok(file)
}

/// Reads the catalogue in `dir`: its text, and its blocks in the order of their keys; None when
/// none was finished there.
///
/// # Errors
/// Corrupt when it is damaged, Io.
pub fn read(dir: &Path) -> Result<Option<(String, Blocks)>> {
    if !dir.exists() {
        return Ok(None);
    }
    let _alone = alone(dir)?;
    let index = SledIndex::open(dir, CACHE)?;
    let bad = || Error::corrupt("the checkpoint's index is damaged").with("path", dir.display());
    let Some(text) = index.get(TEXT)? else { return Ok(None) };
    let text = String::from_utf8(text).map_err(|_| bad())?;
    let mut blocks = Vec::new();
    for (key, value) in index.scan()? {
        let Some(key) = key.strip_prefix(BLOCK) else { continue };
        let key = std::str::from_utf8(key).map_err(|_| bad())?.to_owned();
        blocks.push((key, serde_json::from_slice(&value).map_err(|_| bad())?));
    }
    Ok(Some((text, blocks)))
}

/// Replaces the catalogue in `dir`.
///
/// # Errors
/// Io.
pub fn write(
    dir: &Path,
    text: &str,
    blocks: impl IntoIterator<Item = (String, Record)>,
) -> Result<()> {
    let _alone = alone(dir)?;
    if dir.exists() {
        std::fs::remove_dir_all(dir)
            .map_err(|e| Error::io(format!("removing {}", dir.display()), e))?;
    }
    std::fs::create_dir_all(dir)
        .map_err(|e| Error::io(format!("making the folder {}", dir.display()), e))?;
    let index = SledIndex::open(dir, CACHE)?;
    for (key, record) in blocks {
        let value = serde_json::to_vec(&record)
            .map_err(|e| Error::bug("a record has no JSON form").from_source(e))?;
        index.insert(&[BLOCK, key.as_bytes()].concat(), &value)?;
    }
    index.flush()?;
    index.insert(TEXT, text.as_bytes())?;
    index.flush()?;
    index.sync()
}

/// Puts values beside the catalogue in `dir`, which is made where it is missing; they go with it
/// when it is replaced.
///
/// # Errors
/// Corrupt when it is damaged, Io.
pub fn keep(dir: &Path, values: impl IntoIterator<Item = (String, Vec<u8>)>) -> Result<()> {
    let _alone = alone(dir)?;
    let index = SledIndex::open(dir, CACHE)?;
    for (name, value) in values {
        index.insert(name.as_bytes(), &value)?;
    }
    index.flush()?;
    index.sync()
}

/// The values of [`keep`] by name; None for one that is not there.
///
/// # Errors
/// Corrupt when it is damaged, Io.
pub fn kept(dir: &Path, names: &[String]) -> Result<Vec<Option<Vec<u8>>>> {
    if !dir.exists() {
        return Ok(vec![None; names.len()]);
    }
    let _alone = alone(dir)?;
    let index = SledIndex::open(dir, CACHE)?;
    names.iter().map(|name| index.get(name.as_bytes())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_write_and_read_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("index");
        let record = Record { file: 0, offset: 0, len: 1, dtype: "F32".into(), shape: vec![1] };
        std::thread::scope(|scope| {
            for name in ["a", "b", "c", "d"] {
                let (dir, record) = (&dir, &record);
                scope.spawn(move || {
                    for _ in 0..5 {
                        write(dir, name, [(name.to_owned(), record.clone())]).unwrap();
                        let (text, blocks) = read(dir).unwrap().unwrap();
                        assert_eq!(blocks, [(text, record.clone())]);
                        keep(dir, [(name.to_owned(), vec![1])]).unwrap();
                    }
                });
            }
        });
    }

    #[test]
    fn a_catalogue_is_read_back_as_it_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("index");
        assert!(read(&dir).unwrap().is_none());
        let record =
            Record { file: 1, offset: 7, len: 12, dtype: "BF16".into(), shape: vec![2, 3] };
        for text in ["one", "two"] {
            let blocks = ["a", "b"].map(|key| (format!("{key}{text}"), record.clone()));
            write(&dir, text, blocks.clone()).unwrap();
            assert_eq!(read(&dir).unwrap(), Some((text.to_owned(), blocks.to_vec())));
        }
    }
}
