//! A run has no more threads than it says, and as many compute as the configuration allows.

use crate::program::{semoe, train};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Stdio;

/// The most threads of each name, and at once, that a run had; and how many it said at most.
fn threads(dir: &Path, name: &str, sets: &[&str]) -> (BTreeMap<String, usize>, usize, usize) {
    let mut child = semoe(&train(dir, name, sets))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let tasks = format!("/proc/{}/task", child.id());
    let (mut most, mut at_once) = (BTreeMap::new(), 0);
    while child.try_wait().unwrap().is_none() {
        let mut now: BTreeMap<String, usize> = BTreeMap::new();
        for task in fs::read_dir(&tasks).into_iter().flatten().flatten() {
            // A thread that ended meanwhile has no name any more.
            if let Ok(name) = fs::read_to_string(task.path().join("comm")) {
                *now.entry(name.trim().to_owned()).or_default() += 1;
            }
        }
        at_once = at_once.max(now.values().sum());
        for (name, count) in now {
            let seen = most.entry(name).or_default();
            *seen = count.max(*seen);
        }
        std::thread::yield_now();
    }
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    let line = text.lines().find_map(|line| line.strip_prefix("threads")).unwrap();
    let said = line.split_whitespace().next().unwrap().parse().unwrap();
    (most, at_once, said)
}

#[test]
fn threads_within_what_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let own = ["actors.optimizer.place=thread", "actors.optimizer.threads=2"];
    let cases: [(&str, &[&str], usize, usize); 4] = [
        ("one", &["actors.expert.threads=1"], 1, 0),
        ("three", &["actors.expert.threads=3"], 3, 0),
        ("own", &[&own[..], &["actors.expert.threads=2"]].concat(), 2, 2),
        ("ranks", &["actors.expert.threads=2", "parallel.expert=2"], 2, 0),
    ];
    for (name, sets, compute, optimizer) in cases {
        // Helpers come and go with the regions that they help in, and other tests hold the cores: a
        // run that was too short to be seen with all of them is followed by a longer one.
        let mut most = BTreeMap::new();
        for steps in ["train.steps=12", "train.steps=50", "train.steps=200"] {
            let sets = [sets, &[steps]].concat();
            let (seen, at_once, said) = threads(dir.path(), &format!("{name}-{steps}"), &sets);
            println!("{name}: {at_once} of {said}: {seen:?}");
            assert!(at_once <= said, "{name}: {at_once} threads of {said}: {seen:?}");
            most = seen;
            if of(&most, "executor") >= compute && of(&most, "optimizer") >= optimizer {
                break;
            }
        }
        // Helpers bear the name of the thread that they help. (So does, for a moment, every thread
        // that another one starts, but executors and optimizers start no others.)
        assert_eq!(of(&most, "executor"), compute, "{name}: {most:?}");
        assert_eq!(of(&most, "optimizer"), optimizer, "{name}: {most:?}");
    }
}

/// How many of rank 0's threads bear an actor's name.
fn of(most: &BTreeMap<String, usize>, actor: &str) -> usize {
    most.get(&format!("rank0-{actor}")).copied().unwrap_or_default()
}
