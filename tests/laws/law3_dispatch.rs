//! Law 3: every dispatched (token, expert) pair is combined exactly once; dropped tokens are
//! counted.
//!
//! All experts of a layer are made equal, and router weights sum to 1 over the choices that are
//! kept. Then a layer's result does not depend on the routing at all, unless a pair is lost,
//! doubled, or weighted as another.

use crate::common::{TINY, fixture};
use crate::tiers_chance::Rng;
use semoe::base::Result;
use semoe::config::Config;
use semoe::model::config::ModelConfig;
use semoe::model::gate::{Gate, GateContext, Selection, capacity};
use semoe::train::data::Batch;
use semoe::train::pipeline::Pipeline;
use semoe::train::{prepare, session};
use std::path::Path;
use std::sync::{Arc, Mutex};
use tch::{Kind, Tensor};

const LAYERS: usize = 3;
const EXPERTS: usize = 8;
const TOKENS: usize = 4 * 32;
const FACTOR: f64 = 2.0;

/// How often each expert was chosen, `[layer][expert]`, over all ranks and micro-batches.
type Counts = Arc<Mutex<Vec<Vec<u64>>>>;

/// Chooses by a draw from (seed, layer, token): four of five first choices are expert 0, second
/// choices are among the last four.
#[derive(Clone)]
struct Drawn {
    seed: u64,
    top_k: usize,
    capacity: bool,
    /// Every so many tokens one choice is left out without a word: a mutation.
    loses: Option<usize>,
    counts: Counts,
}

impl Gate for Drawn {
    fn name(&self) -> &'static str {
        "drawn"
    }

    fn top_k(&self) -> usize {
        self.top_k
    }

    fn capacity_factor(&self) -> Option<f64> {
        self.capacity.then_some(FACTOR)
    }

    fn select(&mut self, ctx: &GateContext, logits_te: &Tensor) -> Result<Selection> {
        let tokens = logits_te.size()[0];
        let mut experts = Vec::new();
        let mut counts = self.counts.lock().unwrap();
        for token in 0..tokens as u64 {
            let place = (ctx.first_token + token) << 8 | ctx.layer as u64;
            let mut rng = Rng(self.seed ^ place.rotate_left(20));
            let first = if rng.chance(80) { 0 } else { 1 + rng.below(EXPERTS - 1) };
            let second = (4..EXPERTS).filter(|e| *e != first).nth(rng.below(3)).unwrap();
            for expert in [first, second].into_iter().take(self.top_k) {
                counts[ctx.layer][expert] += 1;
                experts.push(expert as i64);
            }
        }
        let experts_tk = Tensor::from_slice(&experts).view([tokens, self.top_k as i64]);
        Ok(Selection::dropless(experts_tk))
    }

    fn weights(&self, logits_te: &Tensor, selection: &Selection) -> Result<Tensor> {
        let probabilities = logits_te.softmax(-1, Kind::Float);
        let chosen = probabilities.gather(-1, &selection.experts_tk, false);
        let kept = selection.masked(chosen)?;
        let weights = &kept / kept.sum_dim_intlist([-1i64].as_slice(), true, Kind::Float);
        if let Some(every) = self.loses {
            let rows: Vec<i64> = (0..weights.size()[0]).step_by(every).collect();
            let _ = weights.select(1, 0).index_fill_(0, &Tensor::from_slice(&rows), 0.0);
        }
        Ok(weights)
    }
}

/// The OLMoE fixture with every expert of a layer equal to its first.
fn equal_experts(to: &Path) {
    let from = fixture("olmoe");
    std::fs::copy(from.join("config.json"), to.join("config.json")).unwrap();
    let mut bytes = std::fs::read(from.join("model.safetensors")).unwrap();
    let header_len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header_len]).unwrap();
    let place = |layer: usize, expert: usize, name: &str| {
        let key = format!("model.layers.{layer}.mlp.experts.{expert}.{name}_proj.weight");
        let offset = |at: usize| header[&key]["data_offsets"][at].as_u64().unwrap() as usize;
        8 + header_len + offset(0)..8 + header_len + offset(1)
    };
    for layer in 0..LAYERS {
        for name in ["gate", "up", "down"] {
            for expert in 1..EXPERTS {
                let to = place(layer, expert, name).start;
                bytes.copy_within(place(layer, 0, name), to);
            }
        }
    }
    std::fs::write(to.join("model.safetensors"), bytes).unwrap();
}

/// Logits of every token, and how many pairs were dropped.
fn run(dir: &Path, model: &Path, gate: &Drawn, ranks: usize) -> (Vec<f32>, u64) {
    let (_, rest) = TINY.split_once("[data]").unwrap();
    let text = format!("name = \"equal\"\n[model]\nfrom = {model:?}\n[data]{rest}");
    let sets = [format!("parallel.expert={ranks}"), "storage.host=864KiB".to_owned()];
    let config = Config::parse(&text, Path::new("equal.toml"), &sets).unwrap();
    let shape = ModelConfig::from_hf(model).unwrap();
    let load = prepare::load_of(&config, &shape);
    let gate = gate.clone();
    let pipeline = Pipeline::new(config).gate(move |_| Ok(Box::new(gate.clone())));
    let ready = prepare::create_stores(&pipeline, dir, load, |_, _| {}).unwrap();
    let ids: Vec<i64> = (0..TOKENS as i64).map(|i| (i * i + 7 * i) % 256).collect();
    let targets = ids.iter().map(|id| (id + 1) % 256).collect();
    let batch = Batch { batch: 4, seq: 32, ids, targets };
    let all: Vec<(usize, usize)> = (0..4).flat_map(|b| (0..32).map(move |t| (b, t))).collect();
    session::with(&pipeline, &ready, |session| {
        let logits = session.logits(&batch, &all)?.concat();
        Ok((logits, session.evaluate(&batch)?.dropped))
    })
    .unwrap()
}

fn drawn(seed: u64) -> Drawn {
    let counts = Arc::new(Mutex::new(vec![vec![0; EXPERTS]; LAYERS]));
    Drawn { seed, top_k: 2, capacity: false, loses: None, counts }
}

fn furthest(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn each_pair_is_combined_once_and_the_dropped_ones_are_counted() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("model");
    std::fs::create_dir(&model).unwrap();
    equal_experts(&model);
    let mut runs = 0;
    let mut run = |gate: &Drawn, ranks| {
        runs += 1;
        run(&dir.path().join(format!("store{runs}")), &model, gate, ranks)
    };
    // One expert a token, with weight 1: nothing is combined.
    let (plain, _) = run(&Drawn { top_k: 1, ..drawn(0) }, 1);
    for seed in 1..4 {
        for (ranks, capacity_on) in [(1, false), (2, false), (1, true), (2, true)] {
            let gate = Drawn { capacity: capacity_on, ..drawn(seed) };
            let (logits, dropped) = run(&gate, ranks);
            let off = furthest(&logits, &plain);
            assert!(off < 1e-4, "seed {seed}, {ranks} ranks: off by {off}");
            let limit = capacity(FACTOR, 2, TOKENS as u64, EXPERTS);
            // Each layer was chosen for in two passes.
            let counts = gate.counts.lock().unwrap();
            let over: u64 = counts.iter().flatten().map(|n| (n / 2).saturating_sub(limit)).sum();
            assert_eq!(dropped, if capacity_on { over } else { 0 }, "seed {seed}, {ranks} ranks");
            assert!(over > 0, "the case must drop something");
        }
    }
    let (logits, _) = run(&Drawn { loses: Some(40), ..drawn(1) }, 1);
    assert!(furthest(&logits, &plain) > 1e-2, "a lost pair is not seen");
}
