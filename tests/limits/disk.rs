//! A store never takes more disk than was reserved for it, checkpoints and index included.

use crate::program::{checked, plan, semoe, train};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

fn taken(dir: &Path) -> u64 {
    std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| {
            let path = entry.unwrap().path();
            let metadata = path.metadata().unwrap();
            metadata.blocks() * 512 + if metadata.is_dir() { taken(&path) } else { 0 }
        })
        .sum()
}

#[test]
fn disk_within_what_was_reserved() {
    let dir = tempfile::tempdir().unwrap();
    let sets =
        ["train.steps=12", "train.commit_every=1", "train.keep_every=6", "storage.checkpoints=2"];
    let (_, planned) = plan(dir.path(), &sets);
    let reserved = planned["disk_bytes"].as_u64().unwrap();
    checked(semoe(&train(dir.path(), "run", &sets)));
    let store = dir.path().join("run/store");
    let taken = taken(&store);
    println!("{taken} of {reserved} taken");
    assert!(taken <= reserved, "{taken} bytes taken of {reserved}");
    assert!(taken >= reserved / 2, "a reservation that is far too large says nothing");
}
