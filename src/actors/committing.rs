//! A commit between its flush and its durability.

use super::message::CommitRun;

/// A commit on its way.
#[derive(Debug)]
pub struct Committing {
    pub(super) run: CommitRun,
    pub(super) flush: u64,
    pub(super) flushed: bool,
    pub(super) dense_written: bool,
    pub(super) started: u64,
}

impl Committing {
    pub fn step(&self) -> u64 {
        self.run.task.step
    }

    pub fn meta(&self) -> &[u8] {
        &self.run.snapshot.meta
    }

    pub fn keep(&self) -> Option<&str> {
        self.run.keep.as_deref()
    }
}
