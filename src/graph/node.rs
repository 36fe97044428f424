//! Nodes: units of work, and the record of what made one runnable.

use super::lane::Lane;
use crate::base::clock::Nanos;
use serde::Serialize;

/// A node's name. Ids are dense and increasing in the order in which nodes are added, so that
/// whether a node is done can be told for ever without remembering it.
pub type NodeId = u64;

/// A node as the planner describes it. `K` is the work itself, opaque to the engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeSpec<K> {
    /// The engine's next id: [`super::Engine::next_id`] and those that follow.
    pub id: NodeId,
    pub kind: K,
    pub lane: Lane,
    /// Older nodes that must be done first. Ones that finished long ago count as done.
    pub deps: Vec<NodeId>,
    /// Whether the node needs blocks: it is issued only after `Granted`.
    pub acquire: bool,
    /// Lower runs first among the ready nodes of a lane; ties go to the older node.
    pub priority: u64,
    /// The place among all collectives of the run: 0, 1, 2, … with no gap, the same on every
    /// rank. Required on the comm lane, and only there.
    pub sequence: Option<u64>,
}

impl<K> NodeSpec<K> {
    /// A node without dependencies, of the most urgent priority (0), which acquires nothing.
    pub fn new(id: NodeId, kind: K, lane: Lane) -> Self {
        Self { id, kind, lane, deps: Vec::new(), acquire: false, priority: 0, sequence: None }
    }

    /// Adds dependencies.
    #[must_use]
    pub fn after(mut self, deps: impl IntoIterator<Item = NodeId>) -> Self {
        self.deps.extend(deps);
        self
    }

    /// The node needs blocks before it is issued.
    #[must_use]
    pub fn acquires(mut self) -> Self {
        self.acquire = true;
        self
    }

    #[must_use]
    pub fn priority(mut self, priority: u64) -> Self {
        self.priority = priority;
        self
    }

    #[must_use]
    pub fn sequence(mut self, sequence: u64) -> Self {
        self.sequence = Some(sequence);
        self
    }
}

/// How a node became runnable, as times of the caller's clock:
/// `by_ended ≤ enabled ≤ acquired ≤ granted ≤ issued`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Cause {
    /// The node whose end enabled this one: its last dependency; or, when it was added with
    /// everything done, the node that finished last before (whose result made the planner add
    /// it); in the sequential schedule, the node that ran before. None at the start of a run.
    pub by: Option<(NodeId, Lane)>,
    /// When that node ended; zero at the start of a run. Earlier than `enabled` when the planner
    /// took its time to add this one.
    pub by_ended: Nanos,
    /// When the last dependency was done (or the node was added, if later).
    pub enabled: Nanos,
    /// When its blocks were asked for. Later than `enabled` only for a node of the comm lane
    /// that waited for its turn.
    pub acquired: Nanos,
    /// When its blocks were all resident and pinned; `acquired` if it needs none.
    pub granted: Nanos,
    /// When its lane had room and it was handed over.
    pub issued: Nanos,
}

impl Cause {
    pub(super) fn new() -> Self {
        Self { by: None, by_ended: 0, enabled: 0, acquired: 0, granted: 0, issued: 0 }
    }

    /// The lane that this node waited for last: io if blocks came after everything else was
    /// there, else the lane of the node that enabled it, else control (the planner).
    pub fn lane(&self) -> Lane {
        if self.granted > self.acquired {
            return Lane::Io;
        }
        self.by.map_or(Lane::Control, |(_, lane)| lane)
    }
}
