//! Planners: pure code that adds nodes as facts arrive.
//!
//! ```text
//! fact (routes of layer 3 known) → planner → nodes (experts of layer 3, then dense of layer 4)
//!                                         └→ prefetches (what layer 4 will likely need)
//! ```
//!
//! A planner never blocks and holds no tensors. The scheduler feeds it every finished task and
//! hands what comes out to the engine and to the prefetcher.

pub mod decode;
pub mod predictor;
pub mod time;
pub mod train;

use super::NodeSpec;
use crate::base::{BlockId, Step};
use std::fmt;

/// One task of a training or evaluation step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Task {
    pub step: Step,
    pub pass: Pass,
    pub work: Work,
}

/// What a pass over the layers is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Pass {
    /// Forward, backward and updates.
    Train,
    /// Forward only: evaluation or sampling; the number tells the batches apart.
    Forward(u32),
}

/// What adds nodes as facts arrive. The scheduler feeds it; see the module.
pub trait Planner: Send {
    /// The step that was begun last.
    fn step(&self) -> Step;

    /// Begins a step: its first nodes, and the fetches that can be foreseen.
    fn begin(&mut self, step: Step, pass: Pass, plan: &mut Plan);

    /// A task that still runs made something known.
    fn on_news(&mut self, _task: Task, _fact: &Fact, _plan: &mut Plan) {}

    /// A task of the current step is done; adds what follows from it.
    fn on_done(&mut self, task: Task, fact: &Fact, plan: &mut Plan);

    /// Whether the pass of the current step is over with this task, so that the next may begin.
    fn ends_step(&self, task: Task, fact: &Fact) -> bool;

    /// Adds the commit of the step that just ended, where steps change something.
    fn commit(&mut self, _plan: &mut Plan) {}

    /// Brings every idle expert up to date; returns how many.
    fn catch_up_all(&mut self, _plan: &mut Plan) -> usize {
        0
    }
}

/// What a task does. `mb` is a micro-batch; layers and experts are global indices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Work {
    /// Load the step's sequences.
    Batch,
    /// Mix the experts' outputs of the layer below (or embed), then attention, norms and the
    /// shared expert of this layer.
    Dense { layer: usize, mb: usize },
    /// Choose experts for the tokens of a micro-batch.
    Gate { layer: usize, mb: usize },
    /// Exchange how many tokens chose each expert, for capacities over the global batch.
    Counts { layer: usize },
    /// Apply the capacity to every micro-batch's choices.
    Route { layer: usize },
    /// Send tokens to the ranks that own their experts.
    Dispatch { layer: usize, mb: usize },
    /// Forward of one expert over all micro-batches.
    Expert { layer: usize, expert: usize },
    /// Return expert outputs to the tokens' ranks.
    Combine { layer: usize, mb: usize },
    /// Head and loss; in training with their backward.
    Head { mb: usize },
    /// Exchange losses and routing statistics between ranks.
    GatherTotals,
    /// The step's losses and routing statistics over all ranks.
    Totals,
    /// Send output gradients to the experts' ranks.
    DispatchGrad { layer: usize, mb: usize },
    /// Backward of one expert over all micro-batches.
    ExpertGrad { layer: usize, expert: usize },
    /// Return input gradients and router-weight gradients to the tokens' ranks.
    CombineGrad { layer: usize, mb: usize },
    /// Backward of the gate.
    GateGrad { layer: usize, mb: usize },
    /// Backward of a layer's dense segment.
    DenseGrad { layer: usize, mb: usize },
    /// Sum dense gradients over ranks.
    ReduceDense,
    /// Collect the squared norms of all gradients over ranks.
    GatherNorms,
    /// Global gradient norm and the clipping factor.
    Norm,
    /// AdamW on the dense parameters; bias update of the gates. The boundary of a step.
    UpdateDense,
    /// The optimizer's update `number` (counted from 1) of one expert.
    Update { layer: usize, expert: usize, number: u64 },
    /// Replay the zero-gradient updates after `from` up to and with `to`, which an idle expert
    /// missed.
    CatchUp { layer: usize, expert: usize, from: u64, to: u64 },
    /// Throw a gradient away (a skipped step).
    DropGrad { layer: usize, expert: usize },
    /// Copy the dense state for the commit.
    Snapshot,
    /// Write all dirty blocks and commit.
    Commit,
    /// Run on through the layers from this one: attention, gate and those experts that are
    /// resident, until a layer lacks an expert or the head is done.
    Advance { layer: usize },
    /// A meeting point: no work.
    Join,
}

/// What a finished task made known.
#[derive(Debug, Clone, PartialEq)]
pub enum Fact {
    /// Nothing beyond being done.
    Done,
    /// Tokens that each expert of this rank received in a micro-batch, `[local experts]`.
    Tokens { layer: usize, mb: usize, counts: Vec<u32> },
    /// The same for every micro-batch of a layer at once (capacity gates).
    LayerTokens { layer: usize, counts: Vec<Vec<u32>> },
    /// Whether the step's loss is finite.
    Totals { finite: bool },
    /// Whether the global gradient norm is finite.
    Norm { finite: bool },
    /// Experts that a layer chose and that are not resident: certain to be needed now, and next at
    /// `next_use` (`u64::MAX` if that is not known).
    Missing { layer: usize, experts: Vec<usize>, next_use: u64 },
    /// Experts that a layer will likely choose, and that are not resident.
    Likely { layer: usize, experts: Vec<usize> },
    /// The pass came to its end.
    Ended,
}

/// A block that will likely, or surely, be needed at virtual time `use_at`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ahead {
    pub block: BlockId,
    pub use_at: u64,
}

/// How a node uses a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    Read,
    /// Read and changed.
    Update,
    /// Filled by the node; nothing is read.
    Create,
    /// Read for the last time; its content is not needed afterwards.
    Consume,
}

/// A block that a node needs, and when it is needed next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Need {
    pub block: BlockId,
    pub access: Use,
    pub next_use: u64,
}

/// What a planner adds in one go.
#[derive(Debug, Default)]
pub struct Plan {
    pub nodes: Vec<NodeSpec<Planned>>,
    pub ahead: Vec<Ahead>,
}

/// The payload of a planned node: its task and the blocks it needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Planned {
    pub task: Task,
    pub needs: Vec<Need>,
}

impl fmt::Display for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}
