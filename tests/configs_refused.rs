//! Every file in configs/invalid is refused with a message that names file, line, key and remedy;
//! every other configuration loads, and what is committed beside it is current.

use semoe::config::{Config, reference, schema};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

fn files_in(dir: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<PathBuf> =
        entries.filter(|path| path.extension().is_some_and(|e| e == "toml")).collect();
    files.sort();
    files
}

#[test]
fn invalid_configurations_are_refused_with_these_messages() {
    let mut messages = String::new();
    for file in files_in("configs/invalid") {
        let error = match Config::load(&file, &[]) {
            Ok(_) => panic!("{} was accepted", file.display()),
            Err(error) => error,
        };
        assert_eq!(error.exit_status(), 2);
        let text = error.to_string();
        assert!(text.starts_with(&format!("{}:", file.display())), "no place in: {text}");
        writeln!(messages, "{text}").unwrap();
    }
    insta::assert_snapshot!("messages", messages);
}

#[test]
fn the_others_load_and_read_back_what_they_show() {
    let files = files_in("configs");
    assert!(files.len() >= 3);
    for file in files {
        let config = Config::load(&file, &[]).unwrap();
        let shown = config.to_toml().unwrap();
        assert_eq!(Config::parse(&shown, Path::new("shown.toml"), &[]).unwrap(), config);
        let text = std::fs::read_to_string(&file).unwrap();
        assert!(text.starts_with("#:schema ./schema.json\n"), "{}", file.display());
    }
}

#[test]
fn the_committed_schema_is_current() {
    let committed = std::fs::read_to_string("configs/schema.json").unwrap();
    assert!(committed == schema::text(), "configs/schema.json is old: run `make fix`");
}

#[test]
fn the_committed_reference_is_current() {
    let committed = std::fs::read_to_string("docs/configuration.md").unwrap();
    assert!(committed == reference::markdown(), "docs/configuration.md is old: run `make fix`");
}

#[test]
fn every_key_is_described() {
    for key in schema::keys() {
        let described = schema::of_key(&key).and_then(|s| s.get("description")).is_some();
        assert!(described, "{key} has no description");
    }
}

#[test]
fn the_command_shows_and_refuses() {
    let semoe = |args: &[&str]| {
        let out = Command::new(env!("CARGO_BIN_EXE_semoe")).args(args).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (out.status.code(), text(out.stdout), text(out.stderr))
    };
    let (status, out, _) =
        semoe(&["config", "show", "configs/tiny.toml", "--set", "actors.prefetcher.lookahead=2"]);
    assert_eq!(status, Some(0));
    assert!(out.contains("lookahead = 2"));

    let (status, out, error) = semoe(&["config", "show", "configs/invalid/unknown_key.toml"]);
    assert_eq!((status, out.as_str()), (Some(2), ""));
    insta::assert_snapshot!("unknown_key_on_the_command_line", error);

    let (status, _, error) =
        semoe(&["config", "show", "configs/tiny.toml", "--set", "train.sed=1"]);
    assert_eq!(status, Some(2));
    insta::assert_snapshot!("unknown_set", error);

    let (status, _, error) = semoe(&["config", "show", "configs/none.toml"]);
    assert_eq!(status, Some(2));
    insta::assert_snapshot!("no_such_file", error);
}
