//! `semoe import` and `semoe export`, as people call them.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn semoe(args: &[&dyn AsRef<OsStr>]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_semoe"))
        .args(args.iter().map(|arg| arg.as_ref()))
        .output()
        .unwrap()
}

/// What a command prints, with the folder's name left out.
fn said(output: &Output, work: &Path) -> String {
    let text = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes));
    text.concat().replace(&work.display().to_string(), "WORK")
}

#[test]
fn a_checkpoint_is_repacked_quantised_and_written_back() {
    let dir = tempfile::tempdir().unwrap();
    let work = dir.path();
    let (store, out) = (work.join("store"), work.join("out"));
    let from = fixture("hf/qwen3_moe");
    let output =
        semoe(&[&"import", &from, &"--to", &store, &"--experts", &"int4", &"--group", &"32"]);
    assert!(output.status.success(), "{}", said(&output, work));
    let text = said(&output, work);
    assert!(text.contains("experts of layer   2  0.0") && text.contains("dense"), "{text}");
    let output = semoe(&[&"export", &store, &"--to", &out]);
    assert!(output.status.success(), "{}", said(&output, work));
    for name in ["model.safetensors", "config.json", "generation_config.json"] {
        assert!(out.join(name).exists(), "{name}");
    }
    let again = semoe(&[&"import", &out, &"--to", &work.join("again")]);
    assert!(again.status.success(), "{}", said(&again, work));
}

#[test]
fn a_gguf_file_becomes_a_folder_with_its_tokenizer() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let output = semoe(&[&"export", &fixture("gguf/mixtral.gguf"), &"--to", &out]);
    assert!(output.status.success(), "{}", said(&output, dir.path()));
    for name in ["model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"] {
        assert!(out.join(name).exists(), "{name}");
    }
}

#[test]
fn what_cannot_be_done_is_refused_before_it_is_begun() {
    let dir = tempfile::tempdir().unwrap();
    let to = dir.path().join("store");
    let from = fixture("hf/olmoe");
    let cases = [
        semoe(&[&"import", &from, &"--to", &to, &"--group", &"32"]),
        semoe(&[&"import", &from, &"--to", &to, &"--dense", &"int4"]),
        semoe(&[&"import", &fixture("text"), &"--to", &to]),
        semoe(&[&"import", &fixture("gguf/types.gguf"), &"--to", &to]),
    ];
    let root = env!("CARGO_MANIFEST_DIR");
    let text: Vec<String> = cases
        .iter()
        .map(|case| {
            assert_eq!(case.status.code(), Some(2));
            said(case, dir.path()).replace(root, "ROOT")
        })
        .collect();
    assert!(!to.exists());
    insta::assert_snapshot!(text.join(""));
}
