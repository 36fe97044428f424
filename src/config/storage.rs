//! `[storage]`: where expert blocks live, how many bytes of memory they get, how they travel.

use crate::base::units::Bytes;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Where expert blocks live and how they travel.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Storage {
    /// Folder of the store.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-default" = "RUN/store"))]
    pub dir: Option<PathBuf>,
    /// Host memory for slots of expert weights, states and gradients; what does not fit is on SSD.
    #[schemars(extend("x-required" = true, "x-positive" = true))]
    pub host: Bytes,
    /// Device memory for slots of expert weights; only with `train.device = "cuda"`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-positive" = true, "x-default" = "none"))]
    pub device_memory: Option<Bytes>,
    /// What reads and writes the data files: `auto` takes io_uring where it is permitted.
    pub engine: StorageEngine,
    /// Whether the page cache is bypassed (O_DIRECT): `auto` where the file system can.
    pub direct: Toggle,
    /// Chunks in flight at once.
    #[schemars(range(min = 1, max = 4096))]
    pub depth: usize,
    /// Largest single read or write; a multiple of 4 KiB.
    #[schemars(extend("x-positive" = true))]
    pub chunk: Bytes,
    /// Whether slots are registered with io_uring: `auto` where RLIMIT_MEMLOCK permits.
    pub register: Toggle,
    /// Threads of the `pool` engine.
    #[schemars(range(min = 1, max = 256))]
    pub io_threads: usize,
    /// Which block leaves memory when another needs its slot.
    pub policy: PolicyKind,
    /// Hits from which an entry counts as used (`se-moe`).
    #[schemars(range(min = 0))]
    pub threshold: f64,
    /// What hit counts are multiplied with at each decay (`se-moe`, `lfu`, `adaptive`).
    #[schemars(range(max = 1), extend("exclusiveMinimum" = 0))]
    pub beta: f64,
    /// Accesses between two decays (`se-moe`, `lfu`).
    #[schemars(range(min = 1))]
    pub decay_every: u64,
    /// Memory of the index.
    #[schemars(extend("x-positive" = true))]
    pub index_cache: Bytes,
    /// Named checkpoints for which disk space is reserved.
    #[schemars(extend("x-default" = "1, or as many as train.keep_every makes"))]
    pub checkpoints: u32,
}

impl Default for Storage {
    fn default() -> Self {
        Self {
            dir: None,
            host: Bytes(0),
            device_memory: None,
            engine: StorageEngine::default(),
            direct: Toggle::default(),
            depth: 32,
            chunk: Bytes(1 << 20),
            register: Toggle::default(),
            io_threads: 4,
            policy: PolicyKind::default(),
            threshold: 2.0,
            beta: 0.5,
            decay_every: 64,
            index_cache: Bytes(1 << 20),
            checkpoints: 1,
        }
    }
}

/// What reads and writes the data files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum StorageEngine {
    /// `uring` where it is permitted, else `pool`, saying so.
    #[default]
    Auto,
    /// io_uring with a deep queue.
    Uring,
    /// Threads with pread and pwrite.
    Pool,
}

/// Whether something is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Toggle {
    /// Where it can be had; the start of the run says what was taken.
    #[default]
    Auto,
    /// Required: the run is refused where it cannot be had.
    On,
    /// Never.
    Off,
}

/// Which block leaves memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum PolicyKind {
    /// The one whose next use by the plan is furthest (Belady's choice for training's sweeps).
    #[default]
    Planned,
    /// Algorithm 2 of SE-MoE: the fewest hits among those at or over `threshold`.
    SeMoe,
    /// The one whose last use is longest ago.
    Lru,
    /// The one with the fewest hits, which decay.
    Lfu,
    /// As `lfu`, with the decay that would have missed least of late.
    Adaptive,
}
