//! Law 1: nothing computes before its blocks are resident, and resident bytes never exceed the
//! budget; with the storage half of law 8: with the smallest accepted budget, every interleaving
//! ends.

use crate::tiers_world::{Setup, World};
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn every_interleaving_ends_within_the_smallest_budget(
        seed in any::<u64>(),
        largest in 1usize..4,
        open in 1usize..12,
        policy in 0usize..7,
    ) {
        let setup =
            Setup { seed, blocks: 7, largest, spare: 0, open, tickets: 60, faults: 0, policy };
        World::new(&setup).run();
    }

    #[test]
    fn blocks_are_there_when_they_are_granted(
        seed in any::<u64>(),
        largest in 1usize..4,
        spare in 0usize..6,
        open in 1usize..20,
        policy in 0usize..7,
    ) {
        let setup =
            Setup { seed, blocks: 9, largest, spare, open, tickets: 80, faults: 0, policy };
        World::new(&setup).run();
    }
}
