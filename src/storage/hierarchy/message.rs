//! The words between the hierarchy and whoever carries out its moves: events in, moves out.

use crate::base::{BlockId, Part};
use serde::{Deserialize, Serialize};

/// The fixed slots of one part. Slots of different parts are never exchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotClass {
    pub part: Part,
    /// Bytes of one slot, a multiple of 4096.
    pub slot_bytes: u64,
    pub slots: u32,
}

/// One slot of the arena.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SlotId {
    pub part: Part,
    pub index: u32,
}

/// What the holder of a lease does with a block. Read leases are shared, the others exclusive.
///
/// Where one acquire names a block twice, the later kind in this order counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Access {
    Read,
    Update,
    /// The holder makes the whole content; nothing is read, and what the block held is void.
    Create,
}

impl Access {
    /// Whether the lease tolerates no other lease on the block.
    pub fn is_exclusive(self) -> bool {
        self != Self::Read
    }
}

/// One block of an acquire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Want {
    pub block: BlockId,
    pub access: Access,
    /// The planner's virtual time of the use after this one; `u64::MAX` is never.
    pub next_use: u64,
}

/// What a lease left behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// The bytes are those that were granted. After [`Access::Create`] it counts as `Discard`:
    /// nothing was made.
    Clean,
    /// The bytes changed; they are written before the slot serves another block.
    Dirty,
    /// The content has served (a consumed gradient) and is dropped unwritten. A durable block
    /// with unwritten changes is kept all the same: only scratch may be thrown away.
    Discard,
}

/// Why a block is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Haste {
    /// A ticket waits for it.
    Asked,
    /// It will be needed.
    Foreseen,
    /// It may be needed: the disk reads it while it would rest, and until the hour comes.
    Guessed,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// `ticket` needs all of `wants` at once. A lower `priority` is served first, then the lower
    /// ticket.
    Acquire { ticket: u64, priority: u64, wants: Vec<Want> },
    /// A ticket that was not granted yet is withdrawn.
    Cancel { ticket: u64 },
    /// A granted ticket ends. Blocks without an outcome are [`Outcome::Clean`].
    Release { ticket: u64, outcomes: Vec<(BlockId, Outcome)> },
    /// `block` will probably be needed at virtual time `use_at`.
    Prefetch { block: BlockId, use_at: u64 },
    /// The planner knows better when `block` is used next. Withdraws a prefetch that still waits
    /// for a slot. To be sent for a block that was prefetched and turned out not to be needed:
    /// else it keeps the rank of one that is needed at once.
    Plan { block: BlockId, next_use: u64 },
    /// A [`Move::Load`] has ended.
    Loaded { block: BlockId },
    /// A load has ended before its time because of [`Move::GiveUp`].
    GivenUp { block: BlockId },
    /// A [`Move::Write`] has ended.
    Written { block: BlockId },
    /// The load or write of `block` that was under way failed.
    Failed { block: BlockId },
    /// Write back every durable block that is dirty now (for a commit).
    Flush,
}

/// Why tickets cannot be served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Cause {
    /// Reading the block failed.
    Load,
    /// Writing the block failed, so its slot cannot be reused. The block stays resident and
    /// dirty: nothing is lost.
    Write,
    /// The scratch block was never made, or was discarded.
    Absent,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Move {
    /// Read `block` into `slot`. Answered by `Loaded` or `Failed`.
    Load { block: BlockId, slot: SlotId, haste: Haste },
    /// A guess was wrong. If its load is under way it may end at once, answered by `GivenUp`, or
    /// as if nothing had been said.
    GiveUp { block: BlockId },
    /// A load that was handed out as speculative is now waited for.
    Promote { block: BlockId },
    /// Write `slot` to a slot of `block` on disk; `urgent` when a ticket waits for it. Answered by
    /// `Written` or `Failed`. The content belongs to the `era`-th flush (counted from 1) and, for
    /// durable blocks, to no earlier one.
    Write { block: BlockId, slot: SlotId, era: u64, urgent: bool },
    /// A scratch block with bytes on disk is gone; its disk slot may be reused.
    Drop { block: BlockId },
    /// All blocks of `ticket` are resident and pinned until its release.
    Grant { ticket: u64, slots: Vec<(BlockId, SlotId)> },
    /// Loading or writing `block` failed, or it does not exist; `tickets` (maybe none) will never
    /// be granted and hold nothing.
    Fail { block: BlockId, cause: Cause, tickets: Vec<u64> },
    /// Every block that was dirty at the `flush`-th flush event has been written.
    Flushed { flush: u64 },
    /// A block of this flush could not be written: the flush has ended without success. The
    /// block is still dirty; a later flush tries again.
    FlushFailed { flush: u64, block: BlockId },
}
