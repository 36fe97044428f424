//! Law 8: with the smallest accepted budget, on every simulated interleaving, the run ends: no
//! deadlock.
//!
//! Two mutations show that the simulation sees a deadlock where there is one.

use crate::ranks_world::{Ends, Kind, Setting, simulate};
use semoe::graph::Schedule;

const SEEDS: u64 = 1500;

#[test]
fn every_interleaving_with_the_smallest_budget_ends() {
    for seed in 0..SEEDS {
        let setting = Setting::sound(seed);
        assert_eq!(simulate(seed, &setting), Ends::Finished, "seed {seed} {setting:?}");
    }
}

#[test]
fn whatever_fails_whenever_it_fails_every_rank_comes_to_rest() {
    let mut drained = 0;
    for seed in 0..SEEDS {
        let setting = Setting { fault: Some(1 + seed * 7 % 400), ..Setting::sound(seed) };
        let ends = simulate(seed, &setting);
        assert_ne!(ends, Ends::Deadlock, "seed {seed} {setting:?}");
        drained += u64::from(ends == Ends::Drained);
    }
    assert!(drained > SEEDS / 2, "only {drained} of the runs met their fault");
}

/// How many of 100 interleavings of a mutated setting deadlock.
fn deadlocks(mutate: impl Fn(Setting) -> Setting) -> usize {
    let overlapped = |seed| Setting { schedule: Schedule::Overlapped, ..Setting::sound(seed) };
    (0..100).filter(|seed| simulate(*seed, &mutate(overlapped(*seed))) == Ends::Deadlock).count()
}

#[test]
fn a_memory_that_grants_in_part_is_seen_to_deadlock() {
    let count = deadlocks(|setting| Setting { memory: Kind::Partial, credits: 3, ..setting });
    assert!(count > 50, "{count}");
}

#[test]
fn exchanges_outside_the_sequence_are_seen_to_deadlock() {
    let count = deadlocks(|setting| Setting { sequenced: false, ranks: 3, credits: 1, ..setting });
    assert!(count > 10, "{count}");
}
