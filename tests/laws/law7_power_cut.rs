//! Law 7 without a kernel that survives: whatever a power cut at any moment leaves of what was
//! not synced, the store opens at its last commit with every block of it and of every named
//! checkpoint. (`tests/resume_after_kill.rs` has the kills.)
//!
//! A mutation test shows that each sync is needed: without any one of them this test fails.

use crate::power_run::{History, Run, State, content, meta_of, spec};
use crate::tiers_world::Rng;
use semoe::base::checksum;
use semoe::storage::commit::Barrier;
use semoe::storage::disk::FileId;
use semoe::storage::store::{Checkpoint, Store};
use semoe::storage::twin::{Disk, Effect, Fate, Image, Omission, Recorder};

/// Steps with a commit after every second and a named checkpoint after every fourth.
fn go_on(run: &mut Run<Recorder>, steps: usize) {
    for nth in 1..=steps {
        run.train();
        if nth % 2 == 0 {
            run.commit();
        }
        if nth % 4 == 0 {
            run.keep();
        }
    }
}

fn whole_run(omit: Option<Omission>, seed: u64) -> Run<Recorder> {
    let mut run = Run::over(Image::default(), Default::default(), omit, seed);
    go_on(&mut run, 12);
    run
}

/// Opens what a power cut left, and compares it with what was promised.
fn check(image: &Image, history: &History, effects: usize) -> Result<State, String> {
    let recorder = Recorder::over(image.clone(), None);
    let store = Store::over(Box::new(recorder), &spec()).map_err(|e| e.to_string())?;
    let found =
        State { committed: store.committed(), kept: store.checkpoints().into_iter().collect() };
    let allowed = history.allowed(effects);
    if !allowed.contains(&found) {
        return Err(format!("found {found:?} where {allowed:?} was promised"));
    }
    if let Some(step) = found.committed {
        let commit = store.last_commit().map_err(|e| e.to_string())?;
        compare(image, history, step, &commit)?;
        // What a resume reads is what the commit holds.
        for block in history.contents[&step].keys() {
            let located = store.locate(*block).map_err(|e| e.to_string())?;
            if located != commit.locate(*block) {
                return Err(format!("{block} is found elsewhere than in the commit"));
            }
        }
    }
    for (name, step) in &found.kept {
        compare(image, history, *step, &store.open_checkpoint(name).map_err(|e| e.to_string())?)?;
    }
    Ok(found)
}

fn compare(image: &Image, history: &History, step: u64, view: &Checkpoint) -> Result<(), String> {
    let blocks = &history.contents[&step];
    if view.step != step || view.meta != meta_of(step).as_bytes() {
        return Err(format!("step {step} has other facts"));
    }
    if view.blocks().count() != blocks.len() {
        return Err(format!("step {step} has {} blocks", view.blocks().count()));
    }
    for (block, value) in blocks {
        let located = view.locate(*block).ok_or(format!("step {step} lacks {block}"))?;
        let bytes = image.read(located.extent);
        if bytes != content(*block, *value) || checksum::crc32c(&bytes) != located.crc {
            return Err(format!("{block} of step {step} is not what was written"));
        }
    }
    Ok(())
}

/// Calls `each` with the disk after every prefix of the run's effects.
fn at_every_prefix(run: &Run<Recorder>, mut each: impl FnMut(usize, &Disk)) {
    let (mut disk, log) = run.files.recorded();
    each(0, &disk);
    for (at, effect) in log.iter().enumerate() {
        disk.happen(effect);
        each(at + 1, &disk);
    }
}

#[test]
fn every_prefix_opens_at_its_last_commit() {
    let run = whole_run(None, 1);
    assert!(run.rewrites > 5 && run.spills > 5, "{} {}", run.rewrites, run.spills);
    let mut cases = 0;
    at_every_prefix(&run, |effects, disk| {
        for fate in [Fate::Dropped, Fate::Kept, Fate::Seeded(effects as u64)] {
            let image = disk.after_power_cut(fate);
            if let Err(why) = check(&image, &run.history, effects) {
                panic!("after {effects} effects, {fate:?}: {why}");
            }
            cases += 1;
        }
    });
    assert!(cases > 1_000, "{cases}");
}

#[test]
fn power_cuts_in_a_row_lose_nothing_either() {
    let mut cases = 0;
    let mut seed = 0;
    while cases < 1_000 {
        seed += 1;
        let mut rng = Rng(seed);
        let mut run = Run::over(Image::default(), Default::default(), None, seed);
        go_on(&mut run, 2);
        // Each run goes on from what the last power cut left.
        for _ in 0..4 {
            let steps = 1 + rng.below(5);
            go_on(&mut run, steps);
            let (mut disk, log) = run.files.recorded();
            let effects = rng.below(log.len() + 1);
            log[..effects].iter().for_each(|effect: &Effect| disk.happen(effect));
            let image = disk.after_power_cut(Fate::Seeded(rng.draw()));
            if let Err(why) = check(&image, &run.history, effects) {
                panic!("seed {seed}, after {effects} effects: {why}");
            }
            run = Run::over(image, run.history.contents, None, rng.draw());
            cases += 1;
        }
    }
}

#[test]
fn without_any_one_sync_a_power_cut_is_seen_to_lose_something() {
    let files = [FileId(0), FileId(1), FileId(2)].map(Omission::SyncData);
    let flushes = Barrier::ALL.map(Omission::Flush);
    let syncs = Barrier::ALL.map(Omission::Sync);
    for omission in files.into_iter().chain(flushes).chain(syncs) {
        let run = whole_run(Some(omission), 1);
        let mut lost = 0;
        at_every_prefix(&run, |effects, disk| {
            let fates = [Fate::Dropped, Fate::Seeded(effects as u64)];
            let failed = |fate| check(&disk.after_power_cut(fate), &run.history, effects).is_err();
            if lost == 0 && fates.into_iter().any(failed) {
                lost += 1;
            }
        });
        assert!(lost > 0, "nothing is lost without {omission:?}");
    }
}
