//! A run whose expert states are four times its budget stays within its ledger: resident memory
//! and page cache, after 10 steps and after 200 alike, with nothing of the store in the page cache.

use crate::cached::cached_bytes;
use crate::cgroup::Cgroup;
use crate::program;
use crate::program::{checked, json, plan, semoe, summary, train};
use std::path::Path;

/// What the heap's gaps may add between the two: 1.9% of the resident memory when it was measured.
/// (Without the program's own pages, which a cgroup may not be charged for, the share is larger.)
const GROWTH: f64 = 0.03;

/// The figures of one run.
struct Held {
    promised: u64,
    resident: u64,
    /// Charged to its cgroup.
    charged: Option<u64>,
}

fn run(dir: &Path, steps: u64, promised: u64, total: &str) -> Held {
    let name = format!("run{steps}");
    let set = format!("train.steps={steps}");
    let command = semoe(&train(dir, &name, &[&set]));
    let group = Cgroup::new(&name, 2 * promised);
    let output = match &group {
        Ok(group) => checked(group.enter(&command)),
        Err(why) => {
            println!("no memory cgroup ({why}): peak resident memory alone is compared");
            checked(command)
        }
    };
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(program::total(&text), total, "train promises something else than plan");
    let summary = json(&summary(dir, &name));
    let resident = summary["peak_bytes"].as_u64().unwrap();
    assert!(resident > 0, "no peak was measured");
    assert_eq!(summary["memory_bytes"].as_u64(), Some(promised), "plan and train differ");
    let store = dir.join(&name).join("store");
    let blocks = cached_bytes(&store, &|file| file.extension().is_some_and(|end| end == "dat"));
    assert_eq!(blocks, 0, "blocks are in the page cache");
    let small = cached_bytes(&store, &|_| true);
    assert!(small <= 64 << 10, "{small} bytes of the store's other files are in the page cache");
    Held { promised, resident, charged: group.ok().map(|group| group.peak()) }
}

#[test]
fn memory_within_ledger() {
    let dir = tempfile::tempdir().unwrap();
    // This also reads libtorch into the page cache, which is charged to whoever does it first.
    let (text, planned) = plan(dir.path(), &[]);
    let states = planned["placement"]["states_total"].as_u64().unwrap();
    assert!(states >= 4 * (10 << 20), "the states are not four times the budget");
    let planned = planned["memory_bytes"].as_u64().unwrap();
    let total = program::total(&text);
    let [short, long] = [10, 200].map(|steps| run(dir.path(), steps, planned, &total));
    for (steps, held) in [(10, &short), (200, &long)] {
        let Held { promised, resident, charged } = *held;
        println!("{steps} steps: promised {promised}, resident {resident}, charged {charged:?}");
        assert!(resident <= promised, "{steps} steps: {resident} resident of {promised}");
        assert!(charged.is_none_or(|c| c <= promised), "{steps} steps: {charged:?} of {promised}");
        assert!(resident * 10 >= promised * 6, "a ledger that is far too large says nothing");
    }
    let grown = |short: u64, long: u64| long as f64 / short as f64 - 1.0;
    let resident = grown(short.resident, long.resident);
    assert!(resident < GROWTH, "resident memory grew by {:.2}%", 100.0 * resident);
    if let (Some(short), Some(long)) = (short.charged, long.charged) {
        assert!(grown(short, long) < 2.0 * GROWTH, "charged memory grew from {short} to {long}");
    }
}
