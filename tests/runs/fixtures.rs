//! The reference outputs of another implementation, with one rank and with two, in memory and
//! with a budget that holds a quarter of the expert states.

use crate::common::fixture;
use semoe::train::verify::{Findings, Request, verify};

/// A quarter of 24 experts' weights, masters, moments and gradients (144 KiB each in f32).
const QUARTER: &str = "storage.host=864KiB";

fn check(family: &str, sets: &[&str]) -> Findings {
    let dir = fixture(family);
    let findings = verify(&Request {
        reference: dir.join("expected.safetensors"),
        train_reference: Some(dir.join("train.safetensors")),
        train_config: Some(dir.join("train.json")),
        model: dir,
        sets: sets.iter().map(|set| (*set).to_owned()).collect(),
        tolerance: 1e-3,
        train_tolerance: 2e-4,
    })
    .unwrap();
    assert!(findings.passed, "{family} {sets:?}: {findings:#?}");
    assert_eq!((findings.greedy_equal, findings.greedy_total), (24, 24), "{family}");
    assert_eq!(findings.steps.len(), 6, "{family}");
    findings
}

fn family(name: &str) {
    for ranks in ["parallel.expert=1", "parallel.expert=2"] {
        let whole = check(name, &[ranks]);
        let quarter = check(name, &[ranks, QUARTER]);
        assert_eq!(whole.fingerprint, quarter.fingerprint, "{name} {ranks}");
    }
}

#[test]
fn olmoe() {
    family("olmoe");
}

#[test]
fn mixtral() {
    family("mixtral");
}

#[test]
fn qwen2_moe() {
    family("qwen2_moe");
}

#[test]
fn qwen3_moe() {
    family("qwen3_moe");
}

#[test]
fn a_checkpoint_that_differs_is_reported() {
    let dir = fixture("olmoe");
    let findings = verify(&Request {
        model: fixture("mixtral"),
        reference: dir.join("expected.safetensors"),
        train_reference: None,
        train_config: None,
        sets: vec![],
        tolerance: 1e-3,
        train_tolerance: 2e-4,
    })
    .unwrap();
    assert!(!findings.passed);
}
