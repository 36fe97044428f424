//! Commits: the prefetcher flushes what is dirty and writes the dense state; a thread of its own
//! makes that durable.

use super::link::{RankEvent, send};
use super::message::{CommitRun, NodeDone};
use super::prefetcher::{DENSE, Kind, Prefetcher, Transfer};
use super::stage::Outcome;
use crate::base::clock::Clock;
use crate::base::{Error, Result};
use crate::storage::arena::SlotBytes;
use crate::storage::disk::{IoBuf, IoOp, IoRequest};
use crate::storage::hierarchy::Event;
use crate::storage::lease::Lease;
use actix::{Handler, Message};

/// The commit thread finished.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct CommitFinished {
    pub commit: Committing,
    pub result: Result<()>,
}

/// Makes a commit durable on a thread of its own, and answers with [`CommitFinished`].
pub type CommitThread = crossbeam_channel::Sender<Committing>;

/// The slot of the dense state: the executor fills it at a snapshot, the commit after it writes it
/// to disk, and the next snapshot waits for that commit.
#[derive(Debug, Clone, Copy)]
pub struct DenseSlot(pub SlotBytes);

impl DenseSlot {
    /// Fills the slot: `write` gets its first `len` bytes, the rest becomes zero. For a snapshot.
    ///
    /// # Errors
    /// Those of `write`, and a bug where the slot is too small.
    pub fn fill(self, len: usize, write: impl FnOnce(&mut [u8]) -> Result<()>) -> Result<()> {
        // SAFETY: the planner orders snapshots and commits one after the other, and nobody else
        // uses this slot.
        let bytes = unsafe { self.0.as_mut_slice() };
        let Some((state, rest)) = bytes.split_at_mut_checked(len) else {
            return Err(Error::bug("the dense state does not fit its slot"));
        };
        rest.fill(0);
        write(state)
    }
}

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
        &self.run.meta
    }

    pub fn keep(&self) -> Option<&str> {
        self.run.keep.as_deref()
    }
}

impl Prefetcher {
    /// Starts the flush of a commit and the write of its dense state.
    fn begin_commit(&mut self, run: CommitRun) -> Result<()> {
        self.flushes += 1;
        let step = run.task.step;
        let Some((DenseSlot(slot), _)) = self.parts.commits else {
            return Err(Error::bug("a commit was asked of a rank that has none"));
        };
        let extent = self.parts.backing.store()?.place(DENSE, step)?;
        // SAFETY: the slot lives as long as this actor, and the next snapshot waits for this commit.
        let buf = unsafe { IoBuf::new(slot.ptr, slot.len) };
        let tag = self.tag(Transfer { block: DENSE, kind: Kind::Dense { version: step } });
        self.parts.io.submit(IoRequest {
            tag,
            op: IoOp::Write,
            extent,
            buf,
            urgency: 0,
            check: true,
            lift: None,
        })?;
        let started = self.parts.clock.now();
        let flush = self.flushes;
        let commit = Committing { run, flush, flushed: false, dense_written: false, started };
        self.committing.push(commit);
        self.feed(Event::Flush);
        Ok(())
    }

    pub(super) fn commit_if_ready(&mut self) {
        let ready = |commit: &Committing| commit.flushed && commit.dense_written;
        while let Some(at) = self.committing.iter().position(ready) {
            let commit = self.committing.remove(at);
            let thread = self.parts.commits.as_ref().map(|(_, thread)| thread);
            if thread.is_none_or(|thread| thread.send(commit).is_err()) {
                self.fail(None, Error::bug("the commit thread has gone"));
            }
        }
    }
}

impl Handler<CommitRun> for Prefetcher {
    type Result = ();

    fn handle(&mut self, run: CommitRun, _: &mut Self::Context) {
        if let Err(error) = self.begin_commit(run) {
            self.fail(None, error);
        }
    }
}

impl Handler<CommitFinished> for Prefetcher {
    type Result = ();

    fn handle(&mut self, finished: CommitFinished, _: &mut Self::Context) {
        let CommitFinished { commit, result } = finished;
        let CommitRun { node, task, .. } = commit.run;
        match result {
            Ok(()) => {
                let end = self.parts.clock.now();
                let seconds = end.saturating_sub(commit.started) as f64 * 1e-9;
                self.parts.alarm.tell(RankEvent::Committed { step: task.step, seconds });
                let done = NodeDone {
                    node,
                    task,
                    outcome: Outcome::default(),
                    lease: Lease::default(),
                    start: commit.started,
                    end,
                };
                send(&self.parts.scheduler, done, &self.parts.alarm);
            }
            Err(error) => self.fail(Some(node), error),
        }
    }
}
