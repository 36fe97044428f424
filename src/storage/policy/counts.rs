//! Use counts that fade, for blocks in and out of the cache.
//!
//! All scores shrink alike, which changes no order. So instead of shrinking them, the weight of a
//! new use grows; decay then costs nothing however many blocks there are.

use crate::base::BlockId;
use crate::storage::hierarchy::BlockMap;

/// Beyond this weight all scores are scaled down, once, to stay clear of overflow.
const HEAVY: f64 = 1e150;

/// Counts of uses, side by side by N spans after which they fade. They are not negative, so that the order
/// of their bits is theirs.
///
/// A true count is its stored score divided by the span's weight.
#[derive(Debug)]
pub(super) struct Counts<const N: usize> {
    beta: f64,
    every: [u64; N],
    accesses: u64,
    weights: [f64; N],
    scores: BlockMap<[f64; N]>,
}

impl<const N: usize> Counts<N> {
    /// Counts are multiplied by `beta` every so many accesses.
    pub fn new(beta: f64, every: [u64; N]) -> Self {
        let every = every.map(|every| every.max(1));
        Self { beta, every, accesses: 0, weights: [1.0; N], scores: BlockMap::default() }
    }

    /// Counts a use of `block`. Answers its scores, and for which spans the scores of all blocks were scaled.
    pub fn add(&mut self, block: BlockId) -> ([f64; N], [bool; N]) {
        self.accesses += 1;
        let scaled = std::array::from_fn(|span| {
            self.accesses.is_multiple_of(self.every[span]) && self.decay(span)
        });
        let scores = self.scores.entry(block).or_insert([0.0; N]);
        scores.iter_mut().zip(&self.weights).for_each(|(score, weight)| *score += weight);
        (*scores, scaled)
    }

    pub fn score(&self, block: BlockId, span: usize) -> f64 {
        self.scores.get(&block).map_or(0.0, |scores| scores[span])
    }

    /// The score of `count` uses just now.
    pub fn worth(&self, count: f64, span: usize) -> f64 {
        count * self.weights[span]
    }

    pub fn forget(&mut self, block: BlockId) {
        self.scores.remove(&block);
    }

    /// Whether all scores of the span were scaled.
    fn decay(&mut self, span: usize) -> bool {
        self.weights[span] /= self.beta;
        let weight = self.weights[span];
        if weight <= HEAVY {
            return false;
        }
        self.scores.values_mut().for_each(|scores| scores[span] /= weight);
        self.weights[span] = 1.0;
        true
    }
}
