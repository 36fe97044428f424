//! `lfu`: the block with the fewest uses leaves, old uses counting less and less.

use super::Policy;
use super::counts::Counts;
use super::order::Order;
use crate::base::BlockId;

/// Evicts the least frequently used block; counts outlive an eviction.
#[derive(Debug)]
pub struct Lfu {
    counts: Counts<1>,
    order: Order,
}

impl Lfu {
    /// Counts are multiplied by `beta` (0 < beta <= 1) every `every` accesses.
    pub fn new(beta: f64, every: u64) -> Self {
        Self { counts: Counts::new(beta, [every]), order: Order::default() }
    }

    /// The block with the fewest uses, but at least `count`.
    pub(super) fn least(&self, count: f64, later_than: Option<u64>) -> Option<BlockId> {
        self.order.least(self.counts.worth(count, 0), later_than)
    }

    pub(super) fn forget(&mut self, block: BlockId) {
        self.counts.forget(block);
    }
}

impl Policy for Lfu {
    fn name(&self) -> &'static str {
        "lfu"
    }

    fn accessed(&mut self, block: BlockId) {
        let ([score], [scaled]) = self.counts.add(block);
        if scaled {
            self.order.score_all(|block| self.counts.score(block, 0));
        } else {
            self.order.score(block, score);
        }
    }

    fn offer(&mut self, block: BlockId, next_use: u64) {
        self.order.offer(block, self.counts.score(block, 0), next_use);
    }

    fn withdraw(&mut self, block: BlockId) {
        self.order.withdraw(block);
    }

    fn hour(&mut self, now: u64) {
        self.order.hour(now);
    }

    fn victim(&mut self, later_than: Option<u64>) -> Option<BlockId> {
        self.order.victim(later_than)
    }

    fn victim_for(&mut self, next_use: u64) -> Option<BlockId> {
        self.order.victim_for(next_use)
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
        assert_eq!(policy.counts.worth(1.0, 0), 1.0);
        for expert in 0..5 {
            assert_eq!(policy.victim(None), Some(block(expert)));
            policy.withdraw(block(expert));
        }
    }
}
