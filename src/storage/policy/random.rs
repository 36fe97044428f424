//! `random`: any block leaves. For tests, where the worst choices must do no harm, and as the
//! floor that other policies are compared with.

use super::{Policy, SEARCH};
use crate::base::BlockId;
use crate::storage::hierarchy::BlockMap;

/// Evicts a block drawn from a seeded sequence.
#[derive(Debug)]
pub struct Random {
    state: u64,
    offered: Vec<(BlockId, u64)>,
    places: BlockMap<usize>,
}

impl Random {
    pub fn new(seed: u64) -> Self {
        Self { state: seed, offered: Vec::new(), places: BlockMap::default() }
    }

    /// SplitMix64 (Steele, Lea, Flood 2014).
    fn draw(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.state ^ (self.state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

impl Policy for Random {
    fn name(&self) -> &'static str {
        "random"
    }

    fn accessed(&mut self, _block: BlockId) {}

    fn offer(&mut self, block: BlockId, next_use: u64) {
        self.places.insert(block, self.offered.len());
        self.offered.push((block, next_use));
    }

    fn withdraw(&mut self, block: BlockId) {
        let Some(place) = self.places.remove(&block) else {
            return;
        };
        self.offered.swap_remove(place);
        if let Some((moved, _)) = self.offered.get(place) {
            self.places.insert(*moved, place);
        }
    }

    fn victim(&mut self, later_than: Option<u64>) -> Option<BlockId> {
        if self.offered.is_empty() {
            return None;
        }
        let start = self.draw() as usize % self.offered.len();
        let from_start = self.offered.iter().cycle().skip(start);
        let is_later = |(_, next_use): &&(BlockId, u64)| later_than.is_none_or(|l| *next_use > l);
        let tries = self.offered.len().min(SEARCH);
        from_start.take(tries).find(is_later).map(|(block, _)| *block)
    }
}
