//! The examples run, and do what they are there to show.

use std::path::Path;
use std::process::Command;

/// Runs an example, which `cargo test` has built, and gives what it printed.
fn run(name: &str) -> String {
    let built = Path::new(env!("CARGO_BIN_EXE_semoe")).with_file_name("examples").join(name);
    assert!(built.is_file(), "{name} is not built: cargo build --examples");
    let output = Command::new(built).current_dir(env!("CARGO_MANIFEST_DIR")).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name}: {said}{errors}");
    said
}

/// The number before `after` in the line that has it.
fn number(said: &str, before: &str, after: &str) -> f64 {
    let rest = said.split(before).nth(1).unwrap_or_else(|| panic!("no {before:?} in {said}"));
    rest.split(after).next().unwrap().trim().parse().unwrap()
}

#[test]
fn hello_graph_gains_by_overlap() {
    let said = run("01_hello_graph");
    assert!(number(&said, "Overlap makes it ", " times") > 1.0, "{said}");
}

#[test]
fn tiered_storage_keeps_a_part_and_forgets_what_was_not_committed() {
    let said = run("02_tiered_storage");
    let hits = |policy: &str| number(&said, &format!("{policy}: "), " hits");
    assert!(hits("planned") > hits("lru"), "{said}");
    assert!(said.contains("before the restart: 99"), "{said}");
    assert!(said.contains("uncommitted changes gone: 4"), "{said}");
}

#[test]
fn a_model_trained_from_code_learns() {
    let said = run("03_train_from_code");
    assert!(number(&said, "loss ", " after 20 steps") < 5.0, "{said}");
}

#[test]
fn a_gate_of_ones_own_trains() {
    let said = run("04_own_gate");
    assert!(number(&said, "loss ", " after 8 steps").is_finite(), "{said}");
}
