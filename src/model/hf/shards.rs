//! The safetensors files of a checkpoint being written: offsets are fixed from the list of tensors
//! first, so bytes may come in any order and none are held.

use super::header::Dtype;
use crate::base::{Error, Result};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// A tensor to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardTensor {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
}

impl ShardTensor {
    fn bytes(&self) -> u64 {
        self.shape.iter().product::<usize>() as u64 * self.dtype.bytes()
    }
}

struct Place {
    shard: usize,
    offset: u64,
    bytes: u64,
    written: u64,
}

struct Shard {
    /// Name while incomplete; the final name is given by `finish`.
    partial: PathBuf,
    file: File,
    bytes: u64,
}

/// Files being written. None has its final name before [`Shards::finish`].
pub struct Shards {
    dir: PathBuf,
    shards: Vec<Shard>,
    places: HashMap<String, Place>,
}

impl Shards {
    /// Starts files of at most `shard_bytes` of data with the given tensors, in their order.
    ///
    /// # Errors
    /// Io if the folder or a file cannot be made.
    pub fn create(dir: &Path, tensors: Vec<ShardTensor>, shard_bytes: u64) -> Result<Self> {
        std::fs::create_dir_all(dir)
            .map_err(|e| Error::io(format!("making the folder {}", dir.display()), e))?;
        let mut files: Vec<Vec<ShardTensor>> = vec![Vec::new()];
        let mut filled = 0;
        for tensor in tensors {
            let bytes = tensor.bytes();
            if filled > 0 && filled + bytes > shard_bytes {
                files.push(Vec::new());
                filled = 0;
            }
            filled += bytes;
            if let Some(last) = files.last_mut() {
                last.push(tensor);
            }
        }
        let mut shards = Self { dir: dir.to_owned(), shards: Vec::new(), places: HashMap::new() };
        for (number, tensors) in files.into_iter().enumerate() {
            shards.start(number, tensors)?;
        }
        Ok(shards)
    }

    fn start(&mut self, number: usize, tensors: Vec<ShardTensor>) -> Result<()> {
        let partial = self.dir.join(format!(".shard-{number}.partial"));
        let doing = || format!("writing {}", partial.display());
        let mut header = Map::new();
        // transformers refuses a file that does not say which framework's layout it has.
        header.insert("__metadata__".into(), json!({ "format": "pt" }));
        let mut offset = 0;
        for tensor in &tensors {
            let end = offset + tensor.bytes();
            let entry = json!({ "dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [offset, end] });
            if header.insert(tensor.name.clone(), entry).is_some() {
                return Err(Error::bug("tensor is listed twice").with("tensor", &tensor.name));
            }
            offset = end;
        }
        let mut text = Value::Object(header).to_string().into_bytes();
        // Spaces up to a multiple of 64, so that the data is aligned.
        let padded = (8 + text.len()).next_multiple_of(64) - 8;
        text.resize(padded, b' ');
        let start = 8 + text.len() as u64;
        let file = File::create(&partial).map_err(|e| Error::io(doing(), e))?;
        file.write_all_at(&(text.len() as u64).to_le_bytes(), 0)
            .and_then(|()| file.write_all_at(&text, 8))
            .and_then(|()| file.set_len(start + offset))
            .map_err(|e| Error::io(doing(), e))?;
        let shard = self.shards.len();
        let mut at = start;
        for tensor in tensors {
            let bytes = tensor.bytes();
            let place = Place { shard, offset: at, bytes, written: 0 };
            if self.places.insert(tensor.name.clone(), place).is_some() {
                return Err(Error::bug("tensor is listed twice").with("tensor", tensor.name));
            }
            at += bytes;
        }
        self.shards.push(Shard { partial, file, bytes: offset });
        Ok(())
    }

    /// Writes a part of a tensor's bytes; each part once, in any order.
    ///
    /// # Errors
    /// Bug for a tensor that was not listed or a part outside it; Io if the disk fails.
    pub fn write(&mut self, name: &str, at: u64, bytes: &[u8]) -> Result<()> {
        let place = self
            .places
            .get_mut(name)
            .ok_or_else(|| Error::bug("tensor was not listed").with("tensor", name))?;
        if at + bytes.len() as u64 > place.bytes {
            return Err(Error::bug(format!(
                "tensor has {} bytes, {} at {at} were given",
                place.bytes,
                bytes.len()
            ))
            .with("tensor", name));
        }
        let shard = &self.shards[place.shard];
        shard.file.write_all_at(bytes, place.offset + at).map_err(|e| {
            Error::io(format!("writing {}", shard.partial.display()), e).with("tensor", name)
        })?;
        place.written += bytes.len() as u64;
        Ok(())
    }

    /// Syncs the files, gives them their names, and writes the index where there are several.
    ///
    /// # Errors
    /// Bug if a listed tensor was not written, naming it; Io if the disk fails.
    pub fn finish(self) -> Result<()> {
        let missing = self.places.iter().filter(|(_, place)| place.written != place.bytes);
        if let Some(name) = missing.map(|(name, _)| name).min() {
            return Err(Error::bug("tensor was not written before the end").with("tensor", name));
        }
        let count = self.shards.len();
        let mut names = Vec::new();
        for (i, shard) in self.shards.iter().enumerate() {
            let name = match count {
                1 => "model.safetensors".to_owned(),
                _ => format!("model-{:05}-of-{count:05}.safetensors", i + 1),
            };
            let path = self.dir.join(&name);
            shard
                .file
                .sync_all()
                .and_then(|()| std::fs::rename(&shard.partial, &path))
                .map_err(|e| Error::io(format!("writing {}", path.display()), e))?;
            names.push(name);
        }
        let index_path = self.dir.join("model.safetensors.index.json");
        if count > 1 {
            let map: BTreeMap<&str, &str> = self
                .places
                .iter()
                .map(|(name, place)| (name.as_str(), names[place.shard].as_str()))
                .collect();
            let total: u64 = self.shards.iter().map(|shard| shard.bytes).sum();
            write_json(
                &index_path,
                &json!({ "metadata": { "total_size": total }, "weight_map": map }),
            )?;
        } else if index_path.exists() {
            // Left from an earlier, sharded export: it would win over the single file.
            std::fs::remove_file(&index_path)
                .map_err(|e| Error::io(format!("removing {}", index_path.display()), e))?;
        }
        Ok(())
    }
}

/// Writes a value as indented JSON.
///
/// # Errors
/// Io, naming the file.
pub fn write_json(path: &Path, value: &Value) -> Result<()> {
    let doing = || format!("writing {}", path.display());
    let mut text = serde_json::to_string_pretty(value)
        .map_err(|e| Error::bug("JSON cannot be written").from_source(e))?;
    text.push('\n');
    std::fs::write(path, text).map_err(|e| Error::io(doing(), e))
}
