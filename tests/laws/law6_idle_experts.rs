//! Law 6: an expert that no token chose costs nothing in that step, and its missed updates, when
//! they are replayed, give exactly what updating it at every step gives.

use semoe::base::Result;
use semoe::config::Config;
use semoe::model::config::ModelConfig;
use semoe::model::gate::{Gate, GateContext, Selection, TopK};
use semoe::train::data::Batch;
use semoe::train::pipeline::Pipeline;
use semoe::train::{prepare, session};
use std::path::Path;
use tch::Tensor;

/// Keeps the last expert of every layer from being chosen until step 6.
struct Starving(TopK);

impl Gate for Starving {
    fn name(&self) -> &'static str {
        "starving"
    }

    fn top_k(&self) -> usize {
        self.0.top_k
    }

    fn select(&mut self, ctx: &GateContext, logits_te: &Tensor) -> Result<Selection> {
        let logits = logits_te.copy();
        let last = logits.size()[1] - 1;
        if ctx.step <= 5 {
            let _ = logits.select(1, last).fill_(-1e9);
        } else {
            // Everybody wants it now.
            let _ = logits.select(1, last).fill_(1e9);
        }
        self.0.select(ctx, &logits)
    }

    fn weights(&self, logits_te: &Tensor, selection: &Selection) -> Result<Tensor> {
        self.0.weights(logits_te, selection)
    }
}

fn run(dir: &Path, every_step: bool) -> (Vec<u64>, Vec<u32>) {
    let text = crate::common::TINY;
    let config = Config::parse(text, Path::new("tiny.toml"), &["train.clip=0.5".into()]).unwrap();
    let model = ModelConfig {
        vocab: 272,
        ..ModelConfig::from_hf(&crate::common::fixture("olmoe")).unwrap()
    };
    let mut load = prepare::load_of(&config, &model);
    load.micro_batches = 1;
    let pipeline = Pipeline::new(config).gate(|model: &ModelConfig| {
        let gate = TopK { top_k: model.top_k, renormalise: false, capacity_factor: None };
        Ok(Box::new(Starving(gate)))
    });
    let ready = prepare::create_stores(&pipeline, dir, load, |_, _| {}).unwrap();
    let ids: Vec<i64> = (0..4 * 32).map(|i| (i * i + 7 * i) % 256).collect();
    let targets = ids.iter().map(|id| (id + 1) % 256).collect();
    let batch = Batch { batch: 4, seq: 32, ids, targets };
    session::with(&pipeline, &ready, |session| {
        let mut losses = Vec::new();
        for _ in 0..8 {
            losses.push(session.train(&batch)?.loss.to_bits());
            if every_step {
                session.catch_up();
            }
        }
        let logits = session.logits(&batch, &[(0, 31), (3, 31)])?;
        Ok((losses, logits.concat().iter().map(|x| x.to_bits()).collect()))
    })
    .unwrap()
}

#[test]
fn replaying_missed_updates_equals_updating_at_every_step() {
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let lazy = run(a.path(), false);
    let eager = run(b.path(), true);
    assert_eq!(lazy, eager);
}

#[test]
fn what_idle_skip_leaves_out_makes_a_difference() {
    // Otherwise the test above could not fail.
    let dir = tempfile::tempdir().unwrap();
    let sets = ["actors.gate.kind=switch", "model.top_k=1", "train.lr=0.05"];
    let exact = crate::common::train(dir.path(), "exact", &sets);
    let skip = [&sets[..], &["actors.optimizer.idle=skip"]].concat();
    let skip = crate::common::train(dir.path(), "skip", &skip);
    let (exact, skip) = (crate::common::losses(&exact), crate::common::losses(&skip));
    assert_eq!(exact[0], skip[0]);
    assert_ne!(exact, skip);
}

/// Chooses the first two experts of every layer, always.
struct Favourites(TopK);

impl Gate for Favourites {
    fn name(&self) -> &'static str {
        "favourites"
    }

    fn top_k(&self) -> usize {
        self.0.top_k
    }

    fn select(&mut self, ctx: &GateContext, logits_te: &Tensor) -> Result<Selection> {
        let logits = logits_te.copy();
        let _ = logits.narrow(1, 2, logits.size()[1] - 2).fill_(-1e9);
        self.0.select(ctx, &logits)
    }

    fn weights(&self, logits_te: &Tensor, selection: &Selection) -> Result<Tensor> {
        self.0.weights(logits_te, selection)
    }
}

#[test]
fn experts_that_no_token_chose_cost_no_io() {
    let dir = tempfile::tempdir().unwrap();
    // Without a commit in between: what it writes belongs to no expert's use.
    let sets =
        ["storage.host=144KiB", "actors.prefetcher.predictor=last-step", "train.commit_every=1000"]
            .map(String::from);
    let config = Config::parse(crate::common::TINY, Path::new("tiny.toml"), &sets).unwrap();
    let gate = TopK { top_k: 2, renormalise: false, capacity_factor: None };
    let favourites = move |_: &ModelConfig| -> Result<Box<dyn Gate>> {
        let TopK { top_k, renormalise, capacity_factor } = gate;
        Ok(Box::new(Favourites(TopK { top_k, renormalise, capacity_factor })))
    };
    Pipeline::new(config).gate(favourites).run_dir(dir.path()).train().unwrap();
    // Six of 24 experts are used: weights three times (forward, backward, update), the state, and
    // the gradient, which may be spilled and read again.
    let (weights, state, grad) = (36 << 10, 72 << 10, 36 << 10);
    let most = 6 * (3 * weights + state + 2 * grad);
    let all = 24 * (2 * weights + state);
    assert!(most < all, "the case shows nothing");
    for line in crate::common::metrics(dir.path()) {
        for key in ["bytes_read", "bytes_written"] {
            let bytes = line[key].as_u64().unwrap();
            assert!(bytes <= most, "step {}: {key} = {bytes} of {most}", line["step"]);
        }
    }
}
