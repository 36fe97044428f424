//! The commands. Each has a file of its own: its arguments, and a function that runs it.
//!
//! A command reads its configuration in full before it starts anything, prints what it was asked
//! for on standard output, and returns an error rather than print one: `main` does that, once.

mod bench;
mod cache;
mod chat;
mod config;
mod doctor;
mod generate;
mod import;
mod interrupt;
mod model;
mod output;
mod perplexity;
mod plan;
mod prediction;
mod random;
mod run;
mod store;
mod train;
mod verify;

use crate::base::{Result, idle};
use crate::config::Config;
use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;

/// Train, fine-tune and serve Mixture-of-Experts models that do not fit in memory.
#[derive(Debug, Parser)]
#[command(name = "semoe", version, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Train a model, or go on with a run.
    Train(train::TrainArgs),
    /// The loss of a run on its held-out text.
    Eval(run::EvalArgs),
    /// Repack a checkpoint: each expert one aligned block, quantised where asked.
    Import(import::ImportArgs),
    /// Write a run, or an imported store, as a Hugging Face folder.
    Export(run::ExportArgs),
    /// Let a run continue a text.
    Sample(run::SampleArgs),
    /// Let a checkpoint continue prompts, within a memory budget far under its size.
    Generate(generate::GenerateArgs),
    /// Measure how well a checkpoint foretells a text.
    Perplexity(perplexity::PerplexityArgs),
    /// Measure how fast a checkpoint reads prompts and makes tokens.
    Bench(bench::BenchArgs),
    /// Write a checkpoint of random weights in the shape of a real one.
    RandomCheckpoint(random::RandomArgs),
    /// Talk with a checkpoint.
    Chat(chat::ChatArgs),
    /// Predict memory, disk, traffic and speed of a configuration or a checkpoint without starting
    /// it.
    Plan(plan::PlanArgs),
    /// Measure this machine once, for predictions: disk, memory, kernels, libtorch.
    Doctor(doctor::DoctorArgs),
    /// Compare a checkpoint folder with another implementation's outputs.
    Verify(verify::VerifyArgs),
    /// Show a configuration with every default, its JSON schema, or the reference of all keys.
    Config(config::ConfigArgs),
    /// List, check or tidy the store of a run.
    Store(store::StoreArgs),
    /// Replay a run's block accesses through every cache policy.
    Cache(cache::CacheArgs),
}

impl Cli {
    /// Whether the command computes with libtorch's threads.
    fn computes(&self) -> bool {
        !matches!(self.command, Command::Config(_) | Command::Store(_) | Command::Cache(_))
    }

    /// Runs the command.
    ///
    /// # Errors
    /// Whatever stopped it; [`crate::base::Error::exit_status`] gives the status to exit with.
    pub fn run(self) -> Result<()> {
        if self.computes() {
            idle::sleep_when_idle();
        }
        match self.command {
            Command::Train(args) => args.run(),
            Command::Eval(args) => args.run(),
            Command::Import(args) => args.run(),
            Command::Export(args) => args.run(),
            Command::Sample(args) => args.run(),
            Command::Generate(args) => args.run(),
            Command::Chat(args) => args.run(),
            Command::Bench(args) => args.run(),
            Command::Perplexity(args) => args.run(),
            Command::RandomCheckpoint(args) => args.run(),
            Command::Plan(args) => args.run(),
            Command::Doctor(args) => args.run(),
            Command::Verify(args) => args.run(),
            Command::Config(args) => args.run(),
            Command::Store(args) => args.run(),
            Command::Cache(args) => args.run(),
        }
    }
}

/// The configuration that a command works on: a file, and what the command line puts over it.
#[derive(Debug, Args)]
pub struct ConfigFile {
    /// The TOML file that describes the run.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Overrides one key; may be given several times. The value is TOML, or else a string.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub sets: Vec<String>,
}

impl ConfigFile {
    /// The effective configuration.
    ///
    /// # Errors
    /// `Config`, as [`Config::load`].
    pub fn load(&self) -> Result<Config> {
        Config::load(&self.file, &self.sets)
    }
}
