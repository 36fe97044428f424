//! Law 7 with the real files of a store, sled's among them: every write, length, name and sync is
//! recorded at the C library, power cuts are replayed, and what they leave is opened.
//!
//! `law7_power_cut` has every prefix of a longer run on a twin of the medium; this shows that the
//! real medium syncs what the twin's says.

use crate::file_calls::{self, Call};
use crate::file_disk::{Fate, Files, put};
use crate::power_run::{DataFiles, History, Run, State, content, meta_of, spec};
use semoe::storage::disk::Extent;
use semoe::storage::store::{Checkpoint, Store, StoreOptions};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Data files written as they are; the recording notes it.
struct Plain(Vec<File>);

impl DataFiles for Plain {
    fn begin_write(&self, extent: Extent, bytes: &[u8]) -> u64 {
        self.0[usize::from(extent.file.0)].write_all_at(bytes, extent.offset).unwrap();
        0
    }

    fn end_write(&self, _: u64) {}

    fn effects(&self) -> usize {
        file_calls::count()
    }
}

/// A folder in memory where there is one: syncing costs nothing there, and is noted all the same.
fn folder() -> tempfile::TempDir {
    let shm = Path::new("/dev/shm");
    let made = if shm.is_dir() { tempfile::tempdir_in(shm) } else { tempfile::tempdir() };
    made.unwrap()
}

fn record() -> (Vec<Call>, History) {
    let dir = folder();
    file_calls::start(&dir.path().canonicalize().unwrap());
    let path = dir.path().join("store");
    let store = Store::create(&path, &spec(), &StoreOptions::default()).unwrap();
    let open = |path: PathBuf| OpenOptions::new().write(true).open(path).unwrap();
    let files = Plain(store.files().into_iter().map(|file| open(file.path)).collect());
    let mut run = Run::new(store, files, BTreeMap::new(), 3);
    for nth in 1..=8 {
        run.train();
        if nth % 2 == 0 {
            run.commit();
        }
        if nth % 4 == 0 {
            run.keep();
        }
    }
    let history = run.history.clone();
    // Closing may write: that belongs to the recording.
    drop(run);
    (file_calls::stop(), history)
}

fn check(files: &Files, fate: Fate, history: &History, calls: usize) -> Result<(), String> {
    let dir = folder();
    put(&files.after_power_cut(fate), dir.path());
    let path = dir.path().join("store");
    let allowed = history.allowed(calls);
    let committed = |state: &State| state.committed.is_some();
    if !Store::is_in(&path) {
        let lost = allowed.iter().all(committed);
        return if lost { Err("the store has gone".to_owned()) } else { Ok(()) };
    }
    let why = |e: semoe::base::Error| e.to_string();
    let store = Store::open(&path, &StoreOptions::default()).map_err(why)?;
    let found =
        State { committed: store.committed(), kept: store.checkpoints().into_iter().collect() };
    if !allowed.contains(&found) {
        return Err(format!("found {found:?} where {allowed:?} was promised"));
    }
    let report = store.check().map_err(why)?;
    if !report.is_sound() {
        return Err(report.to_string());
    }
    let data: Vec<Vec<u8>> =
        store.files().iter().map(|file| std::fs::read(&file.path).unwrap()).collect();
    let compare = |step: u64, view: &Checkpoint| {
        let sound = view.meta == meta_of(step).as_bytes()
            && history.contents[&step].iter().all(|(block, value)| {
                view.locate(*block).is_some_and(|located| {
                    let Extent { file, offset, len } = located.extent;
                    let bytes = &data[usize::from(file.0)][offset as usize..][..len as usize];
                    bytes == content(*block, *value)
                })
            });
        if sound { Ok(()) } else { Err(format!("step {step} is not what was committed")) }
    };
    if let Some(step) = found.committed {
        compare(step, &store.last_commit().map_err(why)?)?;
    }
    found
        .kept
        .iter()
        .try_for_each(|(name, step)| compare(*step, &store.open_checkpoint(name).map_err(why)?))
}

/// A recording holds for the whole process, so one test does all.
#[test]
fn what_a_power_cut_leaves_of_the_files_opens_at_the_last_commit() {
    let (calls, history) = record();
    let synced = |call: &&Call| matches!(call, Call::SyncEnded(_));
    assert!(calls.len() > 500 && calls.iter().filter(synced).count() > 20, "{}", calls.len());
    let mut files = Files::default();
    let mut cases = 0;
    for (at, call) in calls.iter().enumerate() {
        files.happen(call);
        // What lies between two syncs differs by single writes: some of those, and every other.
        let done = at + 1;
        let write = matches!(call, Call::Write(..) | Call::WriteEnded(_));
        if write && done % 16 != 0 {
            continue;
        }
        for fate in [Fate::Dropped, Fate::Kept, Fate::Seeded(done as u64)] {
            if let Err(what) = check(&files, fate, &history, done) {
                panic!("after {done} of {} calls, {fate:?}: {what}", calls.len());
            }
            cases += 1;
        }
    }
    assert!(cases > 200, "{cases}");

    // Mutations: without the syncs of one file, something is lost.
    let mutants: [fn(&Path) -> bool; 4] = [
        |path| path == Path::new("store/weights.dat"),
        |path| path == Path::new("store/state.dat"),
        |path| path == Path::new("store/dense.dat"),
        |path| path == Path::new("store/index/db"),
    ];
    for (nth, deaf) in mutants.into_iter().enumerate() {
        let mut files = Files::without_syncs_of(deaf);
        let lost = calls.iter().enumerate().any(|(at, call)| {
            files.happen(call);
            let ends_a_sync = matches!(call, Call::SyncEnded(_));
            ends_a_sync && check(&files, Fate::Dropped, &history, at + 1).is_err()
        });
        assert!(lost, "nothing is lost without the syncs of file {nth}");
    }
}
