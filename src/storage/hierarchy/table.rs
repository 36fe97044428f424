//! What the hierarchy knows of each block it ever met, found by name in constant time.

use super::message::Access;
use crate::base::{BlockId, Part};
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// A fast hash for short keys that nobody chooses with ill will.
#[derive(Debug, Default, Clone, Copy)]
pub struct ShortHasher(u64);

impl ShortHasher {
    fn mix(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(5) ^ word).wrapping_mul(0x517c_c1b7_2722_0a95);
    }
}

impl Hasher for ShortHasher {
    fn finish(&self) -> u64 {
        // The product's good bits are the high ones; the map takes the low ones.
        self.0 ^ (self.0 >> 32)
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.mix(u64::from(*byte)));
    }

    fn write_u16(&mut self, word: u16) {
        self.mix(u64::from(word));
    }

    fn write_u64(&mut self, word: u64) {
        self.mix(word);
    }

    fn write_isize(&mut self, word: isize) {
        self.mix(word as u64);
    }
}

/// A map whose keys are blocks.
pub type BlockMap<V> = HashMap<BlockId, V, BuildHasherDefault<ShortHasher>>;
/// A map whose keys are tickets.
pub type TicketMap<V> = HashMap<u64, V, BuildHasherDefault<ShortHasher>>;

/// The order in which tickets are served: priority, then ticket.
pub(super) type Key = (u64, u64);

/// What a block's slot holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Content {
    /// No slot.
    Absent,
    /// A read into the slot is under way.
    Loading,
    /// The slot waits for a creator; its bytes mean nothing.
    Blank,
    /// The block's bytes.
    Resident,
}

/// Where a block is filed when room is needed. Kept up to date by `Hierarchy::refile`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// Pinned, on its way in, or without a slot: not to be evicted.
    Held,
    /// Among the policy's candidates.
    Offered,
    /// A queued ticket (this is the oldest) wants it: leaves only for an older one.
    Wanted(Key),
    /// Chosen to leave as soon as its write has ended.
    Leaving,
    /// Its write failed: leaves last.
    Stuck,
}

/// One block. The index of an entry never changes.
#[derive(Debug)]
pub(super) struct Entry {
    pub block: BlockId,
    pub slot: u32,
    pub content: Content,
    pub standing: Standing,
    /// The slot has bytes that the disk lacks.
    pub dirty: bool,
    /// A write of the slot is under way.
    pub writing: bool,
    /// Changed again while being written.
    pub redirtied: bool,
    /// The last write failed.
    pub stuck: bool,
    /// Discarded; the slot goes once the last lease and the write have ended.
    pub doomed: bool,
    /// The disk has bytes of this block. Always so for durable blocks.
    pub stored: bool,
    /// Loaded by a prefetch for this time, and not asked for since.
    pub speculative: Option<u64>,
    /// Counts among the flush writes in flight.
    pub flushing: bool,
    /// Leases granted for reading.
    pub readers: u32,
    /// A lease granted for changing.
    pub writer: bool,
    /// The flush to which the unwritten content belongs.
    pub era: u64,
    /// The flush that waits for this block's write; 0 for none.
    pub due: u64,
    /// The key under which the block waits for its flush write.
    pub flush_at: Option<u64>,
    /// When the planner expects the next use.
    pub next_use: u64,
    /// The use for which a prefetch waits for a slot.
    pub prefetch: Option<u64>,
    /// Tickets that hold the block's slot and wait for their grant, oldest first.
    pub reserved: Vec<(Key, Access)>,
    /// Queued tickets that want the block.
    pub wanters: Vec<Key>,
    /// The last acquire that named the block, to find duplicates.
    pub mark: u64,
}

impl Entry {
    fn new(block: BlockId) -> Self {
        Self {
            block,
            slot: 0,
            content: Content::Absent,
            standing: Standing::Held,
            dirty: false,
            writing: false,
            redirtied: false,
            stuck: false,
            doomed: false,
            stored: block.part.is_durable(),
            speculative: None,
            flushing: false,
            readers: 0,
            writer: false,
            era: 0,
            due: 0,
            flush_at: None,
            next_use: u64::MAX,
            prefetch: None,
            reserved: Vec::new(),
            wanters: Vec::new(),
            mark: 0,
        }
    }

    pub fn part(&self) -> Part {
        self.block.part
    }

    /// Whether nobody older than `key` is about to make the content of the blank slot.
    pub fn is_unfilled_for(&self, key: Key) -> bool {
        let mut older = self.reserved.iter().take_while(|(other, _)| *other < key);
        self.content == Content::Blank
            && !self.writer
            && !older.any(|(_, access)| *access == Access::Create)
    }

    pub fn has_slot(&self) -> bool {
        self.content != Content::Absent
    }

    pub fn is_leased(&self) -> bool {
        self.readers > 0 || self.writer
    }

    /// Leased, or promised to a ticket that waits for its grant.
    pub fn is_pinned(&self) -> bool {
        self.is_leased() || !self.reserved.is_empty()
    }

    /// Whether `key` may be granted `access` now, ahead of the younger and after the older ones.
    pub fn is_grantable(&self, key: Key, access: Access) -> bool {
        let mut older = self.reserved.iter().take_while(|(other, _)| *other < key);
        match access {
            Access::Read => {
                self.content == Content::Resident
                    && !self.doomed
                    && !self.writer
                    && !older.any(|(_, access)| access.is_exclusive())
            }
            Access::Update | Access::Create => {
                let ready = match self.content {
                    Content::Resident => access == Access::Create || !self.doomed,
                    Content::Blank => access == Access::Create,
                    Content::Absent | Content::Loading => false,
                };
                // The bytes on their way to disk, or owed to a flush, must not change under way.
                let settled = !self.writing && self.due == 0;
                ready && settled && !self.is_leased() && older.next().is_none()
            }
        }
    }
}

/// All entries, by index and by name.
#[derive(Debug, Default)]
pub(super) struct Table {
    entries: Vec<Entry>,
    by_block: BlockMap<u32>,
}

impl Table {
    /// The index of `block`, new or not.
    pub fn intern(&mut self, block: BlockId) -> u32 {
        let Self { entries, by_block } = self;
        *by_block.entry(block).or_insert_with(|| {
            entries.push(Entry::new(block));
            entries.len() as u32 - 1
        })
    }

    pub fn find(&self, block: BlockId) -> Option<u32> {
        self.by_block.get(&block).copied()
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }
}

impl std::ops::Index<u32> for Table {
    type Output = Entry;

    fn index(&self, index: u32) -> &Entry {
        &self.entries[index as usize]
    }
}

impl std::ops::IndexMut<u32> for Table {
    fn index_mut(&mut self, index: u32) -> &mut Entry {
        &mut self.entries[index as usize]
    }
}
