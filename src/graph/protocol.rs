//! The engine's protocol: what may happen to it, what it asks for, how it is set up and seen.

use super::lane::{Credits, Lane};
use super::node::{Cause, NodeId, NodeSpec};
use serde::{Deserialize, Serialize};

/// In which order ready work may run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Schedule {
    /// Everything that can run runs, up to the credits of each lane.
    #[default]
    Overlapped,
    /// One node at a time over all lanes, its blocks fetched only when it is about to run:
    /// the ablation that shows what overlap is worth.
    Sequential,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct EngineConfig {
    pub credits: Credits,
    pub schedule: Schedule,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event<K> {
    /// The planner adds nodes, at any time.
    Add(Vec<NodeSpec<K>>),
    /// All blocks of a node are resident and pinned (the answer to [`Command::Acquire`]).
    Granted(NodeId),
    /// An issued node ended well.
    Done(NodeId),
    /// A node failed while it ran, or its blocks could not be had. Nothing more is issued.
    Failed(NodeId),
    /// Nothing more is to be issued.
    Stop,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command<K> {
    /// Get the node's blocks, all or none, then say [`Event::Granted`]. [`super::Engine::kind`] and
    /// [`super::Engine::priority`] tell which and how urgently.
    Acquire(NodeId),
    /// Run the node on its lane, then say [`Event::Done`] or [`Event::Failed`].
    Issue(NodeId, K, Lane, Cause),
    /// After `Stop` or `Failed`: the last outstanding node ended. Given once. What was granted
    /// to nodes that were never issued is the caller's to release.
    Drained,
}

/// How the engine stands, as counts: its observable state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct EngineState {
    pub schedule: Schedule,
    /// Nodes added since the start.
    pub added: u64,
    /// Nodes done since the start.
    pub done: u64,
    /// Live nodes whose dependencies are not all done.
    pub waiting: usize,
    /// Nodes whose turn (sequence number, or the sequential schedule) has not come.
    pub queued: usize,
    /// Nodes whose blocks were asked for and not granted.
    pub acquiring: usize,
    /// Nodes that wait for room on their lane, by [`Lane::index`].
    pub ready: [usize; Lane::COUNT],
    /// Nodes issued and not done, by [`Lane::index`].
    pub outstanding: [u32; Lane::COUNT],
    /// The sequence number that the comm lane takes next.
    pub next_sequence: u64,
    /// Whether the engine was stopped, by `Stop` or by a failure.
    pub stopped: bool,
}
