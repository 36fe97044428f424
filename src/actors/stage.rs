//! What the worker threads run: the traits that a trainer or a generator implements.
//!
//! A stage lives on one thread, owns its tensors, and runs one task after another. What it
//! learns leaves it as plain facts; what it sends to other ranks leaves it as moved tensors.

use crate::base::{BlockId, Result, Step};
use crate::graph::planner::{Fact, Pass, Task};
use crate::storage::lease::Lease;
use tch::Tensor;

/// Tensors for a collective that a later task will carry out.
#[derive(Debug)]
pub enum Outgoing {
    /// For every rank its tensors, all ranks the same number of them.
    AllToAll(Vec<Vec<Tensor>>),
    /// One tensor, of which every rank gets every rank's.
    AllGather(Tensor),
    /// One f32 tensor, summed over ranks in rank order.
    AllReduce(Tensor),
}

/// What a collective brought, for the task that carried it out.
#[derive(Debug)]
pub enum Incoming {
    /// `[rank][tensor]`.
    AllToAll(Vec<Vec<Tensor>>),
    /// `[rank]`.
    AllGather(Vec<Tensor>),
    AllReduce(Tensor),
    /// The sequences of a step.
    Batch(Batch),
}

/// Token ids and targets of the sequences of one rank in one pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// `[micro-batch]`, each `[B, T]` row-major.
    pub ids: Vec<Vec<i64>>,
    /// As `ids`, -100 where no loss is taken.
    pub targets: Vec<Vec<i64>>,
    /// Sequences in each micro-batch, and their length.
    pub sequences: usize,
    pub length: usize,
    /// Index in the global step batch of the first token of each micro-batch.
    pub first_token: Vec<u64>,
    /// Tokens and targets of the whole step over all ranks.
    pub total_tokens: u64,
    pub total_targets: u64,
    /// Rows whose logits a forward pass hands out, `[micro-batch][row]`; empty: the loss is
    /// taken instead.
    pub logits_of: Vec<Vec<i64>>,
}

/// Numbers of a pass, for metrics.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PassNumbers {
    pub loss: f64,
    pub lm_loss: f64,
    pub aux_loss: f64,
    pub z_loss: f64,
    pub grad_norm: f64,
    pub lr: f64,
    pub tokens: u64,
    pub targets: u64,
    pub dropped: u64,
    /// From the pass's first node to its last, where the stage measures it.
    pub seconds: f64,
    /// True when a non-finite number made the step update nothing.
    pub skipped: bool,
    /// Tokens of each expert, `[layer][expert]`, over all ranks.
    pub load: Vec<Vec<u64>>,
    /// Logits of the rows asked for, `[rows][V]`, in passes that want them.
    pub logits: Vec<Vec<f32>>,
}

/// What a finished task leaves behind.
#[derive(Debug, Default)]
pub struct Outcome {
    pub fact: Option<Fact>,
    /// Set by the task that ends a pass.
    pub numbers: Option<Box<PassNumbers>>,
    /// What a commit says beside the blocks and the dense state, which then fills its slot: gate
    /// state, update history and the like, as JSON.
    pub snapshot: Option<Vec<u8>>,
    /// The CRC32C of a block that the task changed, all bytes of its slot, where it computed it.
    pub crc: Option<(BlockId, u32)>,
}

impl Outcome {
    pub fn fact(fact: Fact) -> Self {
        Self { fact: Some(fact), ..Self::default() }
    }
}

/// The body of the executor thread.
pub trait Stage {
    /// Runs `task` on the blocks that `lease` pins.
    fn run(&mut self, task: Task, lease: &mut Lease) -> Result<Outcome>;

    /// Takes what a collective or the source brought for `task`.
    fn deliver(&mut self, task: Task, incoming: Incoming) -> Result<()>;
}

/// Makes a stage on the thread that will run it.
pub type MakeStage = Box<dyn FnOnce() -> Result<Box<dyn Stage>> + Send>;

/// Where batches come from: a pure function of the step, so that a resume needs no position.
pub trait BatchSource: Send {
    fn batch(&mut self, step: Step, pass: Pass) -> Result<Batch>;
}
