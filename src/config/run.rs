//! `[graph]`, `[parallel]` and `[trace]`: how the work is ordered, divided and recorded.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The scheduler.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Graph {
    /// Whether lanes work at the same time.
    pub schedule: ScheduleKind,
}

/// Whether lanes work at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ScheduleKind {
    /// Reading, computing, exchanging and updating overlap.
    #[default]
    Overlapped,
    /// One node at a time over all lanes: the ablation that shows what overlap gains.
    Sequential,
}

/// How the work is divided between ranks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Parallel {
    /// Ranks (threads of this process) that the experts of each layer are divided between, each
    /// with a store of its own.
    #[schemars(range(min = 1, max = 1024))]
    pub expert: usize,
}

impl Default for Parallel {
    fn default() -> Self {
        Self { expert: 1 }
    }
}

/// The recorded timeline.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Trace {
    /// Whether `trace.json` is written.
    pub enabled: bool,
    /// Most spans that are held; older ones give way.
    #[schemars(range(min = 1))]
    pub max_events: usize,
    /// How many of the last steps the timeline shows.
    #[schemars(range(min = 1))]
    pub steps: u64,
}

impl Default for Trace {
    fn default() -> Self {
        Self { enabled: true, max_events: 200_000, steps: 8 }
    }
}
