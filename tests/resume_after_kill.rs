//! Law 7 with real processes: a training run that is killed at any moment goes on from its last
//! commit, and its losses are those of a run that nobody killed.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const CONFIG: &str = r#"
name = "killed"
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
steps = 60
batch = 4
micro_batch = 2
seq = 32
precision = "f32"
lr = 1e-3
commit_every = 4
[storage]
host = "900KiB"
"#;

fn start(config: &Path, run: &Path, resume: bool) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_semoe"));
    command.arg("train").arg(config).arg("--run").arg(run);
    if resume {
        command.arg("--resume");
    }
    command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Losses and gradient norms by step, as written.
fn losses(run: &Path) -> Vec<(u64, String, String)> {
    let text = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap_or_default();
    text.lines()
        .map(|line| {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            let step = line["step"].as_u64().unwrap();
            (step, line["loss"].to_string(), line["grad_norm"].to_string())
        })
        .collect()
}

/// A run whose folder was never finished begins anew.
fn can_resume(run: &Path) -> bool {
    run.join("config.toml").exists() && run.join("store/store.json").exists()
}

#[test]
fn a_killed_run_resumes_with_the_same_losses() {
    let kills: u64 = std::env::var("SEMOE_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(30);
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("killed.toml");
    std::fs::write(&config, CONFIG).unwrap();
    let unbroken = dir.path().join("unbroken");
    let begun = Instant::now();
    let output = start(&config, &unbroken, false).wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let whole = begun.elapsed();
    let expected = losses(&unbroken);
    assert_eq!(expected.len(), 60);

    let mut seed = 0x5eed_u64;
    let mut killed = 0;
    let mut rounds = 0;
    while killed < kills {
        rounds += 1;
        assert!(rounds < 50 * kills, "runs end before they can be killed");
        let run = dir.path().join(format!("run{rounds}"));
        // One run is killed again and again until it ends.
        loop {
            let resume = can_resume(&run);
            if !resume {
                let _ = std::fs::remove_dir_all(&run);
            }
            let mut child = start(&config, &run, resume);
            seed = seed
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let share = (seed >> 33) as f64 / (1u64 << 31) as f64;
            let patience = if killed < kills {
                whole.mul_f64(0.05 + 0.9 * share)
            } else {
                Duration::from_secs(120)
            };
            let deadline = Instant::now() + patience;
            let status = loop {
                if let Some(status) = child.try_wait().unwrap() {
                    break Some(status);
                }
                if Instant::now() >= deadline {
                    break None;
                }
                std::thread::yield_now();
            };
            match status {
                None => {
                    child.kill().unwrap();
                    child.wait().unwrap();
                    killed += 1;
                }
                Some(status) => {
                    let output = child.wait_with_output().unwrap();
                    let text = String::from_utf8_lossy(&output.stderr);
                    if resume && text.contains("before its first commit") {
                        std::fs::remove_dir_all(&run).unwrap();
                        continue;
                    }
                    assert!(status.success(), "{}", String::from_utf8_lossy(&output.stderr));
                    break;
                }
            }
        }
        assert_eq!(losses(&run), expected, "after {killed} kills in all");
    }
    println!("{killed} kills in {rounds} runs");
}
