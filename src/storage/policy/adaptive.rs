//! `adaptive`: `lfu` with the memory that would have missed least of late.
//!
//! How fast old uses should fade depends on the text: within one the habits of hundreds of tokens
//! count, and at the turn to another the last few do. So a few spans are tried side by side, each
//! on a cache of names alone as large as the real one, and the real one follows the best. (Following
//! the best of simulated policies: Ari et al., "ACME: adaptive caching using multiple experts", 2002.)

use super::Policy;
use super::counts::Counts;
use super::order::Order;
use crate::base::BlockId;
use crate::storage::hierarchy::BlockMap;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::collections::binary_heap::PeekMut;

/// Accesses after which uses count half: from about `lru` to the habits of a long text.
const SPANS: [u64; 4] = [128, 512, 2048, 8192];
/// Accesses between two choices of a span; misses before them count [`FADE`] as much.
const TERM: u64 = 256;
const FADE: f64 = 0.9;
/// A span has to miss so much less to be preferred: what was kept for another is lost at a change.
const BETTER: f64 = 0.98;

/// A cache of names under one span. Every token asks, seldom somebody leaves: so scores are looked up
/// when one has to.
#[derive(Debug, Default)]
struct Ghost {
    now: u64,
    /// Those inside, by score (as it was when somebody last looked, and it only grows), then by when they
    /// came.
    inside: BinaryHeap<Reverse<(u64, u64, BlockId)>>,
    misses: f64,
}

impl Ghost {
    fn enter(&mut self, block: BlockId, score: f64) {
        self.now += 1;
        self.misses += 1.0;
        self.inside.push(Reverse((score.to_bits(), self.now, block)));
    }

    /// Takes out the block with the least score.
    fn leave(&mut self, score: impl Fn(BlockId) -> f64) -> Option<BlockId> {
        loop {
            let mut top = self.inside.peek_mut()?;
            let Reverse((kept, _, block)) = *top;
            let now = score(block).to_bits();
            if now == kept {
                PeekMut::pop(top);
                return Some(block);
            }
            top.0.0 = now;
        }
    }

    /// Scores were made smaller.
    fn score_all(&mut self, score: impl Fn(BlockId) -> f64) {
        let inside = std::mem::take(&mut self.inside).into_iter();
        self.inside = inside
            .map(|Reverse((_, at, block))| Reverse((score(block).to_bits(), at, block)))
            .collect();
    }
}

/// See the module.
#[derive(Debug)]
pub struct Adaptive {
    slots: usize,
    counts: Counts<{ SPANS.len() }>,
    ghosts: [Ghost; SPANS.len()],
    /// In which ghosts a block is.
    inside: BlockMap<[bool; SPANS.len()]>,
    /// The real blocks in the order of the span that leads.
    order: Order,
    leader: usize,
    accesses: u64,
}

impl Adaptive {
    /// For a cache of `slots` blocks; uses count `beta` (0 < beta <= 1) as much after a span.
    pub fn new(slots: u32, beta: f64) -> Self {
        Self {
            slots: slots as usize,
            counts: Counts::new(beta, SPANS),
            ghosts: Default::default(),
            inside: BlockMap::default(),
            order: Order::default(),
            leader: 1,
            accesses: 0,
        }
    }

    /// Shows the ghosts an access.
    fn haunt(&mut self, block: BlockId, scores: &[f64; SPANS.len()]) {
        let inside = self.inside.entry(block).or_default();
        let was = std::mem::replace(inside, [true; SPANS.len()]);
        for (span, ghost) in self.ghosts.iter_mut().enumerate().filter(|(span, _)| !was[*span]) {
            if ghost.inside.len() >= self.slots
                && let Some(victim) = ghost.leave(|block| self.counts.score(block, span))
                && let Some(inside) = self.inside.get_mut(&victim)
            {
                inside[span] = false;
            }
            ghost.enter(block, scores[span]);
        }
    }

    fn choose(&mut self) {
        let misses = |span: usize| self.ghosts[span].misses;
        let best = (0..SPANS.len()).min_by(|a, b| misses(*a).total_cmp(&misses(*b)));
        if let Some(best) = best.filter(|best| misses(*best) < BETTER * misses(self.leader)) {
            self.leader = best;
            self.order.score_all(|block| self.counts.score(block, best));
        }
        self.ghosts.iter_mut().for_each(|ghost| ghost.misses *= FADE);
    }
}

impl Policy for Adaptive {
    fn name(&self) -> &'static str {
        "adaptive"
    }

    fn accessed(&mut self, block: BlockId) {
        let (scores, scaled) = self.counts.add(block);
        for span in (0..SPANS.len()).filter(|span| scaled[*span]) {
            let score = |block| self.counts.score(block, span);
            self.ghosts[span].score_all(score);
            if span == self.leader {
                self.order.score_all(score);
            }
        }
        self.order.score(block, scores[self.leader]);
        self.haunt(block, &scores);
        self.accesses += 1;
        if self.accesses.is_multiple_of(TERM) {
            self.choose();
        }
    }

    fn offer(&mut self, block: BlockId, next_use: u64) {
        self.order.offer(block, self.counts.score(block, self.leader), next_use);
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
    fn a_ghost_lets_the_least_go_first_whatever_scores_were_divided_by() {
        let mut ghost = Ghost::default();
        let mut scores = [2.0, 1.0, 4.0];
        (0..3).for_each(|b| ghost.enter(block(b), scores[b]));
        scores.iter_mut().for_each(|score| *score /= 4.0);
        ghost.score_all(|block| scores[usize::from(block.expert)]);
        // Comes with more than the others have now, and less than they had.
        ghost.enter(block(3), 0.75);
        // Grew since it was looked at.
        let scores = [scores[0], 0.8, scores[2], 0.75];
        let mut leave = || ghost.leave(|block| scores[usize::from(block.expert)]);
        let order = [(); 5].map(|()| leave());
        assert_eq!(order, [Some(0), Some(3), Some(1), Some(2), None].map(|b| b.map(block)));
    }

    /// Misses of a cache of `slots` under `policy`.
    fn misses(policy: &mut dyn Policy, slots: usize, accesses: &[usize]) -> usize {
        let mut residents = Vec::new();
        let mut misses = 0;
        for expert in accesses {
            let block = block(*expert);
            policy.accessed(block);
            if residents.contains(&block) {
                continue;
            }
            misses += 1;
            if residents.len() == slots {
                let victim = policy.victim(None).unwrap();
                policy.withdraw(victim);
                policy.evicted(victim);
                residents.retain(|resident| *resident != victim);
            }
            residents.push(block);
            policy.offer(block, u64::MAX);
        }
        misses
    }

    /// Texts of `length` accesses: each has favourites of its own among 64 experts, and strays.
    fn texts(length: usize) -> Vec<usize> {
        let mut state = 7u64;
        let mut draw = |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            ((state >> 33) % below) as usize
        };
        let mut accesses = Vec::new();
        for text in 0..40_000 / length {
            for _ in 0..length {
                let favourite = (text * 23 + draw(14) * 5) % 64;
                accesses.push(if draw(3) == 0 { draw(64) } else { favourite });
            }
        }
        accesses
    }

    #[test]
    fn it_comes_near_the_best_span_for_long_texts_and_for_short_ones() {
        for length in [800, 20_000] {
            let accesses = texts(length);
            let one = |span| misses(&mut super::super::Lfu::new(0.5, span), 16, &accesses);
            let fixed = SPANS.map(one);
            let best = *fixed.iter().min().unwrap();
            let worst = *fixed.iter().max().unwrap();
            let found = misses(&mut Adaptive::new(16, 0.5), 16, &accesses);
            assert!(found as f64 <= 1.05 * best as f64, "{length}: {found} {fixed:?}");
            assert!(worst as f64 > 1.1 * best as f64, "the texts must tell spans apart: {fixed:?}");
        }
    }
}
