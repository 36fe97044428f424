//! The blocks on offer, in the order of their scores and of their next uses.

use super::SEARCH;
use crate::base::{BlockId, Part};
use crate::storage::hierarchy::BlockMap;
use std::collections::BTreeSet;

/// The first block of all.
const LOWEST: BlockId = BlockId { layer: 0, expert: 0, part: Part::Weights };

/// See the module. Scores are those of [`super::counts::Counts`].
#[derive(Debug, Default)]
pub(super) struct Order {
    now: u64,
    /// The planner's hour, where it tells.
    hour: Option<u64>,
    offers: BlockMap<Offer>,
    /// By score, then by the time of the offer.
    order: BTreeSet<(u64, u64, BlockId)>,
    /// Those of which the next use is known: by that, then as above.
    known: BTreeSet<(u64, u64, u64, BlockId)>,
}

#[derive(Debug, Clone, Copy)]
struct Offer {
    /// The bits of a score.
    score: u64,
    at: u64,
    next_use: u64,
}

impl Order {
    /// `block` may leave; it is not on offer.
    pub fn offer(&mut self, block: BlockId, score: f64, next_use: u64) {
        self.now += 1;
        self.insert(block, Offer { score: score.to_bits(), at: self.now, next_use });
    }

    pub fn withdraw(&mut self, block: BlockId) {
        self.remove(block);
    }

    /// The score of `block`, if it is on offer, is `score` from now on.
    pub fn score(&mut self, block: BlockId, score: f64) {
        if let Some(offer) = self.remove(block) {
            self.insert(block, Offer { score: score.to_bits(), ..offer });
        }
    }

    /// All scores are others from now on.
    pub fn score_all(&mut self, score: impl Fn(BlockId) -> f64) {
        self.order.clear();
        self.known.clear();
        for (block, offer) in std::mem::take(&mut self.offers) {
            self.insert(block, Offer { score: score(block).to_bits(), ..offer });
        }
    }

    fn insert(&mut self, block: BlockId, offer: Offer) {
        let Offer { score, at, next_use } = offer;
        self.offers.insert(block, offer);
        self.order.insert((score, at, block));
        if next_use != u64::MAX {
            self.known.insert((next_use, score, at, block));
        }
    }

    fn remove(&mut self, block: BlockId) -> Option<Offer> {
        let offer = self.offers.remove(&block)?;
        self.order.remove(&(offer.score, offer.at, block));
        if offer.next_use != u64::MAX {
            self.known.remove(&(offer.next_use, offer.score, offer.at, block));
        }
        Some(offer)
    }

    pub fn hour(&mut self, now: u64) {
        self.hour = Some(now);
    }

    fn next_use(&self, block: &BlockId) -> u64 {
        self.offers.get(block).map_or(u64::MAX, |offer| offer.next_use)
    }

    /// The block with the least score of at least `from`.
    pub fn least(&self, from: f64, later_than: Option<u64>) -> Option<BlockId> {
        let from = (from.to_bits(), 0, LOWEST);
        let mut candidates = self.order.range(from..).map(|(_, _, block)| *block);
        let Some(limit) = later_than else {
            let first = candidates.next()?;
            // What was foreseen for an hour that has not passed has not had its chance yet.
            let awaited = |block: &BlockId| {
                let next_use = self.next_use(block);
                next_use != u64::MAX && self.hour.is_some_and(|hour| next_use >= hour)
            };
            let mut rest = std::iter::once(first).chain(candidates).take(SEARCH);
            return rest.find(|block| !awaited(block)).or(Some(first));
        };
        candidates.take(SEARCH).find(|block| self.next_use(block) > limit)
    }

    /// As [`super::Policy::victim`], where what is known of next uses comes first.
    pub fn victim(&self, later_than: Option<u64>) -> Option<BlockId> {
        let later = later_than.and_then(|limit| self.furthest().filter(|(at, _)| *at > limit));
        later.map(|(_, block)| block).or_else(|| self.least(0.0, later_than))
    }

    /// As [`super::Policy::victim_for`].
    pub fn victim_for(&self, next_use: u64) -> Option<BlockId> {
        if next_use == u64::MAX {
            return self.least(0.0, None);
        }
        let furthest = || self.furthest().map(|(_, block)| block);
        self.missed().or_else(furthest).or_else(|| self.least(0.0, None))
    }

    /// Of the blocks whose known next use is furthest the one with the least score, and when that use is.
    fn furthest(&self) -> Option<(u64, BlockId)> {
        let (last, ..) = self.known.last()?;
        let first = self.known.range((*last, 0, 0, LOWEST)..).next();
        first.map(|(at, .., block)| (*at, *block))
    }

    /// Of some blocks whose known next use did not come the one with the least score.
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
}
