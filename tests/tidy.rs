//! The house rules that a reader relies on: every file says what it is, imports only point down
//! the layers, no file outgrows one concept, and nothing is left unfinished by its own word.

use std::path::{Path, PathBuf};

/// Each layer with those that it may import. A layer that is not listed here fails the test.
///
/// `storage`, `model`, `comm` and `graph` never import one another. `config` is plain data over
/// `base`, and only those who carry out a run read it. `trace` holds what was recorded of the
/// graph, so that actors can record into it.
const MAY_IMPORT: [(&str, &[&str]); 12] = [
    ("base", &[]),
    ("text", &["base"]),
    ("storage", &["base"]),
    ("model", &["base", "text"]),
    ("comm", &["base"]),
    ("graph", &["base"]),
    ("config", &["base"]),
    ("trace", &["base", "graph"]),
    ("actors", &["base", "storage", "model", "comm", "graph", "trace", "config"]),
    ("train", &["base", "text", "storage", "model", "comm", "graph", "trace", "config", "actors"]),
    ("infer", &["base", "text", "storage", "model", "comm", "graph", "trace", "config", "actors"]),
    (
        "cli",
        &[
            "base", "text", "storage", "model", "comm", "graph", "trace", "config", "actors",
            "train", "infer",
        ],
    ),
];

/// A file longer than this is two concepts.
const LONGEST: usize = 450;

fn rust_files(dir: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut dirs = vec![PathBuf::from(dir)];
    while let Some(dir) = dirs.pop() {
        let Ok(entries) = std::fs::read_dir(&dir) else { continue };
        for path in entries.map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                dirs.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                files.push(path);
            }
        }
    }
    files.sort();
    files
}

fn all_rust_files() -> Vec<(PathBuf, String)> {
    let dirs = ["src", "tests", "benches", "examples"];
    let files = dirs.iter().flat_map(|dir| rust_files(dir));
    files.map(|path| (path.clone(), std::fs::read_to_string(path).unwrap())).collect()
}

fn assert_none(rule: &str, broken: &[String]) {
    assert!(broken.is_empty(), "{rule}:\n  {}", broken.join("\n  "));
}

/// The layers that a line of code names: `crate::model::…`, `semoe::model::…`, and lists such as
/// `crate::{base::Result, model}`.
fn layers_named(code: &str) -> Vec<String> {
    let mut names = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        let mut depth = 0;
        let mut word = String::new();
        let mut fresh = true;
        for c in rest.chars() {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                ',' if depth == 1 => fresh = true,
                c if c.is_alphanumeric() || c == '_' => {
                    if fresh {
                        word.push(c);
                    }
                    continue;
                }
                _ => {}
            }
            if !word.is_empty() {
                names.push(std::mem::take(&mut word));
                fresh = c == ',' && depth == 1;
            }
            if depth <= 0 {
                break;
            }
        }
        if !word.is_empty() {
            names.push(word);
        }
    }
    names
}

fn without_comments(text: &str) -> String {
    let code = |line: &&str| !line.trim_start().starts_with("//");
    text.lines().filter(code).collect::<Vec<_>>().join("\n")
}

fn layer_of(path: &Path) -> Option<String> {
    let inside = path.strip_prefix("src").ok()?;
    let first = inside.components().next()?.as_os_str().to_str()?;
    let name = first.trim_end_matches(".rs");
    (!matches!(name, "lib" | "main")).then(|| name.to_owned())
}

#[test]
fn every_file_opens_with_what_it_is() {
    let silent = |(path, text): &(PathBuf, String)| {
        (!text.starts_with("//! ")).then(|| path.display().to_string())
    };
    let broken: Vec<String> = all_rust_files().iter().filter_map(silent).collect();
    assert_none("these files do not open with `//!` and what they are", &broken);
}

#[test]
fn no_file_outgrows_one_concept() {
    let long = |(path, text): &(PathBuf, String)| {
        let lines = text.lines().count();
        (lines > LONGEST).then(|| format!("{} has {lines} lines", path.display()))
    };
    let broken: Vec<String> = all_rust_files().iter().filter_map(long).collect();
    assert_none("these files are two concepts or more", &broken);
}

#[test]
fn imports_only_point_down_the_layers() {
    let mut broken = Vec::new();
    for (path, text) in all_rust_files() {
        let Some(layer) = layer_of(&path) else { continue };
        let allowed = MAY_IMPORT.iter().find(|(name, _)| *name == layer);
        let Some((_, allowed)) = allowed else {
            broken.push(format!("{} is in no known layer", path.display()));
            continue;
        };
        for name in layers_named(&without_comments(&text)) {
            let is_layer = MAY_IMPORT.iter().any(|(known, _)| *known == name);
            if is_layer && name != layer && !allowed.contains(&name.as_str()) {
                broken.push(format!("{} imports {name}", path.display()));
            }
        }
    }
    broken.dedup();
    assert_none("these imports do not point down the layers", &broken);
}

#[test]
fn nothing_is_unfinished_by_its_own_word() {
    // Put together here so that this file does not name them.
    let words = [["TO", "DO"], ["FIX", "ME"], ["to", "do!("], ["unimple", "mented!("]]
        .map(|halves| halves.concat());
    let mut broken = Vec::new();
    for (path, text) in all_rust_files() {
        for (number, line) in text.lines().enumerate() {
            if words.iter().any(|word| line.contains(word.as_str())) {
                broken.push(format!("{}:{}: {}", path.display(), number + 1, line.trim()));
            }
        }
    }
    assert_none("these lines are unfinished by their own word", &broken);
}

#[test]
fn layers_are_found_in_every_form_of_import() {
    assert_eq!(layers_named("use crate::model::Gate;"), ["model"]);
    assert_eq!(
        layers_named("use crate::{base::{Error, Result}, model, comm as c};"),
        ["base", "model", "comm"]
    );
    assert_eq!(layers_named("crate::graph"), ["graph"]);
}
