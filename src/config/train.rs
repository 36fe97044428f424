//! `[train]`: how long, how much at a time, how fast, and when to commit.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Steps, batch, learning rate, and when to commit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Train {
    /// Optimizer steps in all.
    #[schemars(range(min = 1), extend("x-required" = true))]
    pub steps: u64,
    /// Sequences in a step, over all ranks.
    #[schemars(range(min = 1))]
    pub batch: usize,
    /// Sequences that pass a layer at once, over all ranks; divides `batch`.
    #[schemars(range(min = 1), extend("x-default" = "train.batch"))]
    pub micro_batch: usize,
    /// Tokens in a sequence.
    #[schemars(range(min = 1), extend("x-required" = true))]
    pub seq: usize,
    /// Type of matrix products (the dense part: f32 on processors without bf16); masters are f32.
    pub precision: Precision,
    /// Peak learning rate.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub lr: f64,
    /// Learning rate at the end of the cosine schedule.
    #[schemars(range(min = 0), extend("x-default" = "train.lr / 10"))]
    pub min_lr: f64,
    /// Steps over which the learning rate rises from zero to `lr`.
    pub warmup: u64,
    /// The learning rate after the warm-up.
    pub schedule: LrSchedule,
    /// Largest global gradient norm; greater ones are scaled down to it. 0 turns clipping off.
    #[schemars(range(min = 0))]
    pub clip: f64,
    /// What a loss or gradient that is not finite does. Such a step never updates anything.
    pub nonfinite: NonFinite,
    /// Seed of everything random that has no seed of its own.
    pub seed: u64,
    /// Steps between commits: what a crash can lose.
    #[schemars(range(min = 1))]
    pub commit_every: u64,
    /// Steps between named checkpoints `step-N`, a multiple of `commit_every`; 0 makes none.
    pub keep_every: u64,
    /// Steps between evaluations on the held-out data; 0 makes none.
    pub eval_every: u64,
    /// Batches in one evaluation.
    #[schemars(range(min = 1))]
    pub eval_batches: usize,
    /// Where tensors are computed. This build trains on `cpu`; `semoe plan` accepts both.
    pub device: Device,
}

impl Default for Train {
    fn default() -> Self {
        Self {
            steps: 0,
            batch: 8,
            micro_batch: 8,
            seq: 0,
            precision: Precision::default(),
            lr: 3e-4,
            min_lr: 3e-5,
            warmup: 0,
            schedule: LrSchedule::default(),
            clip: 1.0,
            nonfinite: NonFinite::default(),
            seed: 0,
            commit_every: 50,
            keep_every: 0,
            eval_every: 0,
            eval_batches: 8,
            device: Device::default(),
        }
    }
}

/// Type of the matrix products.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    #[default]
    Bf16,
    F32,
}

/// The learning rate after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LrSchedule {
    /// Falls from `lr` to `min_lr` along half a cosine.
    #[default]
    Cosine,
    /// Stays at `lr`.
    Constant,
}

/// What a loss or gradient that is not finite does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum NonFinite {
    /// Ends the run, naming layer and expert.
    #[default]
    Stop,
    /// Says so and goes on with the next step.
    Skip,
}

/// Where tensors are computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Device {
    #[default]
    Cpu,
    Cuda,
}
