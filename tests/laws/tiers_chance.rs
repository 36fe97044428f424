//! Chance for the tiers' tests: a seeded generator, and a policy that answers at random.

use semoe::base::BlockId;
use semoe::storage::policy::Policy;

/// SplitMix64.
pub struct Rng(pub u64);

impl Rng {
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.draw() % n as u64) as usize
    }

    pub fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }
}

/// A policy that answers what it likes: nothing, or blocks that it was never offered.
pub struct Liar(pub Rng);

impl Policy for Liar {
    fn name(&self) -> &'static str {
        "liar"
    }
    fn accessed(&mut self, _: BlockId) {}
    fn offer(&mut self, _: BlockId, _: u64) {}
    fn withdraw(&mut self, _: BlockId) {}
    fn victim(&mut self, _: Option<u64>) -> Option<BlockId> {
        let block = BlockId::weights(0, self.0.below(12));
        self.0.chance(70).then_some(block)
    }
}
