//! A gate of our own: hash routing (Roller et al., 2021). A token's experts depend on its place in
//! the batch alone, so nothing is learned about routing and the load is even.
//!
//! `cargo run --example 04_own_gate`

use semoe::base::{Result, idle};
use semoe::config::Config;
use semoe::model::config::ModelConfig;
use semoe::model::gate::{Gate, GateContext, Selection};
use semoe::train::pipeline::Pipeline;
use std::path::Path;
use tch::{Kind, Tensor};

struct HashGate {
    top_k: usize,
}

impl Gate for HashGate {
    fn name(&self) -> &'static str {
        "hash"
    }

    fn top_k(&self) -> usize {
        self.top_k
    }

    /// logits_te: [T, E]. The choice ignores them.
    fn select(&mut self, ctx: &GateContext, logits_te: &Tensor) -> Result<Selection> {
        let (tokens, experts) = logits_te.size2()?;
        let k = self.top_k as i64;
        let chosen: Vec<i64> = (0..tokens)
            .flat_map(|t| {
                let first = (ctx.first_token as i64 + t) * 7 + ctx.layer as i64 * 3;
                (0..k).map(move |choice| (first + choice) % experts)
            })
            .collect();
        Ok(Selection::dropless(Tensor::f_from_slice(&chosen)?.f_view([tokens, k])?))
    }

    /// Weights [T, K]: the softmax of the chosen experts' logits, so the router still learns how
    /// much each counts.
    fn weights(&self, logits_te: &Tensor, selection: &Selection) -> Result<Tensor> {
        let chosen_tk = logits_te.f_gather(1, &selection.experts_tk, false)?;
        Ok(chosen_tk.f_softmax(-1, Kind::Float)?)
    }
}

fn main() -> Result<()> {
    idle::sleep_when_idle();
    let run = std::env::temp_dir().join(format!("semoe-example-{}", std::process::id()));
    let config = Config::load(Path::new("configs/tiny.toml"), &["train.steps=8".to_owned()])?;
    let summary = Pipeline::new(config)
        .run_dir(&run)
        .gate(|model: &ModelConfig| Ok(Box::new(HashGate { top_k: model.top_k })))
        .train()?;
    println!("loss {:.3} after {} steps of hash routing", summary.loss, summary.step);
    drop(std::fs::remove_dir_all(run));
    Ok(())
}
