//! The slots of one part: which are free, who sits in the others, and who may leave.

use super::message::{SlotClass, SlotId};
use super::stats::PartStats;
use super::table::Key;
use crate::storage::policy::Policy;
use std::collections::BTreeSet;

/// No entry sits in the slot.
const NOBODY: u32 = u32::MAX;
/// Bytes that prefetches may bring in ahead of their use by evicting others.
const AHEAD_BYTES: u64 = 32 << 20;
const AHEAD_BLOCKS: u64 = 4;

pub(super) struct Class {
    pub spec: SlotClass,
    free: Vec<u32>,
    /// The entry in each slot.
    tenants: Vec<u32>,
    pub policy: Box<dyn Policy>,
    /// How many entries the policy was offered.
    pub offered: u32,
    /// Entries that queued tickets want, by the oldest of these.
    pub wanted: BTreeSet<(Key, u32)>,
    /// Entries whose write failed.
    pub stuck: BTreeSet<u32>,
    /// Slots that become free when a write ends.
    pub leaving: u32,
    /// Prefetches that wait for a slot, by time of use.
    pub prefetches: BTreeSet<(u64, u32)>,
    /// Entries that a prefetch brought in and nobody has asked for yet, by time of use.
    pub unused: BTreeSet<(u64, u32)>,
    /// How many such entries prefetches may make by evicting others: enough for a deep queue, no
    /// more. A sweep needs every block once; what leaves before its turn is read twice.
    pub window: u32,
    pub stats: PartStats,
}

impl Class {
    pub fn new(spec: SlotClass, policy: Box<dyn Policy>) -> Self {
        let most = AHEAD_BLOCKS.max(u64::from(spec.slots) / 4);
        let window = (AHEAD_BYTES / spec.slot_bytes.max(1)).clamp(AHEAD_BLOCKS, most) as u32;
        Self {
            spec,
            // Taken from the back: low slots first, so that few pages are touched by a small run.
            free: (0..spec.slots).rev().collect(),
            tenants: vec![NOBODY; spec.slots as usize],
            policy,
            offered: 0,
            wanted: BTreeSet::new(),
            stuck: BTreeSet::new(),
            leaving: 0,
            prefetches: BTreeSet::new(),
            unused: BTreeSet::new(),
            window,
            stats: PartStats::default(),
        }
    }

    pub fn slot_id(&self, index: u32) -> SlotId {
        SlotId { part: self.spec.part, index }
    }

    pub fn free_slots(&self) -> u32 {
        self.free.len() as u32
    }

    pub fn used_slots(&self) -> u32 {
        self.spec.slots - self.free_slots()
    }

    pub fn take_free(&mut self) -> Option<u32> {
        self.free.pop()
    }

    /// Puts `slot` back among the free ones.
    pub fn give_back(&mut self, slot: u32) {
        self.tenants[slot as usize] = NOBODY;
        self.free.push(slot);
    }

    pub fn settle_in(&mut self, slot: u32, entry: u32) {
        self.tenants[slot as usize] = entry;
    }

    /// The entries that have a slot, in the order of slots.
    pub fn tenants(&self) -> impl Iterator<Item = u32> + '_ {
        self.tenants.iter().copied().filter(|entry| *entry != NOBODY)
    }
}
