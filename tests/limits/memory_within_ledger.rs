//! A run whose expert states are four times its budget stays within its ledger: resident memory
//! and page cache, after 10 steps and after 200 alike, with nothing of the store in the page cache.

use crate::cached::cached_bytes;
use crate::cgroup::Cgroup;
use crate::program::{json, plan, semoe, summary, total, train};
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Stdio};

/// A vocabulary that makes the run large enough for 1% to be more than chance: the heap's
/// high-water mark rises by 2 to 3 MB in a run of any size.
const SETS: [&str; 1] = ["model.vocab=32768"];

/// What memory may grow from step 10 to step 200.
const GROWTH: f64 = 0.01;

/// The most that a process ever had resident, in bytes.
fn peak_resident(child: &Child) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

#[test]
fn memory_within_ledger() {
    let dir = tempfile::tempdir().unwrap();
    // This also reads libtorch into the page cache, which is charged to whoever does it first.
    let (text, planned) = plan(dir.path(), &SETS);
    let states = planned["placement"]["states_total"].as_u64().unwrap();
    assert!(states >= 4 * (10 << 20), "the states are not four times the budget");
    let promised = planned["memory_bytes"].as_u64().unwrap();

    let command = semoe(&train(dir.path(), "run", &[SETS[0], "train.steps=200"]));
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
    let mut until = |line: &str| {
        while !said.contains(line) {
            assert!(stderr.read_line(&mut said).unwrap() > 0, "the run ended early: {said}");
        }
    };
    until("committed step 5 ");
    let starting = (peak_resident(&child), charged());
    // The peak of the start must not hide what the steps grow by.
    fs::write(format!("/proc/{}/clear_refs", child.id()), "5").unwrap();
    group.iter().for_each(Cgroup::forget_peak);
    until("committed step 10 ");
    let early = (peak_resident(&child), charged());
    stderr.read_to_string(&mut said).unwrap();
    assert!(child.wait().unwrap().success(), "{said}");
    assert_eq!(total(&said), total(&text), "train promises something else than plan");
    let told = json(&summary(dir.path(), "run"));
    assert_eq!(told["memory_bytes"].as_u64(), Some(promised), "plan and train differ");
    let late = (told["peak_bytes"].as_u64().unwrap(), charged());

    println!(
        "promised {promised}; resident and charged at the start {starting:?}, after 10 steps \
         {early:?}, 200 {late:?}"
    );
    for most in [starting, late] {
        assert!(most.0 <= promised && most.1 <= promised, "{most:?} of {promised}");
    }
    assert!(late.0 * 10 >= promised * 6, "a ledger that is far too large says nothing");
    for (early, late) in [(early.0, late.0), (early.1, late.1)] {
        let grown = late as f64 / early.max(1) as f64 - 1.0;
        assert!(late == 0 || grown < GROWTH, "memory grew from {early} to {late}");
    }

    let store = dir.path().join("run/store");
    let blocks = cached_bytes(&store, &|file| file.extension().is_some_and(|end| end == "dat"));
    assert_eq!(blocks, 0, "blocks are in the page cache");
    let small = cached_bytes(&store, &|_| true);
    assert!(small <= 64 << 10, "{small} bytes of the store's other files are in the page cache");
}
