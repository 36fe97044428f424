//! Commits: the prefetcher flushes what is dirty and writes the dense state; a thread of its own
//! makes that durable.

use super::link::{RankEvent, send};
use super::message::{CommitRun, NodeDone};
use super::prefetcher::{DENSE, Kind, Prefetcher, Transfer};
use super::stage::Outcome;
use crate::base::clock::Clock;
use crate::base::{Error, Result};
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

impl Prefetcher {
    /// Starts the flush of a commit and the write of its dense state.
    fn begin_commit(&mut self, run: CommitRun) -> Result<()> {
        self.flushes += 1;
        let step = run.task.step;
        let dense = &run.snapshot.dense;
        let Some((buffer, _)) = self.parts.commits else {
            return Err(Error::bug("a commit was asked of a rank that has none"));
        };
        if dense.len() > buffer.len {
            return Err(Error::bug("the dense state does not fit its slot"));
        }
        // SAFETY: one commit at a time uses the buffer: the next snapshot depends on this commit.
        let bytes = unsafe { buffer.as_mut_slice() };
        bytes[..dense.len()].copy_from_slice(dense);
        bytes[dense.len()..].fill(0);
        let extent = self.parts.backing.store()?.place(DENSE, step)?;
        // SAFETY: the buffer lives as long as this actor and is not touched until the write ends.
        let buf = unsafe { IoBuf::new(buffer.ptr, buffer.len) };
        let tag = self.tag(Transfer { block: DENSE, kind: Kind::Dense { version: step } });
        self.parts.io.submit(IoRequest {
            tag,
            op: IoOp::Write,
            extent,
            buf,
            urgency: 0,
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
