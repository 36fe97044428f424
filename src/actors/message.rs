//! The messages that actors exchange. Each has one sender kind and one receiver kind.

use super::stage::Outcome;
use crate::base::clock::Nanos;
use crate::base::{BlockId, Error, Result};
use crate::graph::NodeId;
use crate::graph::planner::{Ahead, Fact, Need, Pass, Task};
use crate::storage::hierarchy::Outcome as BlockOutcome;
use crate::storage::lease::Lease;
use actix::Message;

/// A node for a worker thread.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Run {
    pub node: NodeId,
    pub task: Task,
    pub lease: Lease,
}

/// A worker thread finished a node: to the actor whose job it was.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Finished {
    pub node: NodeId,
    pub task: Task,
    pub result: Result<Outcome>,
    pub lease: Lease,
    /// When the worker began and ended, on the run's clock.
    pub start: Nanos,
    pub end: Nanos,
}

/// A node is done: from the actor whose job it was to the scheduler.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct NodeDone {
    pub node: NodeId,
    pub task: Task,
    pub outcome: Outcome,
    pub lease: Lease,
    pub start: Nanos,
    pub end: Nanos,
}

impl NodeDone {
    pub fn fact(&self) -> Fact {
        self.outcome.fact.clone().unwrap_or(Fact::Done)
    }
}

/// A node that still runs made something known: from its worker to the scheduler.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct News {
    pub task: Task,
    pub fact: Fact,
}

/// Moves of the shared hierarchy wait for the prefetcher.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Nudge;

/// Blocks for a node: from the scheduler to the prefetcher.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Acquire {
    pub node: NodeId,
    pub priority: u64,
    pub needs: Vec<Need>,
}

/// All blocks of a node are resident and pinned.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Granted {
    pub node: NodeId,
    pub lease: Lease,
}

/// A node's blocks are not needed any more.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Release {
    pub node: NodeId,
    pub outcomes: Vec<(BlockId, BlockOutcome)>,
    /// For changed blocks: the number of optimizer updates that they now contain.
    pub applied: u64,
    /// For changed blocks: the step that changed them.
    pub version: u64,
    /// The CRC32C of a changed block's slot, where it is known.
    pub crc: Option<(BlockId, u32)>,
}

/// Blocks that will be needed soon.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Foresee {
    pub ahead: Vec<Ahead>,
}

/// Write what is dirty and commit: from the scheduler to the prefetcher.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct CommitRun {
    pub node: NodeId,
    pub task: Task,
    /// Facts as JSON; the dense state is in its slot.
    pub meta: Vec<u8>,
    /// The name under which the commit is kept as a checkpoint.
    pub keep: Option<String>,
}

/// What the trainer asks of a rank.
#[derive(Debug, Clone, PartialEq, Eq, Message)]
#[rtype(result = "()")]
pub enum Directive {
    /// One pass over the layers.
    Pass { step: u64, pass: Pass },
    /// Bring idle experts up to date.
    CatchUp,
    /// Commit the state after the last step; optionally keep it as a named checkpoint.
    Commit { keep: Option<String> },
    /// Ask the script again: it may have an answer now.
    Wake,
    /// End the rank once everything under way is done.
    Finish,
}

/// Something failed beyond repair: to the supervisor.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Failure {
    /// Who failed, and at what.
    pub actor: &'static str,
    /// The node that failed, if it was one that the scheduler had issued.
    pub node: Option<NodeId>,
    pub task: Option<Task>,
    pub error: Error,
}
