//! `bytes_read` and `bytes_written` of metrics.jsonl are what the kernel counts: within 1% of
//! /proc/self/io over the same steps.
//!
//! The index is not among them: its pages are small beside blocks of an expert's real size, which
//! is why the experts here are wide and few.
//!
//! A file of its own, so that its process does nothing else. The data source, which is asked for a
//! batch at the very beginning of a step, reads the kernel's counters.

use semoe::base::{Result, Step};
use semoe::config::Config;
use semoe::train::data::{Batch, DataSource};
use semoe::train::metrics;
use semoe::train::pipeline::Pipeline;
use std::path::Path;
use std::sync::{Arc, Mutex};

/// Enough that what is under way where the counters are read (8 MB) is far below 1%.
const STEPS: usize = 24;

/// Bytes that this process had read from and written to block devices, `(read, written)`.
fn kernel() -> (u64, u64) {
    let text = std::fs::read_to_string("/proc/self/io").unwrap();
    let of = |key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(key)).unwrap();
        line.trim().parse().unwrap()
    };
    (of("read_bytes:"), of("write_bytes:"))
}

/// Random tokens, and the kernel's counters at the beginning of every step.
struct Watch {
    seen: Arc<Mutex<Vec<(u64, u64)>>>,
}

impl DataSource for Watch {
    fn batch(&mut self, step: Step) -> Result<Batch> {
        self.seen.lock().unwrap().push(kernel());
        let mut state = step;
        let ids = (0..4 * 32)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (state >> 33) as i64 % 256
            })
            .collect::<Vec<i64>>();
        Ok(Batch { batch: 4, seq: 32, targets: ids.clone(), ids })
    }

    fn validation_batches(&self) -> u64 {
        0
    }

    fn validation_batch(&mut self, _: u64) -> Result<Batch> {
        unreachable!("none are held out")
    }

    fn identity(&self) -> serde_json::Value {
        "watch".into()
    }
}

fn config(path: &Path) -> Config {
    let text = format!(
        r#"
name = "traffic"
[model]
hidden = 128
layers = 3
heads = 4
experts = 4
expert_width = 1024
top_k = 2
[data]
files = ["tests/fixtures/text/psalms.txt"]
tokenizer = {{ kind = "bytes" }}
[train]
steps = {STEPS}
batch = 4
micro_batch = 2
seq = 32
commit_every = 6
[storage]
host = "16MiB"
"#
    );
    std::fs::write(path, text).unwrap();
    Config::load(path, &[]).unwrap()
}

#[test]
fn traffic_matches_the_kernel() {
    // On the disk of the build folder: what lies on tmpfs moves no bytes.
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let watch = Arc::clone(&seen);
    Pipeline::new(config(&dir.path().join("traffic.toml")))
        .run_dir(dir.path().join("run"))
        .data(move || Ok(Box::new(Watch { seen: Arc::clone(&watch) })))
        .train()
        .unwrap();

    let seen = seen.lock().unwrap();
    let steps = metrics::read(&dir.path().join("run/metrics.jsonl")).unwrap();
    assert_eq!((seen.len(), steps.len()), (STEPS, STEPS));
    // From the beginning of step 2 to that of the last one.
    let told = |get: fn(&metrics::StepMetrics) -> u64| -> u64 {
        steps[1..STEPS - 1].iter().map(get).sum()
    };
    let (first, last) = (seen[1], seen[STEPS - 1]);
    for (what, told, counted) in [
        ("read", told(|step| step.bytes_read), last.0 - first.0),
        ("written", told(|step| step.bytes_written), last.1 - first.1),
    ] {
        assert!(counted > 200 << 20, "only {counted} bytes {what}: the test shows nothing");
        println!("{what}: {told} told, {counted} counted by the kernel");
        let off = told.abs_diff(counted) as f64 / counted as f64;
        assert!(off < 0.01, "{what}: {told} told, {counted} counted by the kernel");
    }
}
