//! Law 7 with real processes: a training run that is killed at any moment goes on from its last
//! commit, and its losses are those of a run that nobody killed.

use std::io::Read;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc;
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

/// A run that nobody kills ends within this, or hangs.
const LONGEST: Duration = Duration::from_secs(300);

/// Starts a run and kills it after `patience`, unless it ended before: then its exit status and
/// what it said.
fn run_for(
    config: &Path,
    run: &Path,
    resume: bool,
    patience: Duration,
) -> Option<(ExitStatus, String)> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_semoe"));
    command.arg("train").arg(config).arg("--run").arg(run);
    if resume {
        command.arg("--resume");
    }
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut said = child.stderr.take().unwrap();
    let (tell, ended) = mpsc::channel();
    let listener = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        said.read_to_end(&mut bytes).unwrap();
        // Nobody listens any more to a run that was killed.
        let _ = tell.send(String::from_utf8_lossy(&bytes).into_owned());
    });
    let text = ended.recv_timeout(patience).ok();
    if text.is_none() {
        child.kill().unwrap();
    }
    let status = child.wait().unwrap();
    listener.join().unwrap();
    Some((status, text?))
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
    killed_runs_resume(CONFIG, kills());
}

#[test]
fn a_killed_run_that_carries_updates_over_resumes_too() {
    let config =
        CONFIG.replace("[storage]", "clip = 0\n[actors.optimizer]\ncarry = 0.5\n[storage]");
    killed_runs_resume(&config, kills() / 3);
}

fn kills() -> u64 {
    std::env::var("SEMOE_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(30)
}

fn killed_runs_resume(text: &str, kills: u64) {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("killed.toml");
    std::fs::write(&config, text).unwrap();
    let unbroken = dir.path().join("unbroken");
    let begun = Instant::now();
    let (status, text) = run_for(&config, &unbroken, false, LONGEST).expect("the run hangs");
    assert!(status.success(), "{text}");
    let mut whole = begun.elapsed();
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
            seed = seed
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let share = (seed >> 33) as f64 / (1u64 << 31) as f64;
            let wanted = killed < kills;
            let patience = if wanted { whole.mul_f64(0.05 + 0.9 * share) } else { LONGEST };
            let begun = Instant::now();
            let Some((status, text)) = run_for(&config, &run, resume, patience) else {
                assert!(wanted, "the run hangs after {killed} kills");
                killed += 1;
                continue;
            };
            if resume && text.contains("before its first commit") {
                std::fs::remove_dir_all(&run).unwrap();
                continue;
            }
            assert!(status.success(), "{text}");
            // The first run may have had less of the machine.
            whole = if resume { whole } else { whole.min(begun.elapsed()) };
            break;
        }
        assert_eq!(losses(&run), expected, "after {killed} kills in all");
    }
    println!("{killed} kills in {rounds} runs");
}
