//! Which sequence of which source stands at a position: pure functions of the seed.
//!
//! Nothing here keeps state, so a position is all that a resume needs, and no table grows with
//! the data.

/// A well-mixed 64-bit value of `(seed, a, b)` (the finaliser of splitmix64, applied thrice).
pub fn hash(seed: u64, a: u64, b: u64) -> u64 {
    fn mix(mut x: u64) -> u64 {
        x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }
    mix(mix(mix(seed) ^ a) ^ b)
}

/// A seeded permutation of `0..n`, evaluated at `i`: a Feistel network over the next even power
/// of two, walked until it falls inside (Black and Rogaway, 2002). `i < n`.
pub fn permute(seed: u64, n: u64, i: u64) -> u64 {
    const ROUNDS: u64 = 6;
    if n <= 1 {
        return 0;
    }
    let bits = 64 - (n - 1).leading_zeros();
    let half = bits.div_ceil(2);
    let mask = (1u64 << half) - 1;
    let mut x = i;
    loop {
        let (mut left, mut right) = (x >> half, x & mask);
        for round in 0..ROUNDS {
            (left, right) = (right, left ^ (hash(seed, round, right) & mask));
        }
        x = (left << half) | right;
        // The network permutes a set that holds 0..n, so the walk comes back inside.
        if x < n {
            return x;
        }
    }
}

/// Divides `0..total` into two sets, the smaller spread evenly over the whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Split {
    total: u64,
    held_out: u64,
}

impl Split {
    /// `held_out` of `total` go to validation.
    pub fn new(total: u64, held_out: u64) -> Self {
        Self { total, held_out: held_out.min(total) }
    }

    pub fn train(&self) -> u64 {
        self.total - self.held_out
    }

    pub fn held_out(&self) -> u64 {
        self.held_out
    }

    /// How many of the first `i` are held out.
    fn held_before(&self, i: u64) -> u64 {
        (u128::from(i) * u128::from(self.held_out) / u128::from(self.total.max(1))) as u64
    }

    /// The `k`-th that is held out.
    pub fn nth_held_out(&self, k: u64) -> u64 {
        self.first(|i| self.held_before(i + 1) > k)
    }

    /// The `k`-th that is trained on.
    pub fn nth_train(&self, k: u64) -> u64 {
        self.first(|i| i + 1 - self.held_before(i + 1) > k)
    }

    /// The least `i` for which `holds`, which is false up to some point and true from there on.
    fn first(&self, holds: impl Fn(u64) -> bool) -> u64 {
        let (mut low, mut high) = (0, self.total.saturating_sub(1));
        while low < high {
            let middle = low + (high - low) / 2;
            if holds(middle) {
                high = middle;
            } else {
                low = middle + 1;
            }
        }
        low
    }
}

/// Whether item `i` is held out when a share `fraction` of all items is, the last of each
/// `1/fraction` items.
pub fn is_held_out(i: u64, fraction: f64) -> bool {
    ((i + 1) as f64 * fraction).floor() > (i as f64 * fraction).floor()
}

/// Slots of one round of the mixture.
const ROUND: usize = 4096;

/// A fixed order in which sources take turns, by share.
#[derive(Debug, Clone)]
pub struct Mixture {
    /// Of each slot of a round: the source, and how many slots before it are that source's.
    slots: Vec<(u16, u32)>,
    /// Slots a round of each source.
    quota: Vec<u64>,
}

impl Mixture {
    /// `shares` are positive and need not sum to one. Shares are kept to within 1/4096, and no
    /// source is left out. Turns are spread evenly (smooth weighted round robin).
    pub fn new(shares: &[f64]) -> Self {
        let round = if shares.len() == 1 { 1 } else { ROUND.max(shares.len()) };
        let total: f64 = shares.iter().sum();
        let exact: Vec<f64> = shares.iter().map(|s| s / total * round as f64).collect();
        let mut quota: Vec<u64> = exact.iter().map(|e| (e.floor() as u64).max(1)).collect();
        // Largest remainder; where the least of one took too many, the largest gives them back.
        let mut order: Vec<usize> = (0..shares.len()).collect();
        order.sort_by(|&a, &b| exact[b].fract().total_cmp(&exact[a].fract()).then(a.cmp(&b)));
        for &source in order.iter().cycle().take(round) {
            if quota.iter().sum::<u64>() >= round as u64 {
                break;
            }
            quota[source] += 1;
        }
        while quota.iter().sum::<u64>() > round as u64 {
            let Some(largest) = (0..quota.len()).max_by_key(|&i| quota[i]) else { break };
            quota[largest] -= 1;
        }
        let mut credit = vec![0i64; quota.len()];
        let mut taken = vec![0u32; quota.len()];
        let mut slots = Vec::with_capacity(round);
        for _ in 0..round {
            let mut best = 0;
            for i in 0..quota.len() {
                credit[i] += quota[i] as i64;
                if credit[i] > credit[best] {
                    best = i;
                }
            }
            credit[best] -= round as i64;
            slots.push((best as u16, taken[best]));
            taken[best] += 1;
        }
        Self { slots, quota }
    }

    /// The source at `position`, and how many earlier positions are that source's.
    pub fn at(&self, position: u64) -> (usize, u64) {
        let round = self.slots.len() as u64;
        let (source, rank) = self.slots[(position % round) as usize];
        let source = usize::from(source);
        (source, position / round * self.quota[source] + u64::from(rank))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn permute_is_a_permutation(seed: u64, n in 1u64..2000) {
            let mut seen = vec![false; n as usize];
            for i in 0..n {
                let at = permute(seed, n, i) as usize;
                prop_assert!(!std::mem::replace(&mut seen[at], true));
            }
        }

        #[test]
        fn a_split_is_a_partition(total in 1u64..500, share in 0.0f64..1.0) {
            let split = Split::new(total, (total as f64 * share) as u64);
            let mut all: Vec<u64> = (0..split.train()).map(|k| split.nth_train(k)).collect();
            all.extend((0..split.held_out()).map(|k| split.nth_held_out(k)));
            all.sort_unstable();
            prop_assert_eq!(all, (0..total).collect::<Vec<_>>());
        }

        #[test]
        fn a_mixture_counts_its_turns(shares in prop::collection::vec(0.01f64..10.0, 1..6)) {
            let mixture = Mixture::new(&shares);
            let mut counts = vec![0u64; shares.len()];
            for position in 0..10_000 {
                let (source, before) = mixture.at(position);
                prop_assert_eq!(before, counts[source]);
                counts[source] += 1;
            }
            let total: f64 = shares.iter().sum();
            for (count, share) in counts.iter().zip(&shares) {
                let expected = share / total * 10_000.0;
                prop_assert!((*count as f64 - expected).abs() <= 8.0 + shares.len() as f64);
            }
        }
    }

    #[test]
    fn permutations_differ_by_seed_and_move_things() {
        let order = |seed| (0..100).map(|i| permute(seed, 100, i)).collect::<Vec<_>>();
        assert_ne!(order(1), order(2));
        assert!(order(1).iter().enumerate().filter(|(i, at)| *i as u64 == **at).count() < 10);
    }
}
