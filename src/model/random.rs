//! Checkpoints of random weights in the layout of a real one: for benchmarks and tests.
//!
//! Weights are normal(0, std), norms 1. With nothing else a router would hardly look at its token;
//! so the embedding is larger (routing follows the tokens) and each row of a router is scaled by
//! exp(s · N(0,1)) (some experts are chosen more often, as in trained models).

use super::config::{ModelConfig, Precision};
use super::family::{Slot, dense_tensors, expert_tensors};
use super::hf::Writer;
use super::init::{dense, normal};
use crate::base::Result;
use std::path::Path;

/// How weights are drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Draw {
    pub seed: u64,
    pub std: f64,
    /// The embedding's standard deviation is so many times that of the others.
    pub embedding: f64,
    /// s of the routers' rows.
    pub skew: f64,
}

impl Default for Draw {
    fn default() -> Self {
        Self { seed: 1, std: 0.02, embedding: 32.0, skew: 0.5 }
    }
}

/// Writes a checkpoint folder, one tensor in memory at a time; `progress` hears (done, all) layers.
///
/// # Errors
/// `Io` if the disk fails, `Config` for a shape that no model can have.
pub fn write(
    dir: &Path,
    config: &ModelConfig,
    draw: &Draw,
    dtype: Precision,
    shard_bytes: u64,
    mut progress: impl FnMut(usize, usize),
) -> Result<()> {
    config.validate()?;
    let mut writer = Writer::create(dir, config, dtype, shard_bytes)?;
    let mut values: Vec<f32> = Vec::new();
    for tensor in dense_tensors(config) {
        values.clear();
        values.resize(tensor.elements(), 0.0);
        let std = match tensor.slot {
            Slot::Embed => draw.std * draw.embedding,
            _ => draw.std,
        };
        dense(draw.seed, std, &tensor.name, tensor.slot, &mut values);
        if tensor.slot == Slot::Router {
            let mut scale = vec![0.0; config.experts];
            normal(draw.seed, &format!("{} rows", tensor.name), draw.skew, &mut scale);
            for (row, scale) in values.chunks_mut(config.hidden).zip(scale) {
                let scale = f64::from(scale).exp() as f32;
                row.iter_mut().for_each(|value| *value *= scale);
            }
        }
        writer.write(&tensor.name, &values)?;
    }
    for layer in 0..config.layers {
        for expert in 0..config.experts {
            for (name, shape) in expert_tensors(config, layer, expert)? {
                values.clear();
                values.resize(shape.iter().product(), 0.0);
                normal(draw.seed, &name, draw.std, &mut values);
                writer.write(&name, &values)?;
            }
        }
        progress(layer + 1, config.layers);
    }
    writer.finish(config)
}
