//! Writing a checkpoint folder out of f32 values, streaming: tensors may come in any order and none
//! is held.

use super::config::generation_config;
use super::header::Dtype;
use super::shards::{ShardTensor, Shards, write_json};
use crate::base::{Error, Result};
use crate::model::config::{ModelConfig, Precision};
use crate::model::family::{dense_tensors, expert_tensors};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// Elements converted at a time.
const PIECE: usize = 1 << 18;

/// A tensor to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WriterTensor {
    pub name: String,
    pub shape: Vec<usize>,
}

/// A checkpoint folder being written. Nothing has its final name before [`Writer::finish`].
pub struct Writer {
    dir: PathBuf,
    dtype: Precision,
    shards: Shards,
    elements: HashMap<String, usize>,
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
        let kind = match dtype {
            Precision::F32 => Dtype::F32,
            Precision::Bf16 => Dtype::BF16,
        };
        let count = |tensor: &WriterTensor| (tensor.name.clone(), tensor.shape.iter().product());
        let elements = tensors.iter().map(count).collect();
        let tensors = tensors
            .into_iter()
            .map(|WriterTensor { name, shape }| ShardTensor { name, dtype: kind, shape })
            .collect();
        let shards = Shards::create(dir, tensors, shard_bytes)?;
        Ok(Self { dir: dir.to_owned(), dtype, shards, elements })
    }

    /// Writes one tensor, in any order; bf16 is rounded to nearest even.
    ///
    /// # Errors
    /// Bug for a tensor that was not listed or has another length; Io if the disk fails.
    pub fn write(&mut self, name: &str, values: &[f32]) -> Result<()> {
        let elements = self
            .elements
            .get(name)
            .ok_or_else(|| Error::bug("tensor was not listed").with("tensor", name))?;
        if *elements != values.len() {
            return Err(Error::bug(format!(
                "tensor has {elements} elements, {} were given",
                values.len()
            ))
            .with("tensor", name));
        }
        let mut at = 0;
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
            self.shards.write(name, at, &bytes)?;
            at += bytes.len() as u64;
        }
        Ok(())
    }

    /// Syncs the shards, gives them their names, and writes the index, `config.json` and
    /// `generation_config.json`.
    ///
    /// # Errors
    /// Bug if a listed tensor was not written, naming it; Io if the disk fails.
    pub fn finish(self, config: &ModelConfig) -> Result<()> {
        self.shards.finish()?;
        write_json(&self.dir.join("config.json"), &config.to_hf_json(self.dtype))?;
        write_json(&self.dir.join("generation_config.json"), &generation_config(config))
    }
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
