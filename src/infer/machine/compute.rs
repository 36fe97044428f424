//! What memory and the kernels give: bytes a second, and the seconds that no byte explains.
//!
//! The kernels read one buffer far larger than the caches, as weights of each encoding in turn.
//! Overhead is the time of layers and experts so small that hardly a byte is read.

use super::Tell;
use crate::base::Result;
use crate::base::timing::median_seconds;
use crate::infer::forecast::Amounts;
use crate::model::config::ModelConfig;
use crate::model::family::Family;
use crate::model::forward::{Forward, KvCache, KvType, Routes, Row, Tensors, matrix_shape};
use crate::model::kernels::linear::{
    Activation, Activations, AlignedBytes, Encoding, ExpertWeights, GateUp, Matrix, OwnedMatrix,
    Work, expert, linear, read,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::hint::black_box;
use std::time::Duration;

/// Bytes that are read: far more than caches hold.
const BUFFER: usize = 256 << 20;
/// Every byte of it: as weights and scales of any encoding a small number, and no denormal.
const FILL: u8 = 0x11;
/// Shape of the matrices: an expert's, so that entering a product counts as it does there.
const ROWS: usize = 1024;
const COLS: usize = 2048;
const PATIENCE: Duration = Duration::from_millis(150);
const MOST_RUNS: usize = 9;
/// Tokens of the small model that are timed together.
const TOKENS: usize = 50;

/// Calls of `tell` while this is measured.
pub(super) const STEPS: u64 = 2 + Encoding::ALL.len() as u64;

/// What was measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ComputeFigures {
    /// Of the kernels.
    pub threads: usize,
    /// Bytes a second that all threads read together and do nothing else.
    pub memory: f64,
    /// Bytes of weights a second of a product with one row, by encoding.
    pub kernels: BTreeMap<String, f64>,
    /// Seconds that a layer takes without its weights and its experts.
    pub layer_seconds: f64,
    /// Seconds that an expert takes without its weights.
    pub expert_seconds: f64,
}

impl ComputeFigures {
    /// Measures with `threads` threads; see [`super::Machine::measure`].
    ///
    /// # Errors
    /// As the kernels, and what `tell` answers.
    pub fn measure(threads: usize, tell: &mut Tell<'_>) -> Result<Self> {
        let mut work = Work::new(threads, Activations::best())?;
        tell("memory")?;
        let mut buffer = AlignedBytes::zeroed(BUFFER);
        buffer.fill(FILL);
        let seconds = median_seconds(PATIENCE, MOST_RUNS, || {
            read(&buffer, &mut work).map(|all| {
                black_box(all);
            })
        })?;
        let memory = BUFFER as f64 / seconds;
        let mut kernels = BTreeMap::new();
        for encoding in Encoding::ALL {
            tell(&format!("products with {}", encoding.name()))?;
            kernels.insert(encoding.name().to_owned(), kernel(encoding, &buffer, &mut work)?);
        }
        drop(buffer);
        tell("overhead of a layer")?;
        let layer_seconds = layer_seconds(&mut work)?;
        let expert_seconds = expert_seconds(&mut work)?;
        Ok(Self { threads, memory, kernels, layer_seconds, expert_seconds })
    }

    /// Seconds that computing with these weights takes, each encoding at the slower of memory and
    /// its kernel.
    pub fn seconds(&self, amounts: &Amounts) -> f64 {
        let rate = |name: &str| match self.kernels.get(name) {
            Some(kernel) => kernel.min(self.memory),
            None => self.memory,
        };
        amounts.0.iter().map(|(name, bytes)| bytes / rate(name)).sum()
    }
}

/// Bytes a second of one-row products with the buffer as matrices of `encoding`.
fn kernel(encoding: Encoding, buffer: &[u8], work: &mut Work) -> Result<f64> {
    let data = encoding.data_bytes(ROWS, COLS)?;
    let scales = encoding.scale_bytes(ROWS, COLS);
    let step = (data + scales).next_multiple_of(64);
    let x = vec![1.0; COLS];
    let mut out = vec![0.0; ROWS];
    let seconds = median_seconds(PATIENCE, MOST_RUNS, || {
        for bytes in buffer.chunks_exact(step) {
            let (data, rest) = bytes.split_at(data);
            let w = Matrix::with_scales(encoding, ROWS, COLS, data, &rest[..scales])?;
            linear(&w, &x, &mut out, false, work)?;
        }
        Ok(())
    })?;
    Ok((buffer.len() / step * (data + scales)) as f64 / seconds)
}

/// Weights of a model that fits in the nearest cache.
struct Small;

impl Tensors for Small {
    fn has(&self, _: &str) -> bool {
        true
    }

    fn encoding(&self, _: &str, _: &[usize]) -> Result<Encoding> {
        Ok(Encoding::F32)
    }

    fn tensor(&self, _: &str, shape: &[usize]) -> Result<OwnedMatrix> {
        let (rows, cols) = matrix_shape(shape);
        OwnedMatrix::from_f32(rows, cols, &vec![0.01; rows * cols])
    }
}

fn small() -> ModelConfig {
    ModelConfig {
        vocab: 64,
        hidden: 64,
        layers: 2,
        heads: 4,
        kv_heads: 4,
        head_dim: 16,
        experts: 8,
        top_k: 2,
        expert_width: 32,
        max_position: 64,
        ..ModelConfig::of_family(Family::Olmoe)
    }
}

/// Seconds of a layer up to its routes.
fn layer_seconds(work: &mut Work) -> Result<f64> {
    let config = small();
    let forward = Forward::load(&config, &Small)?;
    let mut caches = [KvCache::new(&config, 64, KvType::F32)];
    let row = [Row { sequence: 0, position: 0 }];
    let (mut x, mut y) = (vec![0.5; config.hidden], vec![0.0; config.hidden]);
    let mut routes = Routes::default();
    let seconds = median_seconds(PATIENCE, MOST_RUNS, || {
        for _ in 0..TOKENS {
            caches[0].truncate(0);
            x.fill(0.5);
            for layer in 0..config.layers {
                forward.attention(layer, &mut x, &row, &mut caches, &mut y, work)?;
                forward.route(layer, &y, &mut routes, work)?;
                forward.shared(layer, &y, &mut x, work)?;
            }
        }
        Ok(())
    })?;
    Ok(seconds / (TOKENS * config.layers) as f64)
}

/// Seconds of an expert for one row.
fn expert_seconds(work: &mut Work) -> Result<f64> {
    let config = small();
    let (hidden, width) = (config.hidden, config.expert_width);
    let matrix = |rows, cols| Small.tensor("", &[rows, cols]);
    let (gate, up, down) = (matrix(width, hidden)?, matrix(width, hidden)?, matrix(hidden, width)?);
    let weights = ExpertWeights {
        gate_up: GateUp::Apart { gate: gate.view().into(), up: up.view().into() },
        down: down.view().into(),
        activation: Activation::SwiGlu,
    };
    let (x, mut out) = (vec![0.5; hidden], vec![0.0; hidden]);
    let seconds = median_seconds(PATIENCE, MOST_RUNS, || {
        (0..TOKENS).try_for_each(|_| expert(&weights, &x, &[1.0], &mut out, work))
    })?;
    Ok(seconds / TOKENS as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overhead_is_measured_on_real_layers() {
        let mut work = Work::new(2, Activations::best()).unwrap();
        let layer = layer_seconds(&mut work).unwrap();
        let expert = expert_seconds(&mut work).unwrap();
        assert!(layer > 0.0 && expert > 0.0);
    }

    #[test]
    fn every_encoding_reads_the_filled_buffer_as_numbers() {
        let mut work = Work::new(2, Activations::best()).unwrap();
        for encoding in Encoding::ALL {
            let (rows, cols) = (32, 256);
            let data = vec![FILL; encoding.data_bytes(rows, cols).unwrap()];
            let scales = vec![FILL; encoding.scale_bytes(rows, cols)];
            let w = Matrix::with_scales(encoding, rows, cols, &data, &scales).unwrap();
            let mut out = vec![0.0; rows];
            linear(&w, &[1.0; 256], &mut out, false, &mut work).unwrap();
            assert!(out.iter().all(|x| x.is_finite()), "{}", encoding.name());
        }
    }

    #[test]
    fn weights_are_read_at_the_slower_of_memory_and_kernel() {
        let figures = ComputeFigures {
            threads: 1,
            memory: 10.0,
            kernels: [("bf16".to_owned(), 5.0), ("int8".to_owned(), 20.0)].into(),
            layer_seconds: 0.0,
            expert_seconds: 0.0,
        };
        let mut amounts = Amounts::default();
        for name in ["bf16", "int8", "another"] {
            amounts.add(name, 10.0);
        }
        assert_eq!(figures.seconds(&amounts), 2.0 + 1.0 + 1.0);
    }
}
