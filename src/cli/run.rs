//! `semoe eval`, `export` and `sample`: commands on a run folder.

use super::output;
use crate::base::units::Bytes;
use crate::base::{Error, Result};
use crate::model::checkpoint::{self, Source, store};
use crate::model::config::Precision;
use crate::train::opened::{OpenedRun, Sampling};
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use std::path::PathBuf;

#[derive(Debug, Args)]
pub struct RunFolderArgs {
    /// The run folder.
    #[arg(value_name = "RUN")]
    run: PathBuf,
    /// Overrides one key of the run's configuration, such as storage.host=1GiB.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
}

impl RunFolderArgs {
    fn open(&self) -> Result<OpenedRun> {
        OpenedRun::open(&self.run, &self.sets)
    }
}

#[derive(Debug, Args)]
pub struct EvalArgs {
    #[command(flatten)]
    run: RunFolderArgs,
    /// Held-out batches to take; 0 takes all.
    #[arg(long, default_value_t = 0)]
    batches: u64,
    /// Also write the result as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

impl EvalArgs {
    /// Runs the command.
    ///
    /// # Errors
    /// As [`OpenedRun::evaluate`].
    pub fn run(self) -> Result<()> {
        let bar = bar("batches");
        let found = self.run.open()?.evaluate(self.batches, |done, total| {
            bar.set_length(total);
            bar.set_position(done);
        })?;
        bar.finish_and_clear();
        if let Some(path) = &self.json {
            output::write_json(path, &found)?;
        }
        output::print(&format!(
            "step {}: loss {:.4}, perplexity {:.3} over {} tokens\n",
            found.step, found.loss, found.perplexity, found.tokens
        ))
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Dtype {
    Bf16,
    F32,
}

#[derive(Debug, Args)]
pub struct ExportArgs {
    #[command(flatten)]
    run: RunFolderArgs,
    /// The folder to write [default: RUN/export].
    #[arg(long, value_name = "DIR")]
    to: Option<PathBuf>,
    /// Type of a run's weights [default: bf16]. Of a store, weights in an encoding that Hugging Face
    /// has stay as they are, and others become bf16.
    #[arg(long, value_enum)]
    dtype: Option<Dtype>,
    /// Largest size of one file.
    #[arg(long, default_value = "4GiB", value_name = "SIZE")]
    shard: String,
}

impl ExportArgs {
    /// Runs the command.
    ///
    /// # Errors
    /// As [`OpenedRun::export`].
    pub fn run(self) -> Result<()> {
        let shard: Bytes = self.shard.parse().map_err(Error::config)?;
        if self.run.run.is_file() || self.run.run.join(store::INDEX).exists() {
            return self.run_on_checkpoint(shard);
        }
        let dtype = match self.dtype {
            None | Some(Dtype::Bf16) => Precision::Bf16,
            Some(Dtype::F32) => Precision::F32,
        };
        let bar = bar("experts");
        let to = self.run.open()?.export(self.to, dtype, shard.0, |done, total| {
            bar.set_length(total);
            bar.set_position(done);
        })?;
        bar.finish_and_clear();
        output::print(&format!("exported to {}\n", to.display()))
    }

    /// Exports an imported store or a GGUF file.
    fn run_on_checkpoint(self, shard: Bytes) -> Result<()> {
        if self.dtype.is_some() || !self.run.sets.is_empty() {
            return Err(Error::config("--dtype and --set belong to the export of a run"));
        }
        let to = self.to.ok_or_else(|| Error::config("--to is missing: where to export it"))?;
        let bar = bar("tensors and experts");
        checkpoint::export(&Source::open(&self.run.run)?, &to, shard.0, |done, total| {
            bar.set_length(total);
            bar.set_position(done);
        })?;
        bar.finish_and_clear();
        output::print(&format!("exported to {}\n", to.display()))
    }
}

#[derive(Debug, Args)]
pub struct SampleArgs {
    #[command(flatten)]
    run: RunFolderArgs,
    /// Text to continue.
    #[arg(long, default_value = "")]
    prompt: String,
    /// Tokens to make.
    #[arg(long, default_value_t = 100)]
    tokens: usize,
    /// 0 takes the likeliest token each time.
    #[arg(long, default_value_t = 0.8)]
    temperature: f64,
    /// Draw from the so many likeliest tokens; 0 is all.
    #[arg(long, default_value_t = 40)]
    top_k: usize,
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

impl SampleArgs {
    /// Runs the command.
    ///
    /// # Errors
    /// As [`OpenedRun::sample`].
    pub fn run(self) -> Result<()> {
        let sampling = Sampling {
            tokens: self.tokens,
            temperature: self.temperature,
            top_k: self.top_k,
            seed: self.seed,
        };
        let run = self.run.open()?;
        output::print(&self.prompt)?;
        let mut printed = Ok(());
        run.sample(&self.prompt, &sampling, |piece| {
            if printed.is_ok() {
                printed = output::print(piece);
            }
        })?;
        printed?;
        output::print("\n")
    }
}

pub(super) fn bar(what: &'static str) -> ProgressBar {
    let bar = ProgressBar::new(0);
    // The template is a constant; a wrong one would only lose the style.
    if let Ok(style) = ProgressStyle::with_template("{bar:24.cyan/white} {pos}/{len} {msg} {eta}") {
        bar.set_style(style);
    }
    bar.set_message(what);
    bar
}
