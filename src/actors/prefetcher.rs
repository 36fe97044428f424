//! The prefetcher: carries out what the pure hierarchy decides. It reads blocks into slots ahead
//! of their use, writes changed ones back, grants leases, and commits.
//!
//! Law: a slot is never reused before what it holds is on SSD. A block that was read is granted only
//! after its checksum was compared; a state block may be granted before, to the update that uses it
//! up and compares it then. A difference ends the run before anything that came of it is committed.

use super::backing::{Backing, Ending, Reads};
use super::cache::Cache;
use super::committing::{CommitThread, Committing, DenseSlot};
use super::contents::{Content, Contents};
use super::link::{Alarm, send};
use super::message::{Acquire, Failure, Foresee, Granted, Nudge, Release};
use super::meter::Meter;
use super::scheduler::Scheduler;
use super::supervisor::Supervisor;
use crate::base::clock::RealClock;
use crate::base::{BlockId, Error, Part, Result};
use crate::graph::planner::Use;
use crate::observable;
use crate::storage::disk::{Extent, IoBuf, IoDone, IoOp, IoRequest, IoService};
use crate::storage::hierarchy::{Access, Event, Hierarchy, Move, SlotId, Want};
use crate::storage::lease::{Lease, Pinned};
use crate::storage::store::Located;
use actix::{Actor, Addr, Context, Handler, Message};
use serde::Serialize;
use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Where dense snapshots are written from: the dense state is one block.
pub const DENSE: BlockId = BlockId { layer: 0, expert: 0, part: Part::Dense };

/// The io thread finished a request.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct IoFinished(pub IoDone);

#[derive(Debug)]
pub(super) struct Transfer {
    pub block: BlockId,
    pub kind: Kind,
}

#[derive(Debug)]
pub(super) enum Kind {
    Load {
        located: Located,
        /// Whether the io thread computes the checksum; else whoever leases the block does.
        check: bool,
    },
    /// One of the reads that bring a block of somebody else's file.
    Fetch,
    Write {
        version: u64,
        applied: u64,
        /// Of the bytes that are written, where it is known beforehand.
        crc: Option<u32>,
    },
    Dense {
        version: u64,
    },
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
    // Dropped first: it answers what is under way, in slots that must still be mapped.
    pub io: IoService,
    pub cache: Arc<Cache>,
    pub backing: Backing,
    /// For ranks that commit: a buffer for dense snapshots, aligned and as large as the dense
    /// block's slot, and the thread that makes commits durable.
    pub commits: Option<(DenseSlot, CommitThread)>,
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
    pub(super) parts: Parts,
    pub(super) transfers: HashMap<u64, Transfer>,
    pub(super) reads: Reads,
    /// Guesses that were wrong and are still being read.
    pub(super) in_vain: HashSet<BlockId>,
    next_tag: u64,
    contents: Contents,
    writable: HashMap<u64, Vec<BlockId>>,
    pub(super) flushes: u64,
    pub(super) committing: Vec<Committing>,
    moves: Vec<Move>,
}

impl Prefetcher {
    pub fn new(parts: Parts) -> Self {
        if parts.accesses.is_some() {
            parts.cache.with(Hierarchy::record);
        }
        Self {
            parts,
            transfers: HashMap::new(),
            reads: Reads::default(),
            in_vain: HashSet::new(),
            next_tag: 0,
            contents: Contents::default(),
            writable: HashMap::new(),
            flushes: 0,
            committing: Vec::new(),
            moves: Vec::new(),
        }
    }

    fn state(&self) -> impl Serialize + use<> {
        serde_json::json!({
            "hierarchy": self.parts.cache.with(|hierarchy| hierarchy.snapshot()),
            "transfers": self.transfers.len(),
            "commits": self.committing.len(),
        })
    }

    pub(super) fn fail(&self, node: Option<u64>, error: Error) {
        let failure = Failure { actor: "prefetcher", node, task: None, error };
        send(&self.parts.supervisor, failure, &self.parts.alarm);
    }

    pub(super) fn feed(&mut self, event: Event) {
        if let Err(error) = self.parts.cache.feed(event) {
            self.fail(None, error);
        }
        self.carry_out_all();
    }

    /// Carries out the moves that were decided, by whomever they were caused.
    fn carry_out_all(&mut self) {
        let mut moves = std::mem::take(&mut self.moves);
        self.parts.cache.take_moves(&mut moves);
        for step in moves.drain(..) {
            if let Err(error) = self.carry_out(step) {
                self.fail(None, error);
            }
        }
        self.moves = moves;
    }

    fn carry_out(&mut self, step: Move) -> Result<()> {
        match step {
            Move::Load { block, slot, haste } => self.load(block, slot, haste),
            Move::GiveUp { block } => self.give_up(block),
            Move::Promote { block } => self.promote(block),
            Move::Write { block, slot, urgent, .. } => self.write(block, slot, urgent),
            Move::Drop { block } => self.parts.backing.store()?.drop_scratch(block),
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
        let trace = self.parts.cache.with(Hierarchy::end_trace);
        if let Err(e) = std::fs::write(&accesses.path, trace) {
            let path = accesses.path.display();
            self.fail(None, Error::io(format!("writing the access trace {path}"), e));
        }
    }

    pub(super) fn tag(&mut self, transfer: Transfer) -> u64 {
        self.next_tag += 1;
        self.transfers.insert(self.next_tag, transfer);
        self.next_tag
    }

    fn write(&mut self, block: BlockId, slot: SlotId, urgent: bool) -> Result<()> {
        let Content { version, applied, crc } = self.contents.changed(block)?;
        let extent = self.parts.backing.store()?.place(block, version)?;
        let buf = self.buffer(slot)?;
        // No lease changes a block while it is written, so these are the bytes that it is of.
        let crc = crc.filter(|_| fills(&extent, &buf));
        let tag = self.tag(Transfer { block, kind: Kind::Write { version, applied, crc } });
        let (op, urgency, check) = (IoOp::Write, u64::from(!urgent), crc.is_none());
        self.parts.io.submit(IoRequest { tag, op, extent, buf, urgency, check, lift: None })
    }

    pub(super) fn buffer(&self, slot: SlotId) -> Result<IoBuf> {
        let bytes = self.parts.cache.arena().slot(slot)?;
        // SAFETY: the slot stays mapped as long as the arena, which this actor keeps, and the
        // hierarchy hands it to nobody else while the transfer is under way.
        Ok(unsafe { IoBuf::new(bytes.ptr, bytes.len) })
    }

    fn grant(&mut self, ticket: u64, slots: Vec<(BlockId, SlotId)>) -> Result<()> {
        let writable = self.writable.remove(&ticket).unwrap_or_default();
        let slots = slots
            .into_iter()
            .map(|(block, slot)| {
                let bytes = self.parts.cache.arena().slot(slot)?;
                let writable = writable.contains(&block);
                let expected = self.contents.expected(block);
                Ok(Pinned { block, bytes, writable, expected })
            })
            .collect::<Result<Vec<_>>>()?;
        let lease = Lease::new(slots, Arc::clone(self.parts.cache.arena()));
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
        meter.bytes_ahead.fetch_add(done.idle, Ordering::Relaxed);
        meter.disk_busy.store(self.parts.io.counters().busy_nanos, Ordering::Relaxed);
        self.parts.spans.io(block, &done);
        let is_fetch = matches!(transfer.kind, Kind::Fetch);
        let result = match (done.result, transfer.kind) {
            (Ok(_), Kind::Fetch) => Ok(()),
            (Ok(_), Kind::Load { .. }) if done.given_up => Ok(()),
            (Ok(crc), Kind::Load { located, check }) => {
                let store = self.parts.backing.store()?;
                self.contents.read(block, (!check).then(|| store.expected(block, &located)));
                if check { store.verify_crc(block, &located, crc) } else { Ok(()) }
            }
            (Ok(moved), Kind::Write { version, applied, crc }) => {
                let crc = crc.unwrap_or(moved);
                self.parts.backing.store()?.written(block, version, crc, applied)
            }
            (Ok(crc), Kind::Dense { version }) => {
                self.parts.backing.store()?.written(block, version, crc, version)?;
                for commit in &mut self.committing {
                    commit.dense_written |= commit.step() == version;
                }
                self.commit_if_ready();
                return Ok(());
            }
            (Err(error), _) => Err(error),
        };
        let ending = match &result {
            Ok(()) if done.given_up => Ending::GivenUp,
            Ok(()) => Ending::Well,
            Err(_) => Ending::Failed,
        };
        let ended = match is_fetch {
            true => self.reads.ended(block, ending, done.bytes),
            false => Some((ending, done.bytes)),
        };
        if let Some((_, bytes)) = ended
            && self.in_vain.remove(&block)
        {
            self.parts.meter.bytes_in_vain.fetch_add(bytes, Ordering::Relaxed);
        }
        let event = ended.map(|(ending, _)| match ending {
            Ending::Well if done.op == IoOp::Read => Event::Loaded { block },
            Ending::Well => Event::Written { block },
            Ending::GivenUp => Event::GivenUp { block },
            Ending::Failed => Event::Failed { block },
        });
        // The cause is reported before the tickets that fail of it.
        if let Err(error) = result {
            self.fail(None, error.with("block", block));
        }
        if let Some(event) = event {
            self.feed(event);
        }
        Ok(())
    }
}

/// Whether a transfer moves all bytes of its slot: so its checksum is that of the slot.
pub(super) fn fills(extent: &Extent, slot: &IoBuf) -> bool {
    extent.len == slot.len() as u64
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
        if self.parts.accesses.as_ref().is_some_and(|accesses| release.version > accesses.until) {
            self.save_accesses();
        }
        self.contents.released(&release);
        let Release { node, outcomes, .. } = release;
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

impl Handler<Nudge> for Prefetcher {
    type Result = ();

    fn handle(&mut self, _: Nudge, _: &mut Self::Context) {
        self.carry_out_all();
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

observable!(Prefetcher, "prefetcher");
