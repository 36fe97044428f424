//! Two memories for simulated ranks: one that only counts slots, and the real hierarchy over a disk
//! that answers in any order.
//!
//! What a memory may do next is a number of choices, so that a seed can draw the interleaving.

use semoe::base::{BlockId, Part};
use semoe::graph::NodeId;
use semoe::storage::hierarchy::{Access, Event, Hierarchy, Move, Outcome, SlotClass, Want};
use semoe::storage::policy::{PolicyConfig, PolicyKind};
use std::collections::BTreeMap;

/// One block of a node: what it does with it and what it leaves behind.
pub type Use = (BlockId, Access, Outcome);

pub trait Memory {
    fn acquire(&mut self, node: NodeId, priority: u64, uses: &[Use]);
    fn release(&mut self, node: NodeId);
    /// How many things may happen next.
    fn choices(&self) -> usize;
    /// Lets one of them happen.
    fn happen(&mut self, choice: usize);
    /// Nodes that were granted since the last call.
    fn granted(&mut self) -> Vec<NodeId>;
    /// Whether no node holds anything and nothing is under way.
    fn is_at_rest(&self) -> bool;
}

/// Slots as a mere number, granted all or none to the oldest node first; or, mutated, one at a
/// time to whoever is drawn.
pub struct Counted {
    budget: usize,
    free: usize,
    partial: bool,
    /// What each waiting node lacks, oldest (priority, then id) first.
    waiting: BTreeMap<(u64, NodeId), usize>,
    held: BTreeMap<NodeId, usize>,
    granted: Vec<NodeId>,
}

impl Counted {
    pub fn new(budget: usize, partial: bool) -> Self {
        let (waiting, held) = (BTreeMap::new(), BTreeMap::new());
        Self { budget, free: budget, partial, waiting, held, granted: Vec::new() }
    }
}

impl Memory for Counted {
    fn acquire(&mut self, node: NodeId, priority: u64, uses: &[Use]) {
        self.waiting.insert((priority, node), uses.len());
    }

    fn release(&mut self, node: NodeId) {
        self.free += self.held.remove(&node).unwrap_or_default();
    }

    fn choices(&self) -> usize {
        if self.partial {
            return if self.free > 0 { self.waiting.len() } else { 0 };
        }
        let oldest = self.waiting.values().next();
        usize::from(oldest.is_some_and(|lacks| *lacks <= self.free))
    }

    fn happen(&mut self, choice: usize) {
        let (&(priority, node), lacks) = self.waiting.iter_mut().nth(choice).unwrap();
        let give = if self.partial { 1 } else { *lacks };
        assert!(give <= self.free, "law 1: over budget");
        self.free -= give;
        *lacks -= give;
        *self.held.entry(node).or_default() += give;
        if *lacks == 0 {
            self.waiting.remove(&(priority, node));
            self.granted.push(node);
        }
    }

    fn granted(&mut self) -> Vec<NodeId> {
        std::mem::take(&mut self.granted)
    }

    fn is_at_rest(&self) -> bool {
        self.free == self.budget && self.waiting.is_empty()
    }
}

/// The real hierarchy.
pub struct Tiered {
    hierarchy: Hierarchy,
    budget: u64,
    /// Transfers under way: the block, and whether it is a load.
    transfers: Vec<(BlockId, bool)>,
    outcomes: BTreeMap<NodeId, Vec<(BlockId, Outcome)>>,
    /// Tickets asked for and not released.
    open: usize,
    granted: Vec<NodeId>,
}

impl Tiered {
    /// So many slots of each part.
    pub fn new(slots: &[(Part, usize)], policy: PolicyKind) -> Self {
        let class = |(part, slots): &(Part, usize)| SlotClass {
            part: *part,
            slot_bytes: 4096,
            slots: *slots as u32,
        };
        let classes: Vec<SlotClass> = slots.iter().map(class).collect();
        Self {
            hierarchy: Hierarchy::new(&classes, &PolicyConfig::of(policy)).unwrap(),
            budget: classes.iter().map(|class| class.slot_bytes * u64::from(class.slots)).sum(),
            transfers: Vec::new(),
            outcomes: BTreeMap::new(),
            open: 0,
            granted: Vec::new(),
        }
    }

    fn on(&mut self, event: Event) {
        let mut moves = Vec::new();
        self.hierarchy.on(event, &mut moves).unwrap();
        assert!(self.hierarchy.resident_bytes() <= self.budget, "law 1: over budget");
        for step in moves {
            match step {
                Move::Load { block, .. } => self.transfers.push((block, true)),
                Move::Write { block, .. } => self.transfers.push((block, false)),
                Move::Grant { ticket, .. } => self.granted.push(ticket),
                Move::Fail { block, cause, .. } => panic!("{block} cannot be had: {cause:?}"),
                Move::Promote { .. }
                | Move::GiveUp { .. }
                | Move::Drop { .. }
                | Move::Flushed { .. }
                | Move::FlushFailed { .. } => {}
            }
        }
    }
}

impl Memory for Tiered {
    fn acquire(&mut self, node: NodeId, priority: u64, uses: &[Use]) {
        let want = |(block, access, _): &Use| Want {
            block: *block,
            access: *access,
            next_use: node + 40 + u64::from(block.layer),
        };
        let wants = uses.iter().map(want).collect();
        let outcomes = uses.iter().map(|(block, _, outcome)| (*block, *outcome)).collect();
        self.outcomes.insert(node, outcomes);
        self.open += 1;
        self.on(Event::Acquire { ticket: node, priority, wants });
    }

    fn release(&mut self, node: NodeId) {
        let outcomes = self.outcomes.remove(&node).unwrap_or_default();
        self.open -= 1;
        self.on(Event::Release { ticket: node, outcomes });
    }

    fn choices(&self) -> usize {
        self.transfers.len()
    }

    fn happen(&mut self, choice: usize) {
        let (block, load) = self.transfers.swap_remove(choice);
        self.on(if load { Event::Loaded { block } } else { Event::Written { block } });
    }

    fn granted(&mut self) -> Vec<NodeId> {
        std::mem::take(&mut self.granted)
    }

    fn is_at_rest(&self) -> bool {
        self.open == 0 && self.transfers.is_empty()
    }
}
