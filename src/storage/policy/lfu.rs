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
}

#[derive(Debug, Clone, Copy, Default)]
struct Count {
    score: f64,
    /// When it was offered; 0 while it is not.
    offered_at: u64,
    next_use: u64,
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
        }
    }

    pub fn add(&mut self, block: BlockId) {
        self.accesses += 1;
        if self.accesses.is_multiple_of(self.every) {
            self.decay();
        }
        let weight = self.weight;
        let count = self.blocks.entry(block).or_default();
        let before = (count.score.to_bits(), count.offered_at, block);
        count.score += weight;
        if count.offered_at != 0 {
            self.order.remove(&before);
            self.order.insert((count.score.to_bits(), count.offered_at, block));
        }
    }

    pub fn offer(&mut self, block: BlockId, next_use: u64) {
        self.now += 1;
        let count = self.blocks.entry(block).or_default();
        count.offered_at = self.now;
        count.next_use = next_use;
        self.order.insert((count.score.to_bits(), count.offered_at, block));
    }

    pub fn withdraw(&mut self, block: BlockId) {
        if let Some(count) = self.blocks.get_mut(&block) {
            let offered_at = std::mem::take(&mut count.offered_at);
            self.order.remove(&(count.score.to_bits(), offered_at, block));
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
        let offered = std::mem::take(&mut self.order);
        for (_, at, block) in offered {
            let score = self.blocks.get(&block).map_or(0.0, |count| count.score);
            self.order.insert((score.to_bits(), at, block));
        }
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
        self.counts.least(0.0, later_than)
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
