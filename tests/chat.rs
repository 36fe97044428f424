//! `semoe chat`, as people talk with it.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// What `semoe` answers to `lines`.
fn chat(model: &Path, lines: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_semoe"))
        .args(["chat", "--tokens", "5", "--model"])
        .arg(model)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A program that ended reads no more.
    let _ = child.stdin.take().unwrap().write_all(lines.as_bytes());
    child.wait_with_output().unwrap()
}

fn fixture() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/gguf/mixtral.gguf"))
}

#[test]
fn lines_are_answered_until_the_end() {
    let output = chat(fixture(), "a b\n/figures\n\n/new\na b\n");
    let [said, told] = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
    assert!(output.status.success(), "{told}");
    let answers: Vec<&str> = said.split("> ").map(str::trim_end).collect();
    let [first, after_new] = [answers[1], answers[5]];
    assert!(!first.is_empty() && first == after_new, "as if nothing had been said: {said:?}");
    assert_eq!(told.matches("\ndecode: ").count(), 2, "when asked for, and at the end: {told}");
    assert_eq!(answers.len(), 7, "{said:?}");
    let quit = chat(fixture(), "/quit\na b\n");
    assert_eq!(String::from_utf8(quit.stdout).unwrap().trim_end(), ">");
}

#[test]
fn a_checkpoint_without_a_template_is_refused_before_anything_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("folder");
    let semoe = |command: &mut Command| assert!(command.status().unwrap().success());
    semoe(
        Command::new(env!("CARGO_BIN_EXE_semoe"))
            .arg("export")
            .args([fixture(), Path::new("--to"), &folder])
            .stdout(Stdio::null()),
    );
    let config = folder.join("tokenizer_config.json");
    let mut keys: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&config).unwrap()).unwrap();
    assert!(keys.as_object_mut().unwrap().remove("chat_template").is_some());
    std::fs::write(&config, keys.to_string()).unwrap();
    let output = chat(&folder, "a b\n");
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && output.stdout.is_empty(), "{told}");
    assert!(told.contains("no chat template: give it a chat_template.jinja"), "{told}");
}
