//! `semoe plan`: what a run (CONFIG) or a checkpoint (--model) would need and do, without starting
//! it.

use super::doctor::measure_and_keep;
use super::prediction::reservations;
use super::{ConfigFile, output};
use crate::base::units::Bytes;
use crate::base::{Error, Result};
use crate::infer::forecast::{DiskRate, Rates};
use crate::infer::foresight::PredictorKind;
use crate::infer::machine;
use crate::infer::options::{Options, kv_type};
use crate::infer::plan::{Outline, Plan};
use crate::train::plan::plan;
use clap::{ArgGroup, Args};
use serde::Serialize;
use std::path::{Path, PathBuf};

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("planned").required(true).args(["file", "model"]))]
pub struct PlanArgs {
    /// The TOML file that describes a run.
    #[arg(value_name = "CONFIG")]
    file: Option<PathBuf>,
    /// Overrides one key of CONFIG; may be given several times. The value is TOML, or else a
    /// string.
    #[arg(long = "set", value_name = "KEY=VALUE", conflicts_with = "model")]
    sets: Vec<String>,
    /// Instead of a run: checkpoint folder in the Hugging Face layout, a .gguf file, or an imported
    /// store. Only its headers are read.
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Memory that the whole process may take, such as 4GiB [default: what the model needs, or
    /// nine tenths of what is free].
    #[arg(long, value_name = "SIZE", conflicts_with = "file")]
    memory: Option<String>,
    /// What the disk reads, in GB (10^9 bytes) a second [default: as `semoe doctor` measured].
    #[arg(long, value_name = "GBPS", conflicts_with = "file")]
    ssd_gbps: Option<f64>,
    /// Positions that a text may reach [default: the model's, at most 4096].
    #[arg(long, value_name = "TOKENS", conflicts_with = "file")]
    context: Option<usize>,
    /// Prompt tokens that pass the layers together [default: 512].
    #[arg(long, value_name = "TOKENS", conflicts_with = "file")]
    chunk: Option<usize>,
    /// Texts that are worked on at once [default: 1].
    #[arg(long, value_name = "TEXTS", conflicts_with = "file")]
    batch: Option<usize>,
    /// Threads of the kernels [default: all cores].
    #[arg(long, conflicts_with = "file")]
    threads: Option<usize>,
    /// Type of the keys and values that are kept, f32 or bf16 [default: f32].
    #[arg(long, value_name = "TYPE", conflicts_with = "file")]
    kv: Option<String>,
    /// What guesses the next layer's experts: gate-lookahead, transitions, none
    /// [default: gate-lookahead].
    #[arg(long, value_name = "PREDICTOR", conflicts_with = "file")]
    predictor: Option<PredictorKind>,
    /// A folder on the disk that is used, for measuring it [default: here]. With --model only
    /// where `semoe doctor` has not measured yet.
    #[arg(long, value_name = "DIR", default_value = ".", hide_default_value = true)]
    disk: PathBuf,
    /// Also write the plan as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// The plan of a checkpoint, and what it rests on.
#[derive(Debug, Serialize)]
struct Report<'a> {
    #[serde(flatten)]
    plan: &'a Plan,
    /// As it was said; None where the disk's figures are those that were measured.
    ssd_gbps: Option<f64>,
    machine: &'a machine::Machine,
}

impl PlanArgs {
    /// Runs the command.
    ///
    /// # Errors
    /// As [`plan`]; for a checkpoint as [`Outline::new`] and [`measure_and_keep`].
    pub fn run(self) -> Result<()> {
        match (&self.file, &self.model) {
            (_, Some(model)) => self.checkpoint(model),
            (Some(file), None) => self.training(file),
            (None, None) => Err(Error::config("give a CONFIG, or --model DIR")),
        }
    }

    fn training(&self, file: &Path) -> Result<()> {
        let config = ConfigFile { file: file.to_owned(), sets: self.sets.clone() }.load()?;
        let planned = plan(&config, &self.disk)?;
        if let Some(path) = &self.json {
            output::write_json(path, &planned)?;
        }
        output::print(&planned.text(&config))
    }

    fn checkpoint(&self, model: &Path) -> Result<()> {
        if self.ssd_gbps.is_some_and(|rate| !(rate.is_finite() && rate > 0.0)) {
            return Err(Error::config("--ssd-gbps must be a number above 0"));
        }
        let options = self.options(model)?;
        // Planned before anything is measured, which takes memory of its own.
        let outline = Outline::new(&options)?;
        let threads = outline.threads;
        let (machine, whence) = match machine::load() {
            Some(machine) => (machine, "measured by `semoe doctor`"),
            None => {
                output::note("this machine was not measured yet: measuring it once\n")?;
                (
                    measure_and_keep(machine::Reads::Written(&self.disk))?,
                    "measured now, and kept for the next time",
                )
            }
        };
        let disk = match self.ssd_gbps {
            Some(rate) => DiskRate::Said(rate * 1e9),
            None => DiskRate::Measured(&machine.disk),
        };
        let plan = outline.on(&Rates { disk, compute: &machine.compute });
        if let Some(path) = &self.json {
            let report = Report { plan: &plan, ssd_gbps: self.ssd_gbps, machine: &machine };
            output::write_json(path, &report)?;
        }
        let disk = match self.ssd_gbps {
            Some(rate) => format!("; the disk at {rate} GB/s, as was said"),
            None => String::new(),
        };
        output::print(&format!(
            "{plan}figures of this machine {whence}{disk}\n{}",
            reservations(&machine, model, threads, self.ssd_gbps.is_none()),
        ))
    }

    fn options(&self, model: &Path) -> Result<Options> {
        let mut options = Options::new(model);
        let memory = self.memory.as_deref().map(str::parse::<Bytes>).transpose();
        options.memory = memory.map_err(Error::config)?;
        options.context = self.context.unwrap_or(options.context);
        options.chunk = self.chunk.unwrap_or(options.chunk);
        options.sequences = self.batch.unwrap_or(options.sequences);
        options.threads = self.threads.unwrap_or(options.threads);
        options.predictor = self.predictor.unwrap_or(options.predictor);
        if let Some(kv) = &self.kv {
            options.kv = kv_type(kv)?;
        }
        Ok(options)
    }
}
