//! Which expert's state stays in memory, which travels behind the backward pass, and which
//! travels in the next forward pass, its gradient waiting that long.
//!
//! Each kind is spread evenly over the layers, so that the disk has the same to do all along. (What
//! a policy kept by itself would be the blocks that a sweep uses first, and the disk would rest
//! while these are used.)

/// How many of a rank's states stay and how many updates are carried over, of how many.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Spread {
    pub blocks: usize,
    pub kept: usize,
    pub carried: usize,
}

impl Spread {
    /// Whether the state of block `index`, counted through the layers, stays in memory.
    pub fn is_kept(&self, index: usize) -> bool {
        is_hit(index, self.kept, self.blocks)
    }

    /// Whether its update waits for the next forward pass.
    pub fn is_carried(&self, index: usize) -> bool {
        let kept_before = hits(index, self.kept, self.blocks);
        let travelling = self.blocks - self.kept.min(self.blocks);
        !self.is_kept(index) && is_hit(index - kept_before, self.carried, travelling)
    }
}

/// How many of the first `n` are hit where `count` of `of` are, as evenly as can be.
fn hits(n: usize, count: usize, of: usize) -> usize {
    (n * count.min(of)).checked_div(of).unwrap_or(0)
}

fn is_hit(index: usize, count: usize, of: usize) -> bool {
    hits(index + 1, count, of) > hits(index, count, of)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn counts_are_kept_and_spread_evenly(
            blocks in 1usize..600, kept in 0usize..700, carried in 0usize..700, layers in 1usize..9
        ) {
            let spread = Spread { blocks, kept, carried };
            let travelling = blocks - kept.min(blocks);
            let all = |is: fn(&Spread, usize) -> bool| {
                (0..blocks).filter(|index| is(&spread, *index)).collect::<Vec<_>>()
            };
            let (stay, wait) = (all(Spread::is_kept), all(Spread::is_carried));
            prop_assert_eq!(stay.len(), kept.min(blocks));
            prop_assert_eq!(wait.len(), carried.min(travelling));
            prop_assert!(stay.iter().all(|index| !wait.contains(index)));
            let share = blocks.div_ceil(layers);
            for layer in (0..blocks).step_by(share) {
                let here = |of: &[usize]| {
                    of.iter().filter(|index| (layer..layer + share).contains(index)).count()
                };
                prop_assert!(here(&stay) <= stay.len() * share / blocks + 1);
                prop_assert!(here(&wait) <= wait.len() * (share + 1) / travelling.max(1) + 1);
            }
        }
    }
}
