//! `se-moe`: the CPU cache of SE-MoE (Shen et al. 2022, Algorithm 2) with its hole closed.
//!
//! A hit table counts the uses of each cached block. A full cache evicts the block with the fewest
//! hits among those with at least `threshold`, for a block under it has not had its chance yet.
//! Every K accesses all hits are multiplied by beta. The paper does not say what leaves when no block
//! reaches the threshold: here the least-hit one does, so that room can always be made.

use super::{Lfu, Policy};
use crate::base::BlockId;

/// Evicts by hits in the cache, with a threshold that protects newcomers.
#[derive(Debug)]
pub struct SeMoe {
    threshold: f64,
    hits: Lfu,
}

impl SeMoe {
    /// Hits are multiplied by `beta` (0 < beta <= 1) every `every` accesses.
    pub fn new(threshold: f64, beta: f64, every: u64) -> Self {
        Self { threshold, hits: Lfu::new(beta, every) }
    }
}

impl Policy for SeMoe {
    fn name(&self) -> &'static str {
        "se-moe"
    }

    fn accessed(&mut self, block: BlockId) {
        self.hits.accessed(block);
    }

    fn offer(&mut self, block: BlockId, next_use: u64) {
        self.hits.offer(block, next_use);
    }

    fn withdraw(&mut self, block: BlockId) {
        self.hits.withdraw(block);
    }

    fn evicted(&mut self, block: BlockId) {
        // The hit table holds cached blocks only.
        self.hits.forget(block);
    }

    fn hour(&mut self, now: u64) {
        self.hits.hour(now);
    }

    fn victim(&mut self, later_than: Option<u64>) -> Option<BlockId> {
        let ripe = self.hits.least(self.threshold, later_than);
        ripe.or_else(|| self.hits.least(0.0, later_than))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::block;
    use super::*;

    fn with_hits(hits: &[usize]) -> SeMoe {
        let mut policy = SeMoe::new(2.0, 0.5, 10);
        for (expert, hits) in hits.iter().enumerate() {
            for _ in 0..*hits {
                policy.accessed(block(expert));
            }
            policy.offer(block(expert), 0);
        }
        policy
    }

    #[test]
    fn newcomers_are_protected() {
        let mut policy = with_hits(&[5, 1, 3]);
        assert_eq!(policy.victim(None), Some(block(2)));
    }

    #[test]
    fn the_hole_is_closed() {
        let mut policy = with_hits(&[0, 1, 1]);
        assert_eq!(policy.victim(None), Some(block(0)));
    }

    #[test]
    fn decay_moves_blocks_under_the_threshold() {
        let mut policy = with_hits(&[5, 1, 3]);
        policy.accessed(block(9));
        // The tenth access: 2.5, 0.5 and 1.5 hits are left, and only
        // the first block still reaches the threshold.
        assert_eq!(policy.victim(None), Some(block(0)));
    }

    #[test]
    fn eviction_clears_the_hits() {
        let mut policy = with_hits(&[5, 2, 3]);
        policy.withdraw(block(0));
        policy.evicted(block(0));
        policy.accessed(block(0));
        policy.offer(block(0), 0);
        policy.withdraw(block(1));
        policy.withdraw(block(2));
        assert_eq!(policy.victim(None), Some(block(0)));
    }
}
