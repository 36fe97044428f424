//! Law 4: losses are bit-identical wherever weights live, whatever the cache policy, the io
//! engine, the schedule, and the thread that updates.

use crate::common::{TINY, losses, metrics, train};
use crate::tiers_chance::Rng;
use semoe::base::Result;
use semoe::config::Config;
use semoe::graph::planner::predictor::Predictor;
use semoe::model::optim::{Master, Optimizer, Params, Update, join_master, split_master};
use semoe::storage::policy::Random;
use semoe::train::pipeline::Pipeline;
use semoe::train::plan::plan;
use std::collections::BTreeSet;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

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
fn without_clipping_neither_the_budget_nor_what_is_carried_over_changes_the_result() {
    let dir = tempfile::tempdir().unwrap();
    let mut carried = BTreeSet::new();
    // Few tokens leave experts idle: their updates are replayed, and fewer gradients are carried.
    let few = ["train.batch=2", "train.micro_batch=1", "train.seq=4", "train.steps=12"];
    for (setting, hosts) in [
        (&[][..], ["144KiB", "1600KiB", "2200KiB"]),
        (&["parallel.expert=2"], ["300KiB", "1900KiB", "2300KiB"]),
        (&few, ["144KiB", "1600KiB", "2200KiB"]),
    ] {
        let setting = [&["train.clip=0"], setting].concat();
        let expected = losses(&train(dir.path(), &setting.join(" "), &setting));
        for (host, carry, more) in [
            (hosts[0], 0.25, "train.commit_every=2"),
            (hosts[1], 0.0, "storage.policy=planned"),
            (hosts[1], 0.25, "storage.policy=lru"),
            (hosts[1], 0.5, "train.eval_every=2"),
            (hosts[2], 0.5, "train.commit_every=1"),
            (hosts[2], 0.25, "actors.optimizer.place=thread"),
        ] {
            let [host, carry] =
                [format!("storage.host={host}"), format!("actors.optimizer.carry={carry}")];
            let sets = [&setting[..], &[&host, &carry, more]].concat();
            let sets: Vec<String> = sets.into_iter().map(str::to_owned).collect();
            let config = Config::parse(TINY, Path::new("tiny.toml"), &sets).unwrap();
            carried.insert(plan(&config, dir.path()).unwrap().placement.carried);
            let run = dir.path().join(sets.join(" "));
            Pipeline::new(config).run_dir(&run).train().unwrap();
            assert_eq!(losses(&run), expected, "{sets:?}");
        }
    }
    assert!(carried.len() > 3, "{carried:?}");
}

#[test]
fn bf16_is_bit_identical_when_streamed_too() {
    let dir = tempfile::tempdir().unwrap();
    let memory = train(dir.path(), "memory", &["train.precision=bf16"]);
    let streamed = train(dir.path(), "streamed", &["train.precision=bf16", "storage.host=500KiB"]);
    assert_eq!(losses(&memory), losses(&streamed));
}

/// Expects experts at random, so that blocks arrive and leave in an order of the seed's choice.
struct Guessing(Rng);

impl Predictor for Guessing {
    fn likely(&mut self, _: usize, local: Range<usize>) -> Vec<usize> {
        local.filter(|_| self.0.chance(40)).collect()
    }

    fn used(&mut self, _: usize, _: &[usize]) {}
}

#[test]
fn losses_do_not_depend_on_what_was_guessed_or_evicted() {
    let dir = tempfile::tempdir().unwrap();
    let run = |name: String, sets: &[&str], seed: Option<u64>| {
        let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
        let config = Config::parse(TINY, Path::new("tiny.toml"), &sets).unwrap();
        let path = dir.path().join(name);
        let mut pipeline = Pipeline::new(config).run_dir(&path);
        if let Some(seed) = seed {
            pipeline = pipeline
                .policy(move || Box::new(Random::new(seed)))
                .predictor(move || Box::new(Guessing(Rng(seed))));
        }
        pipeline.train().unwrap();
        losses(&path)
    };
    let expected = run("memory".into(), &[], None);
    for seed in 0..6 {
        let place = if seed % 2 == 0 { "executor" } else { "thread" };
        let place = format!("actors.optimizer.place={place}");
        let host = format!("storage.host={}KiB", 144 + 96 * seed);
        let found = run(format!("seed{seed}"), &[&place, &host], Some(seed));
        assert_eq!(found, expected, "seed {seed}");
    }
}

/// A step along the block's gradient at length one: a parameter's change depends on all others.
struct Normed;

impl Optimizer for Normed {
    fn name(&self) -> &'static str {
        "normed"
    }

    fn update(&self, update: &Update<'_>, params: Params<'_>) -> Result<()> {
        let (Some(grad), Some(rate)) = (update.grad, update.steps.last()) else { return Ok(()) };
        let length = grad.iter().map(|g| g * g).sum::<f32>().sqrt() + 1e-8;
        params.m.iter_mut().zip(grad).for_each(|(m, g)| *m = 0.9 * *m + g / length);
        let step = |w: &mut [f32]| {
            w.iter_mut().zip(&*params.m).for_each(|(w, m)| *w -= rate.lr as f32 * m);
        };
        match params.master {
            Master::F32(w) => step(w),
            Master::Split { hi, lo } => {
                let mut w = vec![0.0; hi.len()];
                join_master(hi, lo, &mut w)?;
                step(&mut w);
                split_master(&w, hi, lo)?;
            }
        }
        Ok(())
    }
}

#[test]
fn an_optimizer_that_is_not_elementwise_streams_too() {
    let dir = tempfile::tempdir().unwrap();
    for precision in ["f32", "bf16"] {
        let run = |host: &str| {
            let sets = [format!("train.precision={precision}"), format!("storage.host={host}")];
            let config = Config::parse(TINY, Path::new("tiny.toml"), &sets).unwrap();
            let path = dir.path().join(format!("{precision} {host}"));
            Pipeline::new(config).run_dir(&path).optimizer(Arc::new(Normed)).train().unwrap();
            losses(&path)
        };
        assert_eq!(run("1GiB"), run("432KiB"), "{precision}");
    }
}
