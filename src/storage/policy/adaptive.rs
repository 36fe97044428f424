//! `adaptive`: `lfu` with the memory that would have missed least of late.
//!
//! How fast old uses should fade depends on the text: within one the habits of hundreds of tokens
//! count, and at the turn to another the last few do. So a few spans are tried side by side, each
//! on a cache of names alone as large as the real one, and the real one follows the best. (Following
//! the best of simulated policies: Ari et al., "ACME: adaptive caching using multiple experts", 2002.)

use super::Policy;
use super::lfu::Counts;
use crate::base::BlockId;
use crate::storage::hierarchy::BlockMap;

/// Accesses after which uses count half: from about `lru` to the habits of a long text.
const SPANS: [u64; 4] = [128, 512, 2048, 8192];
/// Accesses between two choices of a span; misses before them count [`FADE`] as much.
const TERM: u64 = 256;
const FADE: f64 = 0.9;
/// A span has to miss so much less to be preferred: what was kept for another is lost at a change.
const BETTER: f64 = 0.98;

/// A cache of names under one span.
#[derive(Debug)]
struct Ghost {
    counts: Counts,
    residents: BlockMap<()>,
    misses: f64,
}

impl Ghost {
    fn access(&mut self, block: BlockId, slots: usize) {
        self.counts.add(block);
        if self.residents.contains_key(&block) {
            return;
        }
        self.misses += 1.0;
        if self.residents.len() >= slots
            && let Some(victim) = self.counts.least(0.0, None)
        {
            self.counts.withdraw(victim);
            self.residents.remove(&victim);
        }
        self.residents.insert(block, ());
        self.counts.offer(block, u64::MAX);
    }
}

/// See the module.
#[derive(Debug)]
pub struct Adaptive {
    slots: usize,
    ghosts: [Ghost; SPANS.len()],
    /// The real blocks in the order of each span.
    real: [Counts; SPANS.len()],
    leader: usize,
    accesses: u64,
}

impl Adaptive {
    /// For a cache of `slots` blocks; uses count `beta` (0 < beta <= 1) as much after a span.
    pub fn new(slots: u32, beta: f64) -> Self {
        let counts = || SPANS.map(|span| Counts::new(beta, span));
        Self {
            slots: slots as usize,
            ghosts: counts().map(|counts| Ghost {
                counts,
                residents: BlockMap::default(),
                misses: 0.0,
            }),
            real: counts(),
            leader: 1,
            accesses: 0,
        }
    }

    fn choose(&mut self) {
        let misses = |span: usize| self.ghosts[span].misses;
        let best = (0..SPANS.len()).min_by(|a, b| misses(*a).total_cmp(&misses(*b)));
        if let Some(best) = best.filter(|best| misses(*best) < BETTER * misses(self.leader)) {
            self.leader = best;
        }
        self.ghosts.iter_mut().for_each(|ghost| ghost.misses *= FADE);
    }
}

impl Policy for Adaptive {
    fn name(&self) -> &'static str {
        "adaptive"
    }

    fn accessed(&mut self, block: BlockId) {
        self.ghosts.iter_mut().for_each(|ghost| ghost.access(block, self.slots));
        self.real.iter_mut().for_each(|counts| counts.add(block));
        self.accesses += 1;
        if self.accesses.is_multiple_of(TERM) {
            self.choose();
        }
    }

    fn offer(&mut self, block: BlockId, next_use: u64) {
        self.real.iter_mut().for_each(|counts| counts.offer(block, next_use));
    }

    fn withdraw(&mut self, block: BlockId) {
        self.real.iter_mut().for_each(|counts| counts.withdraw(block));
    }

    fn hour(&mut self, now: u64) {
        self.real.iter_mut().for_each(|counts| counts.hour(now));
    }

    fn victim(&mut self, later_than: Option<u64>) -> Option<BlockId> {
        self.real[self.leader].victim(later_than)
    }

    fn victim_for(&mut self, next_use: u64) -> Option<BlockId> {
        self.real[self.leader].victim_for(next_use)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::block;
    use super::*;

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
