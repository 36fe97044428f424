//! What a run says of itself before it begins: requested beside effective, and the ledger.

use super::crew::Threads;
use super::launch::Ready;
use super::placement::Placement;
use crate::base::ledger::Ledger;
use crate::base::units::Bytes;
use crate::config::{Config, StorageEngine, Toggle};
use crate::graph::planner::train::Spread;
use crate::model::compute;
use crate::storage::disk::IoEffective;
use std::fmt::Write;

/// The opening lines of a run.
pub fn opening(config: &Config, ready: &Ready, ledger: &Ledger, io: &[IoEffective]) -> String {
    let mut text = String::new();
    let (model, placement) = (&ready.model, &ready.placement);
    let parameters = model.layers * model.experts * ready.load.shape.parameters();
    let mut line = |label: &str, value: String| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{label:<11}{value}");
    };
    line(
        "model",
        format!(
            "{} · {} layers of {} experts, top {} · {:.1} M expert parameters · {:?}",
            model.family,
            model.layers,
            model.experts,
            model.top_k,
            parameters as f64 / 1e6,
            ready.precision()
        ),
    );
    line("kernels", compute::in_effect(&ready.load.shape));
    line(
        "states",
        format!(
            "{} of weights, masters, moments and gradients; {} asked for, {} in effect",
            Bytes(placement.states_total),
            Bytes(config.storage.host.0),
            Bytes(placement.slot_bytes() * ready.load.ranks as u64)
        ),
    );
    line("updates", updates(config, placement));
    let asked = match config.storage.engine {
        StorageEngine::Auto => "auto",
        StorageEngine::Uring => "uring",
        StorageEngine::Pool => "pool",
    };
    let direct = match config.storage.direct {
        Toggle::Auto => "auto",
        Toggle::On => "on",
        Toggle::Off => "off",
    };
    for effective in io {
        line("io", format!("{asked}, direct {direct} asked for; {effective} in effect"));
    }
    if ready.load.ranks > 1 {
        line("ranks", format!("{} as threads, experts divided", ready.load.ranks));
    }
    line("threads", Threads::of(config, &ready.load).to_string());
    let _ = writeln!(text, "memory at most:\n{ledger}");
    text
}

/// Which states stay in memory, and when the others travel.
fn updates(config: &Config, placement: &Placement) -> String {
    let Spread { blocks, kept, carried } = placement.spread();
    let late = match placement.clipped {
        true => blocks - kept,
        false => carried,
    };
    let asked = match placement.clipped {
        true => format!("train.clip = {}", config.train.clip),
        false => format!("carry {}", config.actors.optimizer.carry),
    };
    format!(
        "{asked} asked for; of {blocks} states on each rank {kept} stay, {} travel behind the \
         backward pass, {late} in the next forward pass",
        blocks - kept - late
    )
}
