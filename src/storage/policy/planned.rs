//! `planned`: the block whose next use is furthest in the future leaves.
//!
//! With a planner that knows the order of uses this is the optimum (Belady 1966): a cyclic sweep
//! keeps a fixed part resident and streams the rest through the other slots, where LRU would never
//! hit. Ties go by name, so that every run decides alike.

use super::Policy;
use crate::base::BlockId;
use crate::storage::hierarchy::BlockMap;
use std::collections::BTreeSet;

/// Evicts the block with the furthest next use.
#[derive(Debug, Default)]
pub struct Planned {
    order: BTreeSet<(u64, BlockId)>,
    next_uses: BlockMap<u64>,
}

impl Policy for Planned {
    fn name(&self) -> &'static str {
        "planned"
    }

    fn accessed(&mut self, _block: BlockId) {}

    fn offer(&mut self, block: BlockId, next_use: u64) {
        self.next_uses.insert(block, next_use);
        self.order.insert((next_use, block));
    }

    fn withdraw(&mut self, block: BlockId) {
        if let Some(next_use) = self.next_uses.remove(&block) {
            self.order.remove(&(next_use, block));
        }
    }

    fn victim(&mut self, later_than: Option<u64>) -> Option<BlockId> {
        let (next_use, block) = self.order.last()?;
        (later_than.is_none_or(|limit| *next_use > limit)).then_some(*block)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::block;
    use super::*;

    #[test]
    fn the_furthest_next_use_leaves_first() {
        let mut policy = Planned::default();
        for (expert, next_use) in [(0, 50), (1, u64::MAX), (2, 7), (3, 50)] {
            policy.offer(block(expert), next_use);
        }
        let mut order = Vec::new();
        while let Some(victim) = policy.victim(None) {
            policy.withdraw(victim);
            order.push(victim);
        }
        assert_eq!(order, [block(1), block(3), block(0), block(2)]);
    }
}
