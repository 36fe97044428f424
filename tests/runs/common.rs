//! What the tests of whole runs share.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

pub const TINY: &str = r#"
name = "tiny"
[model]
hidden = 64
layers = 3
heads = 4
experts = 8
expert_width = 48
top_k = 2
[data]
files = ["tests/fixtures/text/psalms.txt"]
tokenizer = { kind = "bytes" }
[train]
steps = 5
batch = 4
micro_batch = 2
seq = 32
precision = "f32"
lr = 1e-3
commit_every = 2
[storage]
host = "64MiB"
"#;

/// The tiny configuration in `dir`.
pub fn tiny(dir: &Path) -> PathBuf {
    let path = dir.join("tiny.toml");
    std::fs::write(&path, TINY).unwrap();
    path
}

/// Runs the program.
pub fn semoe(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_semoe")).args(args).output().unwrap()
}

/// Trains the tiny configuration in `dir/name` with overrides; it must succeed.
pub fn train(dir: &Path, name: &str, sets: &[&str]) -> PathBuf {
    let config = tiny(dir);
    let run = dir.join(name);
    let mut args = vec!["train", config.to_str().unwrap(), "--run", run.to_str().unwrap()];
    for set in sets {
        args.extend(["--set", set]);
    }
    let output = semoe(&args);
    assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    run
}

/// One line a step.
pub fn metrics(run: &Path) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Losses and gradient norms, to the last bit.
pub fn losses(run: &Path) -> Vec<(String, String)> {
    let text = |line: &serde_json::Value, key: &str| line[key].to_string();
    metrics(run).iter().map(|line| (text(line, "loss"), text(line, "grad_norm"))).collect()
}

pub fn fixture(family: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/hf").join(family)
}
