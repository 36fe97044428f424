//! `semoe store` and `semoe cache` say what a store holds, find damage, and refuse what is none.

use semoe::base::{BlockId, Part, checksum};
use semoe::storage::hierarchy::{Access, SlotClass};
use semoe::storage::replay::Recorder;
use semoe::storage::store::{ClassSpec, Store, StoreOptions, StoreSpec};
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

const BLOCK: BlockId = BlockId { layer: 0, expert: 0, part: Part::Weights };

fn semoe(args: &[&str]) -> (Option<i32>, String, String) {
    let out = Command::new(env!("CARGO_BIN_EXE_semoe")).args(args).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (out.status.code(), text(out.stdout), text(out.stderr))
}

/// A run folder whose store has one block at step 3; returns the data file and the block's offset.
fn store_of_a_run(run: &Path) -> (PathBuf, u64) {
    let classes = vec![ClassSpec { part: Part::Weights, block_bytes: 4096, blocks: 1 }];
    let spec = StoreSpec { classes, keep: 1, identity: serde_json::json!({}) };
    let dir = run.join("store");
    std::fs::create_dir(&dir).unwrap();
    let store = Store::create(&dir, &spec, &StoreOptions::default()).unwrap();
    let extent = store.place(BLOCK, 3).unwrap();
    let path = store.files()[0].path.clone();
    let bytes = vec![7; extent.len as usize];
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all_at(&bytes, extent.offset).unwrap();
    store.written(BLOCK, 3, checksum::crc32c(&bytes), 3).unwrap();
    store.commit(3, b"{}").unwrap();
    (path, extent.offset)
}

#[test]
fn a_store_is_listed_checked_and_its_damage_found() {
    let run = tempfile::tempdir().unwrap();
    let (file, offset) = store_of_a_run(run.path());
    let path = run.path().to_str().unwrap();
    let json = run.path().join("report.json");

    let (status, out, error) = semoe(&["store", "ls", path]);
    assert_eq!((status, error.as_str()), (Some(0), ""));
    assert!(out.contains("last commit: step 3") && out.contains("weights"), "{out}");

    let (status, out, _) = semoe(&["store", "check", path, "--json", json.to_str().unwrap()]);
    assert_eq!(status, Some(0));
    assert!(out.contains("1 blocks") && out.contains("0 damaged"), "{out}");
    let report: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(&json).unwrap()).unwrap();
    assert_eq!((&report[0]["blocks"], &report[0]["committed"]), (&1.into(), &3.into()));

    assert_eq!(semoe(&["store", "gc", path]).0, Some(0));

    OpenOptions::new().write(true).open(file).unwrap().write_all_at(&[8], offset + 99).unwrap();
    let (status, out, error) = semoe(&["store", "check", path]);
    assert_eq!(status, Some(1));
    assert!(out.contains("layer0.expert0.weights version 3"), "{out}");
    assert!(error.starts_with("error: 1 blocks of "), "{error}");
}

#[test]
fn a_store_in_use_and_what_is_no_store_are_refused() {
    let run = tempfile::tempdir().unwrap();
    let path = run.path().to_str().unwrap();
    let (status, _, error) = semoe(&["store", "ls", path]);
    assert_eq!(status, Some(2));
    assert!(error.contains("holds no store"), "{error}");

    store_of_a_run(run.path());
    let _held = Store::open(&run.path().join("store"), &StoreOptions::default()).unwrap();
    let (status, _, error) = semoe(&["store", "ls", path]);
    assert_eq!(status, Some(1));
    assert!(error.contains("store"), "{error}");
}

#[test]
fn recorded_accesses_are_replayed_through_every_policy() {
    let classes = [SlotClass { part: Part::Weights, slot_bytes: 4096, slots: 2 }];
    let mut recorder = Recorder::new(&classes);
    // A sweep over three blocks with two slots: LRU never hits, the optimum does.
    for ticket in 0..12 {
        let block = BlockId::weights(0, ticket as usize % 3);
        recorder.access(ticket, block, Access::Read, ticket + 3);
    }
    let run = tempfile::tempdir().unwrap();
    std::fs::write(run.path().join("access.trace"), recorder.into_bytes()).unwrap();

    let path = run.path().to_str().unwrap();
    let json = run.path().join("replay.json");
    let (status, out, error) = semoe(&["cache", "replay", path, "--json", json.to_str().unwrap()]);
    assert_eq!(status, Some(0), "{error}");
    for policy in ["planned", "lru", "lfu", "se-moe", "adaptive", "belady"] {
        assert!(out.contains(policy), "{out}");
    }
    let report: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(&json).unwrap()).unwrap();
    let rate = |policy: &str| {
        let rows = report["rows"].as_array().unwrap();
        rows.iter().find(|row| row["policy"] == policy).unwrap()["hit_rate"].as_f64().unwrap()
    };
    assert_eq!(rate("lru"), 0.0);
    assert!(rate("belady") > 0.3 && rate("planned") == rate("belady"));

    let (status, _, error) = semoe(&["cache", "replay", path, "--scale", "0"]);
    assert_eq!(status, Some(2));
    assert!(error.contains("scale"), "{error}");
    assert_eq!(semoe(&["cache", "replay", "Cargo.toml"]).0, Some(2));
}
