//! A seeded world around the hierarchy: a disk that answers in any order and may fail, tickets
//! that come and go, and the truth of what each block should hold.
//!
//! Every move is checked against the laws; a run that stops with tickets left is a deadlock.

use crate::tiers_chance::Liar;
pub use crate::tiers_chance::Rng;
use semoe::base::{BlockId, Part};
use semoe::storage::hierarchy::{
    Access, Cause, Event, Hierarchy, Move, Outcome, SlotClass, SlotId, Want,
};
use semoe::storage::policy::{PolicyConfig, PolicyKind, Random};
use std::collections::{BTreeMap, BTreeSet};

#[derive(Debug, Clone)]
pub struct Setup {
    pub seed: u64,
    /// Blocks of each part.
    pub blocks: usize,
    /// The most blocks of a part that one ticket wants.
    pub largest: usize,
    /// Slots of each part beyond that.
    pub spare: usize,
    /// Tickets open at once.
    pub open: usize,
    pub tickets: usize,
    /// Percentage of loads and writes that fail.
    pub faults: usize,
    /// 0..4 the named policies, then random, then the liar.
    pub policy: usize,
}

/// What a slot's memory holds.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Bytes {
    block: BlockId,
    value: u64,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Io {
    Load { slot: SlotId },
    Write { slot: SlotId, value: u64, era: u64 },
}

pub(crate) struct Ticket {
    pub(crate) wants: Vec<(BlockId, Access)>,
    pub(crate) slots: Option<Vec<(BlockId, SlotId)>>,
}

pub struct World {
    pub(crate) setup: Setup,
    pub(crate) rng: Rng,
    pub(crate) hierarchy: Hierarchy,
    budget: u64,
    pub(crate) time: u64,
    next_ticket: u64,
    memory: BTreeMap<SlotId, Bytes>,
    /// What the disk has of a block: value by era.
    disk: BTreeMap<BlockId, BTreeMap<u64, u64>>,
    truth: BTreeMap<BlockId, u64>,
    io: BTreeMap<BlockId, Io>,
    /// Loads that may end before their time.
    given_up: BTreeSet<BlockId>,
    pub(crate) tickets: BTreeMap<u64, Ticket>,
    flushes: u64,
    /// For each open flush, what the committed state must be.
    promised: BTreeMap<u64, BTreeMap<BlockId, u64>>,
    pub failed: usize,
    pub served: usize,
}

pub(crate) const PARTS: [Part; 3] = [Part::Weights, Part::State, Part::Grad];

impl World {
    pub fn new(setup: &Setup) -> Self {
        let classes = PARTS.map(|part| SlotClass {
            part,
            slot_bytes: 4096,
            slots: (setup.largest + setup.spare) as u32,
        });
        let seed = setup.seed;
        let hierarchy = Hierarchy::with_policies(&classes, |class| match setup.policy {
            kind @ 0..5 => PolicyConfig { every: 3, ..PolicyConfig::of(PolicyKind::ALL[kind]) }
                .build(class.slots),
            5 => Box::new(Random::new(seed)),
            _ => Box::new(Liar(Rng(seed))),
        });
        let mut hierarchy = hierarchy.unwrap();
        // In every other world prefetches are guesses.
        if seed % 2 == 1 {
            hierarchy.guess(2);
        }
        let durable = PARTS.into_iter().filter(|part| part.is_durable());
        let blocks: Vec<_> =
            durable.flat_map(|p| (0..setup.blocks).map(move |e| BlockId::new(0, e, p))).collect();
        Self {
            setup: setup.clone(),
            rng: Rng(seed),
            hierarchy,
            budget: classes.iter().map(|c| c.slot_bytes * u64::from(c.slots)).sum(),
            time: 0,
            next_ticket: 0,
            memory: BTreeMap::new(),
            disk: blocks.iter().map(|b| (*b, BTreeMap::from([(0, 0)]))).collect(),
            truth: blocks.iter().map(|b| (*b, 0)).collect(),
            io: BTreeMap::new(),
            given_up: BTreeSet::new(),
            tickets: BTreeMap::new(),
            flushes: 0,
            promised: BTreeMap::new(),
            failed: 0,
            served: 0,
        }
    }

    /// Lets everything happen in a random order until all tickets have ended, then reads every
    /// block back.
    pub fn run(&mut self) {
        let mut to_ask = self.setup.tickets;
        let (mut idle, mut progress) = (0, (0, 0, 0));
        while to_ask > 0 || !self.tickets.is_empty() || !self.io.is_empty() {
            match self.rng.below(10) {
                0..3 if to_ask > 0 && self.tickets.len() < self.setup.open => {
                    to_ask -= 1;
                    self.ask();
                }
                3..6 => self.end_io(),
                6..8 => self.release(),
                8 => self.hint(to_ask > 0),
                _ if self.rng.chance(10) && to_ask > 0 => self.flush(),
                _ => {}
            }
            // Prefetches may go on for ever; tickets must come and go.
            let now = (to_ask, self.tickets.len(), self.served);
            idle = if now == progress { idle + 1 } else { 0 };
            progress = now;
            assert!(idle < 3_000, "deadlock: {:?}", self.hierarchy);
        }
        self.setup.faults = 0;
        self.flush();
        while !self.io.is_empty() {
            self.end_io();
        }
        assert!(self.promised.is_empty(), "a flush has not ended: {:?}", self.hierarchy);
        for (block, value) in self.truth.clone() {
            if block.part.is_durable() {
                assert_eq!(self.newest_on_disk(block), Some(value), "{block} was lost");
            }
        }
    }

    pub(crate) fn on(&mut self, event: Event) {
        let mut moves = Vec::new();
        self.hierarchy.on(event, &mut moves).unwrap();
        self.see(moves);
    }

    pub(crate) fn see(&mut self, moves: Vec<Move>) {
        assert!(self.hierarchy.resident_bytes() <= self.budget, "law 1: over budget");
        for step in moves {
            self.check(step);
        }
    }

    fn check(&mut self, step: Move) {
        match step {
            Move::Load { block, slot, .. } => {
                self.take_slot(block, slot);
                let old = self.io.insert(block, Io::Load { slot });
                assert_eq!(old, None, "two transfers of {block}");
                assert!(self.disk.contains_key(&block), "{block} is not on disk");
            }
            Move::Promote { block } => {
                assert!(matches!(self.io.get(&block), Some(Io::Load { .. })));
                assert!(!self.given_up.contains(&block));
            }
            Move::GiveUp { block } => {
                assert!(self.setup.seed % 2 == 1, "only guesses are given up");
                let waiting = self.tickets.values().filter(|ticket| ticket.slots.is_none());
                let mut wants = waiting.flat_map(|ticket| &ticket.wants);
                assert!(wants.all(|(wanted, _)| *wanted != block), "{block} is waited for");
                if matches!(self.io.get(&block), Some(Io::Load { .. })) {
                    self.given_up.insert(block);
                }
            }
            Move::Write { block, slot, era, .. } => {
                let Bytes { block: there, value } = self.memory[&slot];
                assert_eq!(there, block, "a write from a slot of another block");
                assert!(!self.is_changing(block), "{block} is written while it changes");
                let old = self.io.insert(block, Io::Write { slot, value, era });
                assert_eq!(old, None, "two transfers of {block}");
                assert!(era <= self.flushes + 1);
            }
            Move::Drop { block } => {
                assert!(!block.part.is_durable());
                assert!(self.disk.remove(&block).is_some());
            }
            Move::Grant { ticket, slots } => self.check_grant(ticket, slots),
            Move::Fail { block, cause, tickets } => {
                assert_ne!(cause, Cause::Absent, "{block} should exist");
                for ticket in tickets {
                    let ticket = self.tickets.remove(&ticket).expect("fails once");
                    assert!(ticket.slots.is_none(), "a granted ticket fails");
                    self.failed += 1;
                }
            }
            Move::Flushed { flush } => {
                assert_eq!(self.promised.keys().next(), Some(&flush), "flushes end in order");
                for (block, value) in self.promised.remove(&flush).unwrap() {
                    let committed = self.disk[&block].range(..=flush).next_back();
                    assert_eq!(committed.map(|(_, v)| *v), Some(value), "{block} at {flush}");
                }
            }
            Move::FlushFailed { flush, block } => {
                assert!(self.promised.remove(&flush).is_some());
                assert!(self.hierarchy.is_dirty(block));
            }
        }
    }

    /// `block` moves into `slot`: what was there must be safe.
    fn take_slot(&mut self, block: BlockId, slot: SlotId) {
        assert_eq!(block.part, slot.part);
        assert!((slot.index as usize) < self.setup.largest + self.setup.spare, "law 1");
        let leased = self.leases().any(|(_, other, at, _)| at == slot && other != block);
        assert!(!leased, "a leased slot is reused");
        let busy = self.io.iter().any(|(other, io)| *other != block && io.slot() == slot);
        assert!(!busy, "a slot is reused during a transfer");
        if let Some(old) = self.memory.remove(&slot)
            && let Some(truth) = self.truth.get(&old.block)
            && old.block != block
            && old.value == *truth
        {
            assert_eq!(
                self.newest_on_disk(old.block),
                Some(*truth),
                "law 2: {} dropped",
                old.block
            );
        }
    }

    fn check_grant(&mut self, ticket: u64, slots: Vec<(BlockId, SlotId)>) {
        let wants = self.tickets[&ticket].wants.clone();
        assert!(self.tickets[&ticket].slots.is_none(), "granted twice");
        assert_eq!(slots.len(), wants.len());
        for ((block, access), (granted, slot)) in wants.iter().zip(&slots) {
            assert_eq!(block, granted);
            if *access == Access::Create {
                self.take_slot(*block, *slot);
            } else {
                let expected = Bytes { block: *block, value: self.truth[block] };
                assert_eq!(self.memory.get(slot), Some(&expected), "law 1: {block} is not there");
            }
            for (other, held, _, their_access) in self.leases() {
                let clash = access.is_exclusive() || their_access.is_exclusive();
                assert!(held != *block || !clash, "{ticket} and {other} clash on {block}");
            }
            let io = self.io.get(block);
            let calm = if access.is_exclusive() {
                io.is_none()
            } else {
                !matches!(io, Some(Io::Load { .. }))
            };
            assert!(calm, "{block} is granted during a transfer");
        }
        self.tickets.get_mut(&ticket).unwrap().slots = Some(slots);
    }

    /// Ticket, block, slot and access of each granted lease.
    fn leases(&self) -> impl Iterator<Item = (u64, BlockId, SlotId, Access)> + '_ {
        self.tickets.iter().flat_map(|(id, ticket)| {
            let slots = ticket.slots.iter().flatten();
            slots
                .zip(&ticket.wants)
                .map(|((block, slot), (_, access))| (*id, *block, *slot, *access))
        })
    }

    fn is_changing(&self, block: BlockId) -> bool {
        self.leases().any(|(_, held, _, access)| held == block && access.is_exclusive())
    }

    fn newest_on_disk(&self, block: BlockId) -> Option<u64> {
        self.disk.get(&block)?.values().next_back().copied()
    }

    fn ask(&mut self) {
        let mut wants: BTreeMap<BlockId, Access> = BTreeMap::new();
        for part in PARTS {
            for _ in 0..self.rng.below(self.setup.largest + 1) {
                let block = BlockId::new(0, self.rng.below(self.setup.blocks), part);
                let access = match self.rng.below(10) {
                    0..5 => Access::Read,
                    5..9 => Access::Update,
                    _ => Access::Create,
                };
                if part.is_durable() {
                    wants.insert(block, access);
                    continue;
                }
                // Who makes or drops a gradient is ordered by the graph: one user at a time.
                let in_use = self.tickets.values().any(|t| t.wants.iter().any(|w| w.0 == block));
                if !in_use {
                    let exists = self.truth.contains_key(&block);
                    wants.insert(block, if exists { access } else { Access::Create });
                }
            }
        }
        if wants.is_empty() {
            wants.insert(BlockId::weights(0, 0), Access::Read);
        }
        self.next_ticket += 1;
        self.time += 1;
        let ticket = self.next_ticket;
        let priority = self.rng.below(4) as u64;
        let mut list: Vec<Want> = Vec::new();
        for (block, access) in &wants {
            let next_use =
                if self.rng.chance(20) { u64::MAX } else { self.time + self.rng.draw() % 30 };
            list.push(Want { block: *block, access: *access, next_use });
            if self.rng.chance(10) {
                list.push(Want { block: *block, access: Access::Read, next_use });
            }
        }
        let wants = wants.into_iter().collect();
        self.tickets.insert(ticket, Ticket { wants, slots: None });
        self.on(Event::Acquire { ticket, priority, wants: list });
    }

    fn release(&mut self) {
        let granted: Vec<u64> =
            self.tickets.iter().filter(|(_, t)| t.slots.is_some()).map(|(id, _)| *id).collect();
        if granted.is_empty() {
            return;
        }
        let id = granted[self.rng.below(granted.len())];
        let ticket = self.tickets.remove(&id).unwrap();
        let mut outcomes = Vec::new();
        for ((block, access), (_, slot)) in ticket.wants.iter().zip(ticket.slots.unwrap()) {
            let outcome = match access {
                _ if !block.part.is_durable() && self.rng.chance(30) => Outcome::Discard,
                Access::Create => Outcome::Dirty,
                Access::Update if self.rng.chance(80) => Outcome::Dirty,
                Access::Read | Access::Update => Outcome::Clean,
            };
            match outcome {
                Outcome::Dirty => {
                    let value = self.rng.draw();
                    self.truth.insert(*block, value);
                    self.memory.insert(slot, Bytes { block: *block, value });
                    // A flush that came during the lease commits what the lease left.
                    for promise in self.promised.values_mut() {
                        if promise.get(block) == Some(&CHANGING) {
                            promise.insert(*block, value);
                        }
                    }
                }
                Outcome::Clean => {
                    let value = self.truth[block];
                    for promise in self.promised.values_mut() {
                        if promise.get(block) == Some(&CHANGING) {
                            promise.insert(*block, value);
                        }
                    }
                }
                Outcome::Discard => {
                    self.truth.remove(block);
                    self.memory.remove(&slot);
                }
            }
            if outcome != Outcome::Clean || self.rng.chance(50) {
                outcomes.push((*block, outcome));
            }
        }
        self.served += 1;
        self.on(Event::Release { ticket: id, outcomes });
    }

    fn end_io(&mut self) {
        let Some(pick) = (!self.io.is_empty()).then(|| self.rng.below(self.io.len())) else {
            return;
        };
        let (block, io) = self.io.iter().nth(pick).map(|(b, io)| (*b, *io)).unwrap();
        self.io.remove(&block);
        let given_up = self.given_up.remove(&block);
        if self.rng.chance(self.setup.faults) {
            if let Io::Load { slot } = io {
                self.memory.remove(&slot);
            }
            self.on(Event::Failed { block });
            return;
        }
        match io {
            Io::Load { slot } if given_up && self.rng.chance(60) => {
                self.memory.remove(&slot);
                self.on(Event::GivenUp { block });
            }
            Io::Load { slot } => {
                let value = self.newest_on_disk(block).unwrap();
                self.memory.insert(slot, Bytes { block, value });
                self.on(Event::Loaded { block });
            }
            Io::Write { slot, value, era } => {
                // A discarded gradient may have gone from memory during its write.
                if let Some(bytes) = self.memory.get(&slot) {
                    assert_eq!(*bytes, Bytes { block, value }, "{block} changed under its write");
                }
                self.disk.entry(block).or_default().insert(era, value);
                self.on(Event::Written { block });
            }
        }
    }

    fn flush(&mut self) {
        self.flushes += 1;
        let changing: BTreeSet<BlockId> =
            self.leases().filter(|(_, _, _, a)| a.is_exclusive()).map(|(_, b, ..)| b).collect();
        let mut promise = BTreeMap::new();
        for (block, value) in &self.truth {
            if !block.part.is_durable() {
                continue;
            }
            if !changing.contains(block) {
                promise.insert(*block, *value);
            } else if self.hierarchy.is_dirty(*block) {
                promise.insert(*block, CHANGING);
            }
        }
        self.promised.insert(self.flushes, promise);
        self.on(Event::Flush);
    }
}

/// Stands for the value that a lease is about to leave.
const CHANGING: u64 = u64::MAX;

impl Io {
    fn slot(&self) -> SlotId {
        match self {
            Self::Load { slot } | Self::Write { slot, .. } => *slot,
        }
    }
}
