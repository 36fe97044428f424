//! Law 2: a dirty block is never dropped unwritten, whatever fails, and a flush commits exactly
//! the state of its moment.

use crate::tiers_world::{Setup, World};
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn nothing_dirty_is_lost_when_transfers_fail(
        seed in any::<u64>(),
        largest in 1usize..4,
        spare in 0usize..5,
        open in 1usize..12,
        faults in 1usize..40,
        policy in 0usize..7,
    ) {
        let setup = Setup { seed, blocks: 8, largest, spare, open, tickets: 80, faults, policy };
        World::new(&setup).run();
    }
}

#[test]
fn faults_do_happen_and_tickets_fail_by_them() {
    let (mut failed, mut served) = (0, 0);
    for seed in 0..20 {
        let setup = Setup {
            seed,
            blocks: 8,
            largest: 2,
            spare: 1,
            open: 8,
            tickets: 100,
            faults: 10,
            policy: 0,
        };
        let mut world = World::new(&setup);
        world.run();
        failed += world.failed;
        served += world.served;
    }
    assert!(failed > 20 && served > 500, "{failed} failed, {served} served");
}
