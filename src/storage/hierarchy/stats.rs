//! What the hierarchy can tell of itself: counters, and its state as a value.

use super::Hierarchy;
use super::table::{Content, Entry};
use crate::base::{BlockId, Part};
use serde::Serialize;

/// Counters of one part since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct PartStats {
    /// Wanted blocks that were resident when their ticket asked.
    pub hits: u64,
    /// Wanted blocks on their way in at that time: a prefetch that came late.
    pub late: u64,
    /// Wanted blocks that had to be fetched.
    pub misses: u64,
    /// Blocks wanted for creation: nothing to fetch.
    pub creates: u64,
    /// Loads handed out, for whatever reason.
    pub loads: u64,
    /// Loads handed out for a prefetch.
    pub prefetches: u64,
    /// Prefetched blocks that were evicted unused.
    pub wasted: u64,
    pub writes: u64,
    /// Blocks that lost their slot to another.
    pub evictions: u64,
    /// Scratch blocks dropped unwritten.
    pub discards: u64,
    pub failures: u64,
    /// Bytes of slots asked to be read and written.
    pub bytes_loaded: u64,
    pub bytes_written: u64,
}

impl PartStats {
    fn add(&mut self, other: &Self) {
        self.hits += other.hits;
        self.late += other.late;
        self.misses += other.misses;
        self.creates += other.creates;
        self.loads += other.loads;
        self.prefetches += other.prefetches;
        self.wasted += other.wasted;
        self.writes += other.writes;
        self.evictions += other.evictions;
        self.discards += other.discards;
        self.failures += other.failures;
        self.bytes_loaded += other.bytes_loaded;
        self.bytes_written += other.bytes_written;
    }
}

/// Counters of every part that has slots.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Stats {
    pub parts: Vec<(Part, PartStats)>,
}

impl Stats {
    /// The counters of `part`; zero if it has no slots.
    pub fn part(&self, part: Part) -> PartStats {
        self.parts.iter().find(|(p, _)| *p == part).map_or_else(PartStats::default, |(_, s)| *s)
    }

    pub fn total(&self) -> PartStats {
        let mut total = PartStats::default();
        self.parts.iter().for_each(|(_, stats)| total.add(stats));
        total
    }
}

/// The state of one part's slots.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ClassSnapshot {
    pub part: Part,
    pub slot_bytes: u64,
    pub slots: u32,
    pub free: u32,
    pub pinned: u32,
    pub dirty: u32,
    pub loading: u32,
    pub writing: u32,
    pub prefetches_waiting: u32,
    pub policy: &'static str,
}

/// The state of the hierarchy, for whoever observes a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Snapshot {
    pub classes: Vec<ClassSnapshot>,
    /// Tickets that wait for slots, oldest first (at most 16).
    pub queued: Vec<u64>,
    pub queued_count: usize,
    /// Tickets that have their slots and wait for loads, writes or leases.
    pub reserved: usize,
    pub granted: usize,
    /// Flush events so far, and blocks still to be written for them.
    pub flushes: u64,
    pub flush_blocks_left: u64,
    pub blocks_known: usize,
}

impl Hierarchy {
    /// Counters since the start.
    pub fn stats(&self) -> Stats {
        let parts = self.classes.iter().flatten().map(|c| (c.spec.part, c.stats)).collect();
        Stats { parts }
    }

    /// Bytes of the slots in use. Never more than the slots' sum.
    pub fn resident_bytes(&self) -> u64 {
        let used = |c: &super::class::Class| c.spec.slot_bytes * u64::from(c.used_slots());
        self.classes.iter().flatten().map(used).sum()
    }

    /// Whether the bytes of `block` are in a slot.
    pub fn is_resident(&self, block: BlockId) -> bool {
        self.find(block).is_some_and(|entry| entry.content == Content::Resident)
    }

    /// Whether `block` has changes that the disk lacks.
    pub fn is_dirty(&self, block: BlockId) -> bool {
        self.find(block).is_some_and(|entry| entry.dirty)
    }

    fn find(&self, block: BlockId) -> Option<&Entry> {
        self.table.find(block).map(|index| &self.table[index])
    }

    /// The state as a value.
    pub fn snapshot(&self) -> Snapshot {
        let classes = self.classes.iter().flatten().map(|class| {
            let count = |test: fn(&Entry) -> bool| {
                class.tenants().filter(|index| test(&self.table[*index])).count() as u32
            };
            ClassSnapshot {
                part: class.spec.part,
                slot_bytes: class.spec.slot_bytes,
                slots: class.spec.slots,
                free: class.free_slots(),
                pinned: count(Entry::is_pinned),
                dirty: count(|entry| entry.dirty),
                loading: count(|entry| entry.content == Content::Loading),
                writing: count(|entry| entry.writing),
                prefetches_waiting: class.prefetches.len() as u32,
                policy: class.policy.name(),
            }
        });
        Snapshot {
            classes: classes.collect(),
            queued: self.queue.keys().take(16).map(|(_, ticket)| *ticket).collect(),
            queued_count: self.queue.len(),
            reserved: self.tickets.len() - self.queue.len() - self.granted,
            granted: self.granted,
            flushes: self.flusher.events(),
            flush_blocks_left: self.flusher.blocks_left(),
            blocks_known: self.table.len(),
        }
    }
}
