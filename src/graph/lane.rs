//! Lanes: what runs nodes, each with a concurrency (credits) of its own.

use serde::{Deserialize, Serialize};
use std::fmt;

/// What runs a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum Lane {
    /// The executor: the one thread of a device that enters libtorch's parallel regions.
    Compute = 0,
    /// Block reads and writes.
    Io = 1,
    /// Copies between host and device.
    Copy = 2,
    /// Collectives between ranks, issued in sequence order.
    Comm = 3,
    /// Optimizer updates.
    Optim = 4,
    /// Decisions and bookkeeping: planner, commit, snapshots.
    Control = 5,
}

impl Lane {
    pub const ALL: [Self; 6] =
        [Self::Compute, Self::Io, Self::Copy, Self::Comm, Self::Optim, Self::Control];
    pub const COUNT: usize = Self::ALL.len();

    /// Position in [`Lane::ALL`], for arrays with one entry a lane.
    pub const fn index(self) -> usize {
        self as usize
    }

    pub const fn name(self) -> &'static str {
        match self {
            Self::Compute => "compute",
            Self::Io => "io",
            Self::Copy => "copy",
            Self::Comm => "comm",
            Self::Optim => "optim",
            Self::Control => "control",
        }
    }
}

impl fmt::Display for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// How many nodes each lane may have outstanding (issued and not done). Mailboxes are sized
/// from these, so a full mailbox is a bug and not a wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credits([u32; Lane::COUNT]);

impl Credits {
    /// The same credits for every lane.
    pub const fn uniform(credits: u32) -> Self {
        Self([credits; Lane::COUNT])
    }

    /// These credits, with another figure for one lane.
    #[must_use]
    pub const fn with(mut self, lane: Lane, credits: u32) -> Self {
        self.0[lane.index()] = credits;
        self
    }

    pub const fn of(&self, lane: Lane) -> u32 {
        self.0[lane.index()]
    }

    /// The most nodes that can be outstanding over all lanes.
    pub fn total(&self) -> u32 {
        self.0.iter().fold(0, |sum, credits| sum.saturating_add(*credits))
    }
}

impl Default for Credits {
    /// Two nodes on the executor (one runs, one waits so that it never runs dry), one optimizer
    /// update ahead of the running one, deep queues where latency has to be hidden.
    fn default() -> Self {
        Self::uniform(8).with(Lane::Compute, 2).with(Lane::Optim, 2).with(Lane::Comm, 4)
    }
}
