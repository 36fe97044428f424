//! `lfu`: the block with the fewest uses leaves, old uses counting less and less.
//!
//! All scores shrink alike, which changes no order. So instead of shrinking them, the weight of a
//! new use grows; decay then costs nothing however many blocks there are.

use super::{Policy, SEARCH};
use crate::base::BlockId;
use crate::storage::hierarchy::BlockMap;
use std::collections::BTreeSet;

/// Beyond this weight all scores are scaled down, once, to stay clear of overflow.
const HEAVY: f64 = 1e150;

/// Use counts that decay, for blocks in and out of the cache, and the order of those on offer.
///
/// A true count is its stored score divided by `weight`.
#[derive(Debug)]
pub(super) struct Counts {
    beta: f64,
    every: u64,
    accesses: u64,
    weight: f64,
    now: u64,
    /// The planner's hour, where it tells.
    hour: Option<u64>,
    blocks: BlockMap<Count>,
    /// By score, then by the time of the offer. Scores are not negative, so that the order of
    /// their bits is theirs.
    order: BTreeSet<(u64, u64, BlockId)>,
    /// Those of which the next use is known: by that, then as above.
    known: BTreeSet<(u64, u64, u64, BlockId)>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Count {
    score: f64,
    /// When it was offered; 0 while it is not.
    offered_at: u64,
    next_use: u64,
}

impl Count {
    fn place(&self, block: BlockId) -> (u64, u64, BlockId) {
        (self.score.to_bits(), self.offered_at, block)
    }

    fn known_place(&self, block: BlockId) -> (u64, u64, u64, BlockId) {
        (self.next_use, self.score.to_bits(), self.offered_at, block)
    }
}

impl Counts {
    pub fn new(beta: f64, every: u64) -> Self {
        Self {
            beta,
            every: every.max(1),
            accesses: 0,
            weight: 1.0,
            now: 0,
            hour: None,
            blocks: BlockMap::default(),
            order: BTreeSet::new(),
            known: BTreeSet::new(),
        }
    }

    pub fn add(&mut self, block: BlockId) {
        self.accesses += 1;
        if self.accesses.is_multiple_of(self.every) {
            self.decay();
        }
        let weight = self.weight;
        self.reorder(block, |count| count.score += weight);
    }

    pub fn offer(&mut self, block: BlockId, next_use: u64) {
        self.now += 1;
        let now = self.now;
        self.reorder(block, |count| (count.offered_at, count.next_use) = (now, next_use));
    }

    pub fn withdraw(&mut self, block: BlockId) {
        if self.blocks.contains_key(&block) {
            self.reorder(block, |count| count.offered_at = 0);
        }
    }

    /// Changes a count and where it stands in the orders.
    fn reorder(&mut self, block: BlockId, change: impl FnOnce(&mut Count)) {
        let count = self.blocks.entry(block).or_default();
        if count.offered_at != 0 {
            self.order.remove(&count.place(block));
            self.known.remove(&count.known_place(block));
        }
        change(count);
        if count.offered_at != 0 {
            self.order.insert(count.place(block));
            if count.next_use != u64::MAX {
                self.known.insert(count.known_place(block));
            }
        }
    }

    pub fn hour(&mut self, now: u64) {
        self.hour = Some(now);
    }

    pub fn forget(&mut self, block: BlockId) {
        self.blocks.remove(&block);
    }

    /// The least used block with a count of at least `threshold`.
    pub fn least(&self, threshold: f64, later_than: Option<u64>) -> Option<BlockId> {
        let from = ((threshold * self.weight).to_bits(), 0, LOWEST);
        let mut candidates = self.order.range(from..).map(|(_, _, block)| *block);
        let Some(limit) = later_than else {
            let first = candidates.next()?;
            // What was foreseen for an hour that has not passed has not had its chance yet.
            let awaited = |block: &BlockId| {
                let next_use = self.blocks.get(block).map_or(u64::MAX, |count| count.next_use);
                next_use != u64::MAX && self.hour.is_some_and(|hour| next_use >= hour)
            };
            let mut rest = std::iter::once(first).chain(candidates).take(SEARCH);
            return rest.find(|block| !awaited(block)).or(Some(first));
        };
        let is_later = |block: &BlockId| self.blocks.get(block).is_some_and(|c| c.next_use > limit);
        candidates.take(SEARCH).find(is_later)
    }

    /// As [`Policy::victim`], where what is known of next uses comes first.
    pub fn victim(&self, later_than: Option<u64>) -> Option<BlockId> {
        let later = later_than.and_then(|limit| self.furthest().filter(|(at, _)| *at > limit));
        later.map(|(_, block)| block).or_else(|| self.least(0.0, later_than))
    }

    /// As [`Policy::victim_for`].
    pub fn victim_for(&self, next_use: u64) -> Option<BlockId> {
        if next_use == u64::MAX {
            return self.least(0.0, None);
        }
        let furthest = || self.furthest().map(|(_, block)| block);
        self.missed().or_else(furthest).or_else(|| self.least(0.0, None))
    }

    /// The least used of the blocks whose known next use is furthest, and when that is.
    fn furthest(&self) -> Option<(u64, BlockId)> {
        let (last, ..) = self.known.last()?;
        let first = self.known.range((*last, 0, 0, LOWEST)..).next();
        first.map(|(at, .., block)| (*at, *block))
    }

    /// The least used of some blocks whose known next use did not come.
    fn missed(&self) -> Option<BlockId> {
        let hour = self.hour?;
        let mut from = 0;
        let next = || {
            let first = self.known.range((from, 0, 0, LOWEST)..(hour, 0, 0, LOWEST)).next()?;
            from = first.0 + 1;
            Some(first)
        };
        // One of each hour, the earliest hours first.
        let firsts = std::iter::from_fn(next).take(SEARCH);
        firsts.min_by_key(|(_, score, at, _)| (*score, *at)).map(|(.., block)| *block)
    }

    fn decay(&mut self) {
        self.weight /= self.beta;
        if self.weight > HEAVY {
            self.scale_down();
        }
    }

    fn scale_down(&mut self) {
        for count in self.blocks.values_mut() {
            count.score /= self.weight;
        }
        self.weight = 1.0;
        let blocks = &self.blocks;
        let score = |block: &BlockId| blocks.get(block).map_or(0.0, |count| count.score).to_bits();
        let order = std::mem::take(&mut self.order).into_iter();
        self.order = order.map(|(_, at, block)| (score(&block), at, block)).collect();
        let known = std::mem::take(&mut self.known).into_iter();
        self.known = known.map(|(next, _, at, block)| (next, score(&block), at, block)).collect();
    }
}

/// The first block of all.
const LOWEST: BlockId = BlockId { layer: 0, expert: 0, part: crate::base::Part::Weights };

/// Evicts the least frequently used block; counts outlive an eviction.
#[derive(Debug)]
pub struct Lfu {
    counts: Counts,
}

impl Lfu {
    /// Counts are multiplied by `beta` (0 < beta <= 1) every `every` accesses.
    pub fn new(beta: f64, every: u64) -> Self {
        Self { counts: Counts::new(beta, every) }
    }
}

impl Policy for Lfu {
    fn name(&self) -> &'static str {
        "lfu"
    }

    fn accessed(&mut self, block: BlockId) {
        self.counts.add(block);
    }

    fn offer(&mut self, block: BlockId, next_use: u64) {
        self.counts.offer(block, next_use);
    }

    fn withdraw(&mut self, block: BlockId) {
        self.counts.withdraw(block);
    }

    fn hour(&mut self, now: u64) {
        self.counts.hour(now);
    }

    fn victim(&mut self, later_than: Option<u64>) -> Option<BlockId> {
        self.counts.victim(later_than)
    }

    fn victim_for(&mut self, next_use: u64) -> Option<BlockId> {
        self.counts.victim_for(next_use)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::block;
    use super::*;

    #[test]
    fn the_least_used_leaves_first_and_old_uses_fade() {
        let mut policy = Lfu::new(0.5, 5);
        for _ in 0..3 {
            policy.accessed(block(0));
        }
        policy.offer(block(0), 0);
        policy.accessed(block(1));
        policy.offer(block(1), 0);
        assert_eq!(policy.victim(None), Some(block(1)));
        // The fifth use comes after a decay: 3/2 against 1/2 + 1, and the older offer leaves.
        policy.accessed(block(1));
        assert_eq!(policy.victim(None), Some(block(0)));
    }

    #[test]
    fn what_is_foreseen_is_spared_until_its_hour_has_passed() {
        let mut policy = Lfu::new(0.5, 64);
        policy.offer(block(0), 7);
        policy.accessed(block(1));
        policy.offer(block(1), u64::MAX);
        assert_eq!(policy.victim(None), Some(block(0)), "no hour is told");
        policy.hour(7);
        assert_eq!(policy.victim(None), Some(block(1)));
        policy.hour(8);
        assert_eq!(policy.victim(None), Some(block(0)));
        // Where all are awaited one leaves all the same.
        policy.hour(0);
        policy.withdraw(block(1));
        assert_eq!(policy.victim(None), Some(block(0)));
    }

    #[test]
    fn a_sweep_keeps_what_it_comes_to() {
        let mut policy = Lfu::new(0.5, 64);
        // At hour 14: blocks 0 and 1 have been used in this pass, 2 is to come, 3 was not chosen when its hour
        // came, of 4 nothing is known.
        let offers = [(0, 5, 21), (1, 4, 21), (2, 1, 15), (3, 9, 13), (4, 1, u64::MAX)];
        for (expert, uses, next_use) in offers {
            (0..uses).for_each(|_| policy.accessed(block(expert)));
            policy.offer(block(expert), next_use);
        }
        policy.hour(14);
        assert_eq!(policy.victim(Some(15)), Some(block(1)), "for a guess");
        assert_eq!(policy.victim_for(u64::MAX), Some(block(4)), "outside of sweeps uses decide");
        for expected in [3, 1, 0, 2, 4] {
            assert_eq!(policy.victim_for(22), Some(block(expected)));
            policy.withdraw(block(expected));
        }
    }

    #[test]
    fn scaling_down_keeps_the_order() {
        let mut policy = Lfu::new(1e-10, 100);
        for expert in 0..5 {
            for _ in 0..=expert {
                policy.accessed(block(expert));
            }
            policy.offer(block(expert), 0);
        }
        // The weight passes the limit at the sixteenth decay; scores stay in order.
        for _ in 0..1600 {
            policy.accessed(block(9));
        }
        assert_eq!(policy.counts.weight, 1.0);
        for expert in 0..5 {
            assert_eq!(policy.victim(None), Some(block(expert)));
            policy.withdraw(block(expert));
        }
    }
}
