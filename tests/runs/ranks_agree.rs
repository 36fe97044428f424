//! Law 5 for whole runs: the number of ranks changes rounding and nothing else.

use crate::common::{metrics, train};

#[test]
fn two_ranks_agree_with_one_up_to_rounding() {
    let dir = tempfile::tempdir().unwrap();
    let gates: [&[&str]; 3] = [
        &[],
        &["actors.gate.kind=gshard", "actors.gate.capacity_factor=1.0"],
        &["actors.gate.kind=bias-corrected"],
    ];
    for (index, gate) in gates.into_iter().enumerate() {
        let one = train(dir.path(), &format!("one{index}"), gate);
        let sets = [gate, &["parallel.expert=2"]].concat();
        let two = train(dir.path(), &format!("two{index}"), &sets);
        for (a, b) in metrics(&one).iter().zip(&metrics(&two)) {
            let (x, y) = (a["loss"].as_f64().unwrap(), b["loss"].as_f64().unwrap());
            assert!((x - y).abs() <= 1e-5 * x, "{gate:?}: {x} {y}");
            assert_eq!(a["dropped_tokens"], b["dropped_tokens"], "{gate:?}");
        }
    }
}
