//! Trains a small model from code: the pipeline that a TOML file describes, with a data source of
//! our own (counting, which a model learns in a few steps).
//!
//! `cargo run --example 03_train_from_code`

use semoe::base::{Result, Step, idle};
use semoe::config::Config;
use semoe::train::data::{Batch, DataSource};
use semoe::train::pipeline::Pipeline;
use std::path::Path;

const CONFIG: &str = r#"
[model]
hidden = 64
layers = 2
heads = 4
experts = 8
expert_width = 64
top_k = 2
[data]
files = ["none"]                 # replaced below
tokenizer = { kind = "bytes" }
[train]
steps = 20
batch = 4
seq = 32
lr = 3e-3
commit_every = 10
[storage]
host = "1MiB"                    # a third of the expert states
"#;

/// Sequences that count upwards, starting anywhere.
struct Counting;

impl DataSource for Counting {
    fn batch(&mut self, step: Step) -> Result<Batch> {
        let start = |row: i64| (step as i64 * 7 + row * 31) % 200;
        let ids: Vec<i64> =
            (0..4).flat_map(|row| (0..32).map(move |i| (start(row) + i) % 200)).collect();
        let targets = ids.iter().map(|id| (id + 1) % 200).collect();
        Ok(Batch { batch: 4, seq: 32, ids, targets })
    }

    fn validation_batches(&self) -> u64 {
        0
    }

    fn validation_batch(&mut self, _: u64) -> Result<Batch> {
        self.batch(1)
    }

    fn identity(&self) -> serde_json::Value {
        "counting".into()
    }
}

fn main() -> Result<()> {
    idle::sleep_when_idle();
    let run = std::env::temp_dir().join(format!("semoe-example-{}", std::process::id()));
    let config = Config::parse(CONFIG, Path::new("counting.toml"), &[])?;
    let summary = Pipeline::new(config).run_dir(&run).data(|| Ok(Box::new(Counting))).train()?;
    println!("loss {:.3} after {} steps", summary.loss, summary.step);
    drop(std::fs::remove_dir_all(run));
    Ok(())
}
