//! Starting the program, and what it says of itself.

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A model whose expert states (42 MiB in f32 with their gradients) are four times the budget.
pub const CONFIG: &str = r#"
name = "limits"
[model]
hidden = 160
layers = 3
heads = 4
experts = 12
expert_width = 160
top_k = 2
[data]
files = ["tests/fixtures/text/psalms.txt"]
tokenizer = { kind = "bpe", vocab = 512 }
validation = 0.05
[train]
steps = 10
batch = 4
micro_batch = 2
seq = 64
precision = "f32"
lr = 1e-3
commit_every = 5
[storage]
host = "10MiB"
"#;

pub fn config(dir: &Path, sets: &[&str]) -> Vec<String> {
    let path = dir.join("limits.toml");
    std::fs::write(&path, CONFIG).unwrap();
    let mut args = vec![path.display().to_string()];
    for set in sets {
        args.extend(["--set".to_owned(), (*set).to_owned()]);
    }
    args
}

pub fn semoe(args: &[String]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_semoe"));
    command.args(args);
    command
}

pub fn checked(mut command: Command) -> Output {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output
}

pub fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// What `semoe plan` says, as text and as JSON.
pub fn plan(dir: &Path, sets: &[&str]) -> (String, Value) {
    let report = dir.join("plan.json");
    let mut args = vec!["plan".to_owned()];
    args.extend(config(dir, sets));
    args.extend(["--disk".to_owned(), dir.display().to_string()]);
    args.extend(["--json".to_owned(), report.display().to_string()]);
    let output = checked(semoe(&args));
    (String::from_utf8_lossy(&output.stdout).into_owned(), json(&report))
}

/// The arguments of a training run in `dir/name`, whose summary goes to `dir/name.json`.
pub fn train(dir: &Path, name: &str, sets: &[&str]) -> Vec<String> {
    let mut args = vec!["train".to_owned()];
    args.extend(config(dir, sets));
    args.extend(["--run".to_owned(), dir.join(name).display().to_string()]);
    args.extend(["--json".to_owned(), summary(dir, name).display().to_string()]);
    args
}

pub fn summary(dir: &Path, name: &str) -> PathBuf {
    dir.join(format!("{name}.json"))
}

/// The line of the ledger that begins with `total`.
pub fn total(text: &str) -> String {
    let line = text.lines().find(|line| line.trim_start().starts_with("total")).unwrap();
    line.split_whitespace().skip(1).collect::<Vec<_>>().join(" ")
}
