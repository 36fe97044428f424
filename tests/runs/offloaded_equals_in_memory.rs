//! Law 4: losses are bit-identical wherever weights live, whatever the cache policy, the io
//! engine, the schedule, and the thread that updates.

use crate::common::{losses, metrics, train};

#[test]
fn losses_do_not_depend_on_budget_policy_engine_or_schedule() {
    let dir = tempfile::tempdir().unwrap();
    let expected = losses(&train(dir.path(), "memory", &[]));
    assert_eq!(expected.len(), 5);
    let variants: [(&str, &[&str]); 10] = [
        ("quarter", &["storage.host=864KiB"]),
        ("smallest", &["storage.host=144KiB"]),
        ("lru", &["storage.host=864KiB", "storage.policy=lru"]),
        ("lfu", &["storage.host=864KiB", "storage.policy=lfu"]),
        ("se-moe", &["storage.host=864KiB", "storage.policy=se-moe"]),
        ("pool", &["storage.host=864KiB", "storage.engine=pool"]),
        ("buffered", &["storage.host=864KiB", "storage.direct=off"]),
        ("sequential", &["storage.host=864KiB", "graph.schedule=sequential"]),
        ("thread", &["storage.host=864KiB", "actors.optimizer.place=thread"]),
        ("recompute", &["actors.expert.activations=recompute", "actors.dense.activations=keep"]),
    ];
    for (name, sets) in variants {
        let run = train(dir.path(), name, sets);
        assert_eq!(losses(&run), expected, "{name}");
    }
}

#[test]
fn streaming_reads_and_in_memory_does_not() {
    let dir = tempfile::tempdir().unwrap();
    let sum = |run: &std::path::Path, key: &str| -> u64 {
        // The updates of the first step, which read every state, end in the second.
        metrics(run)[2..].iter().map(|line| line[key].as_u64().unwrap()).sum()
    };
    let memory = train(dir.path(), "memory", &["train.commit_every=1000"]);
    let streamed = train(dir.path(), "streamed", &["storage.host=864KiB"]);
    assert!(sum(&streamed, "bytes_read") > 3 << 20);
    assert!(sum(&memory, "bytes_read") < 1 << 20);
}

#[test]
fn without_clipping_the_result_does_not_depend_on_the_budget_either() {
    let dir = tempfile::tempdir().unwrap();
    let memory = train(dir.path(), "memory", &["train.clip=0"]);
    let streamed = train(dir.path(), "streamed", &["train.clip=0", "storage.host=432KiB"]);
    assert_eq!(losses(&memory), losses(&streamed));
}

#[test]
fn bf16_is_bit_identical_when_streamed_too() {
    let dir = tempfile::tempdir().unwrap();
    let memory = train(dir.path(), "memory", &["train.precision=bf16"]);
    let streamed = train(dir.path(), "streamed", &["train.precision=bf16", "storage.host=500KiB"]);
    assert_eq!(losses(&memory), losses(&streamed));
}

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
