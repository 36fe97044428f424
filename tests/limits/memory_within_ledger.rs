//! A run whose expert states are four times its budget stays within its ledger: resident memory
//! and page cache, after 10 steps and after 200 alike, with nothing of the store in the page cache.

use crate::cached::cached_bytes;
use crate::cgroup::Cgroup;
use crate::program::{json, plan, semoe, summary, total, train};
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Stdio};

/// What memory may grow by from step 10 to step 195: one part in so many, and what chance adds to
/// the heap's high-water mark in any run, however small. (1.0 to 2.5 MB was measured, half of it in
/// the next 600 steps.) After the last step the run draws its pictures.
const GROWTH: (u64, u64) = (100, 2 << 20);

/// The most that a process ever had resident, in bytes.
fn peak_resident(child: &Child) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

#[test]
fn memory_within_ledger() {
    let dir = tempfile::tempdir().unwrap();
    // This also reads libtorch into the page cache, which is charged to whoever does it first.
    let (text, planned) = plan(dir.path(), &[]);
    let states = planned["placement"]["states_total"].as_u64().unwrap();
    assert!(states >= 4 * (10 << 20), "the states are not four times the budget");
    let promised = planned["memory_bytes"].as_u64().unwrap();

    let command = semoe(&train(dir.path(), "run", &["train.steps=200"]));
    let group = Cgroup::new("run", 2 * promised);
    let mut command = match &group {
        Ok(group) => group.enter(&command),
        Err(why) => {
            println!("no memory cgroup ({why}): peak resident memory alone is compared");
            command
        }
    };
    let charged = || group.as_ref().map_or(0, Cgroup::peak);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut said = String::new();
    let [early, late] = ["committed step 10 ", "committed step 195 "].map(|line| {
        while !said.contains(line) {
            assert!(stderr.read_line(&mut said).unwrap() > 0, "the run ended early: {said}");
        }
        (peak_resident(&child), charged())
    });
    stderr.read_to_string(&mut said).unwrap();
    assert!(child.wait().unwrap().success(), "{said}");
    assert_eq!(total(&said), total(&text), "train promises something else than plan");
    let told = json(&summary(dir.path(), "run"));
    assert_eq!(told["memory_bytes"].as_u64(), Some(promised), "plan and train differ");
    let most = (told["peak_bytes"].as_u64().unwrap(), charged());

    println!("promised {promised}; resident and charged: {early:?}, {late:?}, in the end {most:?}");
    assert!(most.0 <= promised && most.1 <= promised, "{most:?} of {promised}");
    assert!(most.0 * 10 >= promised * 6, "a ledger that is far too large says nothing");
    for (early, late) in [(early.0, late.0), (early.1, late.1)] {
        let most = early + early / GROWTH.0 + GROWTH.1;
        assert!(late <= most, "memory grew from {early} to {late}");
    }

    let store = dir.path().join("run/store");
    let blocks = cached_bytes(&store, &|file| file.extension().is_some_and(|end| end == "dat"));
    assert_eq!(blocks, 0, "blocks are in the page cache");
    let small = cached_bytes(&store, &|_| true);
    assert!(small <= 64 << 10, "{small} bytes of the store's other files are in the page cache");
}
