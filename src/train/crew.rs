//! The threads of a run, counted before it starts.
//!
//! Law: a run has at most these; `tests/limits.rs` counts them. libtorch starts helpers for
//! threads that compute in parallel only, and those are the executors and, with `place = "thread"`
//! and more than one thread, the optimizers.

use super::placement::Load;
use crate::config::{Config, Place, StorageEngine};

/// sled serves its index from a pool of its own; this many at rest, and one more under way.
const INDEX: usize = 8;

/// Threads by what they do, over all ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Threads {
    /// Executors with their helpers.
    pub compute: usize,
    /// Optimizers of their own with their helpers.
    pub optimizer: usize,
    /// Threads that read and write blocks.
    pub io: usize,
    /// Arbiters, readers, commits and exchanges.
    pub actors: usize,
    pub index: usize,
    /// The trainer.
    pub main: usize,
}

impl Threads {
    pub fn of(config: &Config, load: &Load) -> Self {
        let own = config.actors.optimizer.place == Place::Thread;
        let io = match config.storage.engine {
            StorageEngine::Uring => 1,
            // Where io_uring is not permitted the pool takes its place.
            StorageEngine::Auto | StorageEngine::Pool => config.storage.io_threads.max(1),
        };
        Self {
            compute: load.threads * load.ranks,
            optimizer: if own { config.actors.optimizer.threads * load.ranks } else { 0 },
            io: io * load.ranks,
            actors: (3 + usize::from(load.ranks > 1)) * load.ranks,
            index: INDEX,
            main: 2,
        }
    }

    pub fn total(&self) -> usize {
        self.compute + self.optimizer + self.io + self.actors + self.index + self.main
    }
}

impl std::fmt::Display for Threads {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} at most: {} compute, ", self.total(), self.compute)?;
        if self.optimizer > 0 {
            write!(f, "{} optimizer, ", self.optimizer)?;
        }
        let Self { io, actors, index, main, .. } = self;
        write!(f, "{io} io, {actors} actors, {index} index, {main} trainer")
    }
}
