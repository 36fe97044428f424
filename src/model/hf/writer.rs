//! Writing a checkpoint folder, streaming: offsets are fixed from the tensor list first, so
//! tensors may come in any order and none is held.

use super::config::generation_config;
use crate::base::{Error, Result};
use crate::model::config::{ModelConfig, Precision};
use crate::model::family::{dense_tensors, expert_tensors};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Elements converted at a time.
const PIECE: usize = 1 << 18;

/// A tensor to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WriterTensor {
    pub name: String,
    pub shape: Vec<usize>,
}

struct Place {
    shard: usize,
    offset: u64,
    elements: usize,
    written: bool,
}

struct Shard {
    /// Name while incomplete; the final name is given by `finish`.
    partial: PathBuf,
    file: File,
    bytes: u64,
}

/// A checkpoint folder being written. Nothing has its final name before [`Writer::finish`].
pub struct Writer {
    dir: PathBuf,
    dtype: Precision,
    shards: Vec<Shard>,
    places: HashMap<String, Place>,
}

impl Writer {
    /// Starts a folder with all tensors of a model, in shards of at most `shard_bytes`.
    ///
    /// # Errors
    /// Io if the folder or a file cannot be made.
    pub fn create(
        dir: &Path,
        config: &ModelConfig,
        dtype: Precision,
        shard_bytes: u64,
    ) -> Result<Self> {
        let mut tensors = Vec::new();
        let mut layer = None;
        for tensor in dense_tensors(config) {
            // Each layer's experts follow that layer's dense tensors.
            if let Some(done) = layer.filter(|done| tensor.layer != Some(*done)) {
                push_experts(config, done, &mut tensors)?;
            }
            layer = tensor.layer;
            tensors.push(WriterTensor { name: tensor.name, shape: tensor.shape });
        }
        Self::create_with(dir, tensors, dtype, shard_bytes)
    }

    /// Starts a folder with the given tensors.
    pub fn create_with(
        dir: &Path,
        tensors: Vec<WriterTensor>,
        dtype: Precision,
        shard_bytes: u64,
    ) -> Result<Self> {
        std::fs::create_dir_all(dir)
            .map_err(|e| Error::io(format!("making the folder {}", dir.display()), e))?;
        let mut shards: Vec<Vec<WriterTensor>> = vec![Vec::new()];
        let mut filled = 0;
        for tensor in tensors {
            let bytes = bytes_of(&tensor, dtype);
            if filled > 0 && filled + bytes > shard_bytes {
                shards.push(Vec::new());
                filled = 0;
            }
            filled += bytes;
            if let Some(last) = shards.last_mut() {
                last.push(tensor);
            }
        }
        let mut writer =
            Self { dir: dir.to_owned(), dtype, shards: Vec::new(), places: HashMap::new() };
        for (number, tensors) in shards.into_iter().enumerate() {
            writer.start_shard(number, tensors)?;
        }
        Ok(writer)
    }

    fn start_shard(&mut self, number: usize, tensors: Vec<WriterTensor>) -> Result<()> {
        let partial = self.dir.join(format!(".shard-{number}.partial"));
        let doing = || format!("writing {}", partial.display());
        let mut header = Map::new();
        // transformers refuses a file that does not say which framework's layout it has.
        header.insert("__metadata__".into(), json!({ "format": "pt" }));
        let name_of_type = match self.dtype {
            Precision::F32 => "F32",
            Precision::Bf16 => "BF16",
        };
        let mut offset = 0;
        for tensor in &tensors {
            let end = offset + bytes_of(tensor, self.dtype);
            let entry = json!({ "dtype": name_of_type, "shape": tensor.shape, "data_offsets": [offset, end] });
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
            let bytes = bytes_of(&tensor, self.dtype);
            let elements = tensor.shape.iter().product();
            let place = Place { shard, offset: at, elements, written: false };
            if self.places.insert(tensor.name.clone(), place).is_some() {
                return Err(Error::bug("tensor is listed twice").with("tensor", tensor.name));
            }
            at += bytes;
        }
        self.shards.push(Shard { partial, file, bytes: offset });
        Ok(())
    }

    /// Writes one tensor, in any order; bf16 is rounded to nearest even.
    ///
    /// # Errors
    /// Bug for a tensor that was not listed or has another length; Io if the disk fails.
    pub fn write(&mut self, name: &str, values: &[f32]) -> Result<()> {
        let place = self
            .places
            .get_mut(name)
            .ok_or_else(|| Error::bug("tensor was not listed").with("tensor", name))?;
        if place.elements != values.len() {
            return Err(Error::bug(format!(
                "tensor has {} elements, {} were given",
                place.elements,
                values.len()
            ))
            .with("tensor", name));
        }
        let shard = &self.shards[place.shard];
        let mut at = place.offset;
        let mut bytes = Vec::with_capacity(PIECE * 4);
        for piece in values.chunks(PIECE) {
            bytes.clear();
            match self.dtype {
                Precision::F32 => {
                    for value in piece {
                        bytes.extend_from_slice(&value.to_le_bytes());
                    }
                }
                Precision::Bf16 => {
                    for value in piece {
                        bytes.extend_from_slice(&half::bf16::from_f32(*value).to_le_bytes());
                    }
                }
            }
            shard.file.write_all_at(&bytes, at).map_err(|e| {
                Error::io(format!("writing {}", shard.partial.display()), e).with("tensor", name)
            })?;
            at += bytes.len() as u64;
        }
        place.written = true;
        Ok(())
    }

    /// Syncs the shards, gives them their names, and writes the index, `config.json` and
    /// `generation_config.json`.
    ///
    /// # Errors
    /// Bug if a listed tensor was not written, naming it; Io if the disk fails.
    pub fn finish(self, config: &ModelConfig) -> Result<()> {
        let missing = self.places.iter().filter(|(_, place)| !place.written);
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
        write_json(&self.dir.join("config.json"), &config.to_hf_json(self.dtype))?;
        write_json(&self.dir.join("generation_config.json"), &generation_config(config))
    }
}

fn bytes_of(tensor: &WriterTensor, dtype: Precision) -> u64 {
    (tensor.shape.iter().product::<usize>() * dtype.bytes()) as u64
}

fn push_experts(config: &ModelConfig, layer: usize, tensors: &mut Vec<WriterTensor>) -> Result<()> {
    let experts = if config.is_dense(layer) { 0 } else { config.experts };
    for expert in 0..experts {
        for (name, shape) in expert_tensors(config, layer, expert)? {
            tensors.push(WriterTensor { name, shape: shape.to_vec() });
        }
    }
    Ok(())
}

fn write_json(path: &Path, value: &Value) -> Result<()> {
    let doing = || format!("writing {}", path.display());
    let mut text = serde_json::to_string_pretty(value)
        .map_err(|e| Error::bug("JSON cannot be written").from_source(e))?;
    text.push('\n');
    std::fs::write(path, text).map_err(|e| Error::io(doing(), e))
}
