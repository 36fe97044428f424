//! Law 9: bad input ends in a clear error that names the thing, and loses nothing committed.

use crate::common::{semoe, tiny, train};
use std::path::Path;

/// Runs `train` on the tiny configuration with overrides and gives exit status and message.
fn refused(dir: &Path, extra: &[&str]) -> (i32, String) {
    let config = tiny(dir);
    let run = dir.join("refused");
    let mut args = vec!["train", config.to_str().unwrap(), "--run", run.to_str().unwrap()];
    args.extend(extra);
    let output = semoe(&args);
    let text = String::from_utf8_lossy(&output.stderr);
    let error = text.lines().find(|line| line.starts_with("error:")).unwrap_or_default();
    (output.status.code().unwrap_or(-1), error.replace(dir.to_str().unwrap(), "DIR"))
}

fn assert_refused(extra: &[&str], status: i32, words: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    let (code, text) = refused(dir.path(), extra);
    assert_eq!(code, status, "{extra:?}: {text}");
    for word in words {
        assert!(text.contains(word), "{extra:?}: no {word:?} in {text}");
    }
    assert!(!dir.path().join("refused/store").exists(), "{extra:?} left a store behind");
}

#[test]
fn what_is_asked_wrongly_is_refused_before_any_work() {
    assert_refused(&["--set", "train.steps=0"], 2, &["train.steps"]);
    assert_refused(&["--set", "storage.hots=1MiB"], 2, &["storage.hots", "storage.host"]);
    assert_refused(&["--set", "storage.host=100KiB"], 2, &["storage.host", "144.0 KiB"]);
    assert_refused(&["--set", "data.files=[\"nowhere.txt\"]"], 2, &["nowhere.txt"]);
    assert_refused(&["--set", "model.vocab=100"], 2, &["vocab"]);
    assert_refused(&["--set", "model.max_position=16"], 2, &["16"]);
    assert_refused(
        &["--set", "train.seq=1000000", "--set", "model.max_position=1000000"],
        2,
        &["shorter than one sequence"],
    );
    assert_refused(&["--set", "train.device=cuda"], 2, &["cuda"]);
}

#[test]
fn empty_data_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let empty = dir.path().join("empty.txt");
    std::fs::write(&empty, "").unwrap();
    let set = format!("data.files=[\"{}\"]", empty.display());
    let (code, text) = refused(dir.path(), &["--set", &set]);
    assert!(code == 2 && text.contains("empty.txt"), "{code} {text}");
}

#[test]
fn a_flipped_bit_is_found_and_named() {
    let dir = tempfile::tempdir().unwrap();
    let run = train(dir.path(), "run", &[]);
    let file = run.join("store/weights.dat");
    let mut bytes = std::fs::read(&file).unwrap();
    for at in (1000..bytes.len()).step_by(4096) {
        bytes[at] ^= 4;
    }
    std::fs::write(&file, bytes).unwrap();
    let output = semoe(&["export", run.to_str().unwrap()]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("checksum") && text.contains("weights.dat"), "{text}");
}

#[test]
fn a_truncated_data_file_is_found_and_named() {
    let dir = tempfile::tempdir().unwrap();
    let run = train(dir.path(), "run", &[]);
    let file = run.join("store/weights.dat");
    let len = std::fs::metadata(&file).unwrap().len();
    std::fs::OpenOptions::new().write(true).open(&file).unwrap().set_len(len / 2).unwrap();
    let output = semoe(&["eval", run.to_str().unwrap()]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_ne!(output.status.code(), Some(0), "{text}");
    assert!(text.contains("weights.dat"), "{text}");
}

#[test]
fn a_run_folder_of_another_configuration_is_refused_unless_named() {
    let dir = tempfile::tempdir().unwrap();
    let run = train(dir.path(), "run", &[]);
    let config = tiny(dir.path());
    let args = |extra: &[&str]| -> Vec<String> {
        let base = ["train", config.to_str().unwrap(), "--run", run.to_str().unwrap(), "--resume"];
        base.iter().chain(extra).map(|arg| (*arg).to_owned()).collect()
    };
    let go = |extra: &[&str]| {
        let args = args(extra);
        semoe(&args.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let other = go(&["--set", "train.seed=7", "--set", "train.steps=6"]);
    let text = String::from_utf8_lossy(&other.stderr).into_owned();
    assert_eq!(other.status.code(), Some(2), "{text}");
    assert!(text.contains("train.seed") && text.contains("--allow-change"), "{text}");
    let budget = go(&["--set", "storage.host=900KiB", "--set", "train.steps=6"]);
    assert!(budget.status.success(), "{}", String::from_utf8_lossy(&budget.stderr));
    assert_eq!(crate::common::metrics(&run).len(), 6);
    assert!(run.join("changes.jsonl").exists());
}

#[test]
fn a_run_is_exported_evaluated_and_sampled() {
    let dir = tempfile::tempdir().unwrap();
    let run = train(dir.path(), "run", &["storage.host=864KiB"]);
    for args in [
        vec!["eval", run.to_str().unwrap(), "--batches", "2"],
        vec!["export", run.to_str().unwrap(), "--dtype", "f32"],
        vec!["sample", run.to_str().unwrap(), "--prompt", "In", "--tokens", "8"],
    ] {
        let output = semoe(&args);
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    for file in ["config.json", "model.safetensors", "tokenizer.json", "generation_config.json"] {
        let whole = run.join("export").join(file).exists();
        assert!(
            whole
                || (file == "model.safetensors"
                    && run.join("export/model.safetensors.index.json").exists()),
            "{file}"
        );
    }
}
