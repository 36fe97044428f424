//! `lru`: the block that was not used for the longest time leaves.

use super::{Policy, SEARCH};
use crate::base::BlockId;
use crate::storage::hierarchy::BlockMap;
use std::collections::BTreeSet;

/// Evicts the least recently used block. Being offered after a lease counts as its use, so the
/// order is that in which leases end.
#[derive(Debug, Default)]
pub struct Lru {
    now: u64,
    order: BTreeSet<(u64, BlockId)>,
    /// When the block was offered, and its next use.
    offered: BlockMap<(u64, u64)>,
}

impl Policy for Lru {
    fn name(&self) -> &'static str {
        "lru"
    }

    fn accessed(&mut self, _block: BlockId) {}

    fn offer(&mut self, block: BlockId, next_use: u64) {
        self.now += 1;
        self.offered.insert(block, (self.now, next_use));
        self.order.insert((self.now, block));
    }

    fn withdraw(&mut self, block: BlockId) {
        if let Some((at, _)) = self.offered.remove(&block) {
            self.order.remove(&(at, block));
        }
    }

    fn victim(&mut self, later_than: Option<u64>) -> Option<BlockId> {
        let Some(limit) = later_than else {
            return self.order.first().map(|(_, block)| *block);
        };
        let is_later = |block: &BlockId| self.offered.get(block).is_some_and(|(_, n)| *n > limit);
        self.order.iter().take(SEARCH).map(|(_, block)| *block).find(is_later)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::block;
    use super::*;

    #[test]
    fn the_longest_unused_leaves_first() {
        let mut policy = Lru::default();
        for expert in [2, 0, 1] {
            policy.offer(block(expert), 0);
        }
        policy.withdraw(block(2));
        policy.offer(block(2), 0);
        assert_eq!(policy.victim(None), Some(block(0)));
    }
}
