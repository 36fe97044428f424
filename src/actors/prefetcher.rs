//! The prefetcher: carries out what the pure hierarchy decides. It reads blocks into slots ahead
//! of their use, writes changed ones back, grants leases, and commits.
//!
//! Law: a slot is never reused before what it holds is on SSD, and a block that was read is
//! granted only after its checksum was compared.

use super::committing::Committing;
use super::link::{Alarm, RankEvent, send};
use super::message::{Acquire, CommitRun, Failure, Foresee, Granted, NodeDone, Release};
use super::meter::Meter;
use super::scheduler::Scheduler;
use super::stage::Outcome;
use super::supervisor::Supervisor;
use crate::base::clock::{Clock, RealClock};
use crate::base::{BlockId, Error, Part, Result};
use crate::graph::planner::Use;
use crate::observable;
use crate::storage::arena::{Arena, SlotBytes};
use crate::storage::disk::{IoBuf, IoDone, IoOp, IoRequest, IoService};
use crate::storage::hierarchy::{Access, Event, Hierarchy, Move, SlotId, Want};
use crate::storage::lease::Lease;
use crate::storage::store::{Located, Store};
use actix::{Actor, Addr, Context, Handler, Message};
use serde::Serialize;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Where dense snapshots are written from: the dense state is one block.
pub const DENSE: BlockId = BlockId { layer: 0, expert: 0, part: Part::Dense };

/// The io thread finished a request.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct IoFinished(pub IoDone);

/// The commit thread finished.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct CommitFinished {
    pub commit: Committing,
    pub result: Result<()>,
}

/// Makes a commit durable on a thread of its own, and answers with [`CommitFinished`].
pub type CommitThread = crossbeam_channel::Sender<Committing>;

#[derive(Debug)]
struct Transfer {
    block: BlockId,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Load(Located),
    Write { version: u64, applied: u64 },
    Dense { version: u64 },
}

/// What a changed block contains.
#[derive(Debug, Clone, Copy)]
struct Content {
    version: u64,
    applied: u64,
}

/// Where the accesses of a run's first steps go, for `semoe cache replay`.
#[derive(Debug, Clone)]
pub struct AccessTrace {
    pub path: PathBuf,
    /// The last step that is recorded.
    pub until: u64,
}

/// What the prefetcher is made of.
pub struct Parts {
    pub io: IoService, // Dropped first: it answers what is under way, in slots still mapped.
    pub hierarchy: Hierarchy,
    pub arena: Arc<Arena>,
    pub store: Arc<Store>,
    /// Buffer for dense snapshots, aligned and as large as the dense block's slot.
    pub dense_buffer: SlotBytes,
    pub commits: CommitThread,
    pub meter: Arc<Meter>,
    pub scheduler: Addr<Scheduler>,
    pub supervisor: Addr<Supervisor>,
    pub alarm: Alarm,
    pub clock: RealClock,
    pub spans: super::spans::Spans,
    pub accesses: Option<AccessTrace>,
}

/// See the module.
pub struct Prefetcher {
    parts: Parts,
    transfers: HashMap<u64, Transfer>,
    next_tag: u64,
    /// What blocks contain that changed since they were read.
    changed: HashMap<BlockId, Content>,
    writable: HashMap<u64, Vec<BlockId>>,
    flushes: u64,
    committing: Vec<Committing>,
    moves: Vec<Move>,
}

impl Prefetcher {
    pub fn new(mut parts: Parts) -> Self {
        if parts.accesses.is_some() {
            parts.hierarchy.record();
        }
        Self {
            parts,
            transfers: HashMap::new(),
            next_tag: 0,
            changed: HashMap::new(),
            writable: HashMap::new(),
            flushes: 0,
            committing: Vec::new(),
            moves: Vec::new(),
        }
    }

    fn state(&self) -> impl Serialize + use<> {
        serde_json::json!({
            "hierarchy": self.parts.hierarchy.snapshot(),
            "transfers": self.transfers.len(),
            "commits": self.committing.len(),
        })
    }

    fn fail(&self, node: Option<u64>, error: Error) {
        let failure = Failure { actor: "prefetcher", node, task: None, error };
        send(&self.parts.supervisor, failure, &self.parts.alarm);
    }

    fn feed(&mut self, event: Event) {
        let mut moves = std::mem::take(&mut self.moves);
        match self.parts.hierarchy.on(event, &mut moves) {
            Ok(()) => {
                for step in moves.drain(..) {
                    if let Err(error) = self.carry_out(step) {
                        self.fail(None, error);
                    }
                }
            }
            Err(error) => self.fail(None, error),
        }
        self.moves = moves;
        let stats = self.parts.hierarchy.stats().total();
        self.parts.meter.hits.store(stats.hits, Ordering::Relaxed);
        self.parts.meter.misses.store(stats.misses, Ordering::Relaxed);
    }

    fn carry_out(&mut self, step: Move) -> Result<()> {
        match step {
            Move::Load { block, slot, urgent } => self.load(block, slot, urgent),
            Move::Promote { block } => self.promote(block),
            Move::Write { block, slot, urgent, .. } => self.write(block, slot, urgent),
            Move::Drop { block } => self.parts.store.drop_scratch(block),
            Move::Grant { ticket, slots } => self.grant(ticket, slots),
            Move::Fail { block, cause, tickets } => {
                let error = Error::bug("a block could not be had")
                    .with("block", block)
                    .with("cause", format!("{cause:?}"));
                self.fail(tickets.first().copied(), error);
                Ok(())
            }
            Move::Flushed { flush } => {
                for commit in &mut self.committing {
                    commit.flushed |= commit.flush == flush;
                }
                self.commit_if_ready();
                Ok(())
            }
            Move::FlushFailed { block, .. } => {
                self.fail(
                    None,
                    Error::bug("a commit could not write a block").with("block", block),
                );
                Ok(())
            }
        }
    }

    fn save_accesses(&mut self) {
        let Some(accesses) = self.parts.accesses.take() else { return };
        let trace = self.parts.hierarchy.take_trace();
        if let Err(e) = std::fs::write(&accesses.path, trace) {
            let path = accesses.path.display();
            self.fail(None, Error::io(format!("writing the access trace {path}"), e));
        }
    }

    fn tag(&mut self, transfer: Transfer) -> u64 {
        self.next_tag += 1;
        self.transfers.insert(self.next_tag, transfer);
        self.next_tag
    }

    fn load(&mut self, block: BlockId, slot: SlotId, urgent: bool) -> Result<()> {
        let located = self.parts.store.locate(block)?.ok_or_else(|| {
            Error::corrupt("the store has no such block; check it with `semoe store check`")
                .with("block", block)
        })?;
        let extent = located.extent;
        let buf = self.buffer(slot)?;
        let tag = self.tag(Transfer { block, kind: Kind::Load(located) });
        let urgency = u64::from(!urgent);
        self.parts.io.submit(IoRequest { tag, op: IoOp::Read, extent, buf, urgency })
    }

    fn promote(&mut self, block: BlockId) -> Result<()> {
        let tag = self.transfers.iter().find_map(|(tag, transfer)| {
            (transfer.block == block && matches!(transfer.kind, Kind::Load(_))).then_some(*tag)
        });
        match tag {
            Some(tag) => self.parts.io.promote(tag),
            None => Ok(()),
        }
    }

    fn write(&mut self, block: BlockId, slot: SlotId, urgent: bool) -> Result<()> {
        let content = self.changed.get(&block).copied().ok_or_else(|| {
            Error::bug("a block is written back that nobody changed").with("block", block)
        })?;
        let Content { version, applied } = content;
        let extent = self.parts.store.place(block, version)?;
        let buf = self.buffer(slot)?;
        let tag = self.tag(Transfer { block, kind: Kind::Write { version, applied } });
        let urgency = u64::from(!urgent);
        self.parts.io.submit(IoRequest { tag, op: IoOp::Write, extent, buf, urgency })
    }

    fn buffer(&self, slot: SlotId) -> Result<IoBuf> {
        let bytes = self.parts.arena.slot(slot)?;
        // SAFETY: the slot stays mapped as long as the arena, which this actor keeps, and the
        // hierarchy hands it to nobody else while the transfer is under way.
        Ok(unsafe { IoBuf::new(bytes.ptr, bytes.len) })
    }

    fn grant(&mut self, ticket: u64, slots: Vec<(BlockId, SlotId)>) -> Result<()> {
        let writable = self.writable.remove(&ticket).unwrap_or_default();
        let slots = slots
            .into_iter()
            .map(|(block, slot)| {
                Ok((block, self.parts.arena.slot(slot)?, writable.contains(&block)))
            })
            .collect::<Result<Vec<_>>>()?;
        let lease = Lease::new(slots, Arc::clone(&self.parts.arena));
        send(&self.parts.scheduler, Granted { node: ticket, lease }, &self.parts.alarm);
        Ok(())
    }

    fn finish_io(&mut self, done: IoDone) -> Result<()> {
        let Some(transfer) = self.transfers.remove(&done.tag) else {
            return Err(Error::bug("the io thread finished a request that nobody made"));
        };
        let block = transfer.block;
        let meter = &self.parts.meter;
        let counter = match done.op {
            IoOp::Read => &meter.bytes_read,
            IoOp::Write => &meter.bytes_written,
        };
        counter.fetch_add(done.bytes, Ordering::Relaxed);
        if done.op == IoOp::Read && block.part == Part::Weights {
            meter.weight_bytes_read.fetch_add(done.bytes, Ordering::Relaxed);
        }
        meter.disk_busy.store(self.parts.io.counters().busy_nanos, Ordering::Relaxed);
        self.parts.spans.io(block, &done);
        let result = match (done.result, transfer.kind) {
            (Ok(crc), Kind::Load(located)) => self.parts.store.verify_crc(block, &located, crc),
            (Ok(crc), Kind::Write { version, applied }) => {
                self.parts.store.written(block, version, crc, applied)
            }
            (Ok(crc), Kind::Dense { version }) => {
                self.parts.store.written(block, version, crc, version)?;
                for commit in &mut self.committing {
                    commit.dense_written |= commit.step() == version;
                }
                self.commit_if_ready();
                return Ok(());
            }
            (Err(error), _) => Err(error),
        };
        let event = match &result {
            Ok(()) if done.op == IoOp::Read => Event::Loaded { block },
            Ok(()) => Event::Written { block },
            Err(_) => Event::Failed { block },
        };
        // The cause is reported before the tickets that fail of it.
        if let Err(error) = result {
            self.fail(None, error);
        }
        self.feed(event);
        Ok(())
    }

    /// Starts the flush of a commit and the write of its dense state.
    fn begin_commit(&mut self, run: CommitRun) -> Result<()> {
        self.flushes += 1;
        let step = run.task.step;
        let dense = &run.snapshot.dense;
        let buffer = self.parts.dense_buffer;
        if dense.len() > buffer.len {
            return Err(Error::bug("the dense state does not fit its slot"));
        }
        // SAFETY: one commit at a time uses the buffer: the next snapshot depends on this commit.
        let bytes = unsafe { buffer.as_mut_slice() };
        bytes[..dense.len()].copy_from_slice(dense);
        bytes[dense.len()..].fill(0);
        let extent = self.parts.store.place(DENSE, step)?;
        // SAFETY: the buffer lives as long as this actor and is not touched until the write ends.
        let buf = unsafe { IoBuf::new(buffer.ptr, buffer.len) };
        let tag = self.tag(Transfer { block: DENSE, kind: Kind::Dense { version: step } });
        self.parts.io.submit(IoRequest { tag, op: IoOp::Write, extent, buf, urgency: 0 })?;
        let started = self.parts.clock.now();
        let flush = self.flushes;
        let commit = Committing { run, flush, flushed: false, dense_written: false, started };
        self.committing.push(commit);
        self.feed(Event::Flush);
        Ok(())
    }

    fn commit_if_ready(&mut self) {
        let ready = |commit: &Committing| commit.flushed && commit.dense_written;
        while let Some(at) = self.committing.iter().position(ready) {
            let commit = self.committing.remove(at);
            if self.parts.commits.send(commit).is_err() {
                self.fail(None, Error::bug("the commit thread has gone"));
            }
        }
    }
}

impl Actor for Prefetcher {
    type Context = Context<Self>;

    fn stopped(&mut self, _: &mut Self::Context) {
        self.save_accesses();
    }
}

impl Handler<Acquire> for Prefetcher {
    type Result = ();

    fn handle(&mut self, acquire: Acquire, _: &mut Self::Context) {
        let Acquire { node, priority, needs } = acquire;
        let mut writable = Vec::new();
        let wants = needs
            .into_iter()
            .map(|need| {
                let access = match need.access {
                    Use::Read | Use::Consume => Access::Read,
                    Use::Update => Access::Update,
                    Use::Create => Access::Create,
                };
                if access.is_exclusive() {
                    writable.push(need.block);
                }
                Want { block: need.block, access, next_use: need.next_use }
            })
            .collect();
        self.writable.insert(node, writable);
        self.feed(Event::Acquire { ticket: node, priority, wants });
    }
}

impl Handler<Release> for Prefetcher {
    type Result = ();

    fn handle(&mut self, release: Release, _: &mut Self::Context) {
        use crate::storage::hierarchy::Outcome::{Clean, Dirty, Discard};
        let Release { node, outcomes, applied, version } = release;
        if self.parts.accesses.as_ref().is_some_and(|accesses| version > accesses.until) {
            self.save_accesses();
        }
        for (block, outcome) in &outcomes {
            match outcome {
                Dirty => {
                    self.changed.insert(*block, Content { version, applied });
                }
                Discard => {
                    self.changed.remove(block);
                }
                Clean => {}
            }
        }
        self.feed(Event::Release { ticket: node, outcomes });
    }
}

impl Handler<Foresee> for Prefetcher {
    type Result = ();

    fn handle(&mut self, foresee: Foresee, _: &mut Self::Context) {
        for ahead in foresee.ahead {
            self.feed(Event::Prefetch { block: ahead.block, use_at: ahead.use_at });
        }
    }
}

impl Handler<IoFinished> for Prefetcher {
    type Result = ();

    fn handle(&mut self, IoFinished(done): IoFinished, _: &mut Self::Context) {
        if let Err(error) = self.finish_io(done) {
            self.fail(None, error);
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

observable!(Prefetcher, "prefetcher");
