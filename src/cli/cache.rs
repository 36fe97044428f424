//! `semoe cache replay PATH`: the block accesses of a run, through every cache policy.

use super::output;
use crate::base::Result;
use crate::config::Storage;
use crate::storage::policy::{PolicyConfig, PolicyKind};
use crate::storage::replay::{Trace, compare};
use crate::train::folder::ACCESS_TRACE;
use clap::{Args, Subcommand};
use std::path::PathBuf;

#[derive(Debug, Args)]
pub struct CacheArgs {
    #[command(subcommand)]
    command: CacheCommand,
}

#[derive(Debug, Subcommand)]
enum CacheCommand {
    /// Print hit rates and bytes of every policy, and of the offline optimum, side by side.
    Replay(Replay),
}

#[derive(Debug, Args)]
struct Replay {
    /// A run folder, or the file of recorded accesses in it.
    #[arg(value_name = "PATH")]
    path: PathBuf,
    /// Slots of the simulated cache, as a multiple of those that the run had.
    #[arg(long, default_value_t = 1.0)]
    scale: f64,
    /// Hits from which an entry counts as used (`se-moe`).
    #[arg(long)]
    threshold: Option<f64>,
    /// What hit counts are multiplied with at each decay (`se-moe`, `lfu`, `adaptive`).
    #[arg(long)]
    beta: Option<f64>,
    /// Accesses between two decays (`se-moe`, `lfu`).
    #[arg(long)]
    decay_every: Option<u64>,
    /// Write the comparison to FILE as JSON as well.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

impl CacheArgs {
    /// Runs the command.
    ///
    /// # Errors
    /// `Io` or `Input` for a file that is no access trace, `Config` for a parameter that means
    /// nothing, `Budget` when one node's blocks do not fit in the scaled cache.
    pub fn run(self) -> Result<()> {
        match self.command {
            CacheCommand::Replay(replay) => replay.run(),
        }
    }
}

impl Replay {
    fn run(self) -> Result<()> {
        let file = if self.path.is_dir() { self.path.join(ACCESS_TRACE) } else { self.path };
        let defaults = Storage::default();
        let policy = PolicyConfig {
            kind: PolicyKind::Planned,
            threshold: self.threshold.unwrap_or(defaults.threshold),
            beta: self.beta.unwrap_or(defaults.beta),
            every: self.decay_every.unwrap_or(defaults.decay_every),
        };
        let comparison = compare(&Trace::read(&file)?, &policy, self.scale)?;
        output::print(&format!("{comparison}\n"))?;
        match self.json {
            Some(json) => output::write_json(&json, &comparison),
            None => Ok(()),
        }
    }
}
