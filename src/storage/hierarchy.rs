//! Which blocks are in memory, and what moves between memory and disk. Pure: no threads, no disk.
//!
//! ```text
//! acquire, release, prefetch, flush ─▶ ┌───────────┐ ─▶ grant, fail, flushed
//!                                      │ Hierarchy │
//!           loaded, written, failed ─▶ └───────────┘ ─▶ load, promote, give up, write, drop
//! ```
//!
//! The laws it keeps: a block is granted only when it is resident, and slots are all there ever is
//! (law 1); a dirty slot serves another block only after its bytes were written (law 2); every
//! ticket is served in the end, whatever the interleaving, if each fits alone (law 8).
//!
//! How a ticket passes:
//!
//! 1. *Queued*: it wants slots. Tickets take slots in order of (priority, ticket), and loads start
//!    as slots are had. What was brought in for a queued ticket is not pinned, but leaves only for
//!    an older ticket: so no ticket holds anything that an older one lacks, which would be a
//!    deadlock. A younger ticket passes an older one only where that one is not short of slots.
//! 2. *Reserved*: it has all its slots, pinned, and waits for loads, writes and other leases, each
//!    of which ends by itself.
//! 3. *Granted*: until its release.

mod admit;
mod class;
mod flusher;
mod guess;
mod lease;
mod message;
mod minimum;
mod reserve;
mod resident;
mod stats;
mod table;
mod transfer;

pub use message::{Access, Cause, Event, Haste, Move, Outcome, SlotClass, SlotId, Want};
pub use minimum::Minimum;
pub use stats::{ClassSnapshot, PartStats, Snapshot, Stats};
pub use table::BlockMap;

use crate::base::{BlockId, Error, Part, Result};
use crate::storage::policy::{Policy, PolicyConfig};
use crate::storage::replay::Recorder;
use class::Class;
use flusher::Flusher;
use std::collections::BTreeMap;
use table::{Content, Key, Standing, Table, TicketMap};

const PARTS: usize = Part::ALL.len();
/// Writes in flight for flushes alone.
const FLUSH_DEPTH: u32 = 16;

/// A set of parts, one bit each.
type PartMask = u8;

fn bit(part: Part) -> PartMask {
    1 << part as u8
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Queued,
    Reserved,
    Granted,
}

#[derive(Debug)]
struct Ticket {
    key: Key,
    phase: Phase,
    wants: Vec<(u32, Access)>,
}

/// The pure tier manager. See the module's introduction.
pub struct Hierarchy {
    table: Table,
    classes: [Option<Class>; PARTS],
    tickets: TicketMap<Ticket>,
    /// Tickets that wait for slots, with the parts they want.
    queue: BTreeMap<Key, PartMask>,
    /// How many queued tickets want each set of parts.
    queued_masks: [u32; 1 << PARTS],
    granted: usize,
    flusher: Flusher,
    recorder: Option<Recorder>,
    /// Speculative loads under way that nobody waits for yet, and how many there may be.
    speculating: u32,
    most_speculating: u32,
    /// Why prefetches are read.
    ahead: Haste,
    /// Acquires so far, to mark entries with.
    acquires: u64,
}

impl std::fmt::Debug for Hierarchy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hierarchy").field("state", &self.snapshot()).finish_non_exhaustive()
    }
}

impl Hierarchy {
    /// All slots free, every part under the configured policy.
    ///
    /// # Errors
    /// `Config` for bad policy parameters, `Bug` for a part named twice.
    pub fn new(classes: &[SlotClass], policy: &PolicyConfig) -> Result<Self> {
        policy.check()?;
        Self::with_policies(classes, |class| policy.build(class.slots))
    }

    /// As [`Hierarchy::new`], with a policy of the caller's own making for each part.
    ///
    /// # Errors
    /// `Bug` for a part named twice.
    pub fn with_policies(
        classes: &[SlotClass],
        mut make: impl FnMut(&SlotClass) -> Box<dyn Policy>,
    ) -> Result<Self> {
        let mut by_part: [Option<Class>; PARTS] = Default::default();
        for spec in classes {
            let class = &mut by_part[spec.part as usize];
            if class.is_some() {
                return Err(Error::bug("a part has two slot classes"));
            }
            *class = Some(Class::new(*spec, make(spec)));
        }
        Ok(Self {
            table: Table::default(),
            classes: by_part,
            tickets: TicketMap::default(),
            queue: BTreeMap::new(),
            queued_masks: [0; 1 << PARTS],
            granted: 0,
            flusher: Flusher::new(FLUSH_DEPTH),
            recorder: None,
            speculating: 0,
            most_speculating: u32::MAX,
            ahead: Haste::Foreseen,
            acquires: 0,
        })
    }

    /// From now on no more than `most` speculative loads are under way at once; loads that a ticket
    /// waits for are never held back.
    pub fn limit_speculation(&mut self, most: u32) {
        self.most_speculating = most;
    }

    /// Records every access from now on, for `replay`, in memory that grows until
    /// [`Hierarchy::end_trace`].
    pub fn record(&mut self) {
        let classes: Vec<_> = self.classes.iter().flatten().map(|class| class.spec).collect();
        self.recorder = Some(Recorder::new(&classes));
    }

    /// Ends the recording; what was recorded. Empty without [`Hierarchy::record`].
    pub fn end_trace(&mut self) -> Vec<u8> {
        self.recorder.take().map(Recorder::into_bytes).unwrap_or_default()
    }

    /// Takes in what happened and appends what is to be done.
    ///
    /// # Errors
    /// `Bug` for an event that cannot happen (an unknown ticket, an answer to no move), `Budget`
    /// for an acquire that could never be granted. A refused event changes nothing.
    pub fn on(&mut self, event: Event, moves: &mut Vec<Move>) -> Result<()> {
        match event {
            Event::Acquire { ticket, priority, wants } => {
                self.acquire(ticket, priority, &wants, moves)?;
            }
            Event::Cancel { ticket } => self.cancel(ticket, moves)?,
            Event::Release { ticket, outcomes } => self.release(ticket, &outcomes, moves)?,
            Event::Prefetch { block, use_at } => self.prefetch(block, use_at)?,
            Event::Plan { block, next_use } => self.plan(block, next_use),
            Event::Loaded { block } => self.loaded(block, moves)?,
            Event::GivenUp { block } => self.given_up(block, moves)?,
            Event::Written { block } => self.written(block, moves)?,
            Event::Failed { block } => self.failed(block, moves)?,
            Event::Flush => self.flush(),
        }
        self.reserve_queued(moves);
        self.write_flushed(moves);
        while let Some(flush) = self.flusher.ended() {
            moves.push(Move::Flushed { flush });
        }
        Ok(())
    }

    fn class(&mut self, part: Part) -> Option<&mut Class> {
        self.classes[part as usize].as_mut()
    }

    fn class_of(&mut self, index: u32) -> Option<&mut Class> {
        self.classes[self.table[index].part() as usize].as_mut()
    }

    fn entry_of(&self, block: BlockId, doing: &'static str) -> Result<u32> {
        self.table.find(block).ok_or_else(|| {
            Error::bug("an event names a block that the hierarchy never met")
                .with("event", doing)
                .with("block", block)
        })
    }

    /// Files the entry where its state now belongs. To be called after each change of a pin, a
    /// wanter, the content, or `stuck`.
    fn refile(&mut self, index: u32) {
        let entry = &mut self.table[index];
        let held = !entry.has_slot()
            || entry.content == Content::Loading
            || entry.is_pinned()
            || entry.doomed;
        let standing = if held {
            Standing::Held
        } else if entry.standing == Standing::Leaving {
            Standing::Leaving
        } else if let Some(oldest) = entry.wanters.iter().min() {
            Standing::Wanted(*oldest)
        } else if entry.stuck {
            Standing::Stuck
        } else {
            Standing::Offered
        };
        if standing != entry.standing {
            self.file(index, standing);
        }
    }

    fn file(&mut self, index: u32, standing: Standing) {
        let entry = &mut self.table[index];
        let Some(class) = self.classes[entry.part() as usize].as_mut() else {
            return;
        };
        let block = entry.block;
        match std::mem::replace(&mut entry.standing, standing) {
            Standing::Held => {}
            Standing::Offered => {
                class.policy.withdraw(block);
                class.offered -= 1;
            }
            Standing::Wanted(key) => {
                class.wanted.remove(&(key, index));
            }
            Standing::Leaving => class.leaving -= 1,
            Standing::Stuck => {
                class.stuck.remove(&index);
            }
        }
        match standing {
            Standing::Held => {}
            Standing::Offered => {
                class.policy.offer(block, entry.next_use);
                class.offered += 1;
            }
            Standing::Wanted(key) => {
                class.wanted.insert((key, index));
            }
            Standing::Leaving => class.leaving += 1,
            Standing::Stuck => {
                class.stuck.insert(index);
            }
        }
    }
}

#[cfg(test)]
mod sweep;
#[cfg(test)]
mod tests;
