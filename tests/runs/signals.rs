//! What the outside may ask of a run: SIGUSR1 the states of its actors, Ctrl-C to stop after the
//! step and commit.

use crate::common::{metrics, tiny};
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

#[test]
fn a_run_tells_its_actors_states_and_stops_after_its_step() {
    let dir = tempfile::tempdir().unwrap();
    let (config, run) = (tiny(dir.path()), dir.path().join("run"));
    let train = |more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_semoe"));
        command.args(["train", config.to_str().unwrap(), "--run", run.to_str().unwrap()]);
        command.args(["--set", "train.steps=100000", "--set", "parallel.expert=2"]);
        // The planned last step would be evaluated; the one that the run stops at is not.
        command.args(["--set", "data.validation=0.2", "--set", "train.eval_every=90000"]);
        command.args(more);
        command
    };
    let mut child = train(&[]).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    let mut until = |text: &str| {
        lines
            .find(|line| line.contains(text))
            .unwrap_or_else(|| panic!("the run never said {text}"))
    };
    let id = child.id().to_string();
    let signal = |name: &str| {
        assert!(Command::new("kill").args([name, &id]).status().unwrap().success());
    };
    until("committed step 2");
    signal("-USR1");
    until("states of the actors");
    signal("-INT");
    let stopping = until("stopping after step");
    assert!(child.wait().unwrap().success());

    let text = std::fs::read_to_string(run.join("actors.json")).unwrap();
    let ranks: Vec<Vec<serde_json::Value>> = serde_json::from_str(&text).unwrap();
    assert_eq!(ranks.len(), 2);
    for states in &ranks {
        let names: Vec<&str> =
            states.iter().map(|state| state["actor"].as_str().unwrap()).collect();
        for actor in ["scheduler", "gate", "dense", "expert", "optimizer", "prefetcher", "source"] {
            assert!(names.contains(&actor), "{actor} is missing: {names:?}");
        }
        assert!(names.contains(&"communicator") && names.contains(&"supervisor"));
        let scheduler = &states[0]["state"];
        assert!(scheduler["done"].as_u64().unwrap() > 10, "{scheduler}");
    }

    let last = metrics(&run).last().unwrap()["step"].as_u64().unwrap();
    assert!(stopping.contains(&format!("step {last}")), "{stopping}; the last was {last}");
    let more = format!("train.steps={}", last + 1);
    let output = train(&["--resume", "--set", &more]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let steps: Vec<u64> = metrics(&run).iter().map(|m| m["step"].as_u64().unwrap()).collect();
    assert_eq!(steps, (1..=last + 1).collect::<Vec<_>>());
}
