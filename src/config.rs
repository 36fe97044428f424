//! The whole configuration of a run: one TOML file, every key typed, documented and checked
//! before any work starts.
//!
//! ```text
//! text ─ source ─► table ─ overrides (--set) ─► schema check ─► defaults ─► structs ─► rules
//!        (lines)           unknown key, type,    required,      derived     plain      cross-field,
//!                          wrong word            bounds         values      values     once
//! ```
//!
//! The structs are the one source: the JSON schema is derived from them, and the schema drives
//! the check of a file, the editor's completion (`configs/schema.json`) and the reference
//! (`docs/configuration.md`). A [`Config`] holds effective values only; nothing in it still
//! waits for a default. Plain data: it imports nothing but `base`.

mod actors;
mod check;
mod data;
mod defaults;
mod model;
mod nearest;
pub mod reference;
mod rules;
mod run;
pub mod schema;
mod source;
mod storage;
mod train;

pub use actors::{
    Activations, Actors, AuxScope, Communicator, Dense, Expert, Gate, GateKind, Idle, Optimizer,
    Place, PredictorKind, Prefetcher,
};
pub use data::{Data, FileFormat, FileSource, Tokenizer};
pub use model::{Family, Model, Shape};
pub use run::{Graph, Parallel, ScheduleKind, Trace};
pub use storage::{PolicyKind, Storage, StorageEngine, Toggle};
pub use train::{Device, LrSchedule, NonFinite, Precision, Train};

use crate::base::{Error, Result};
use check::Fault;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use source::Source;
use std::path::{Path, PathBuf};

/// A run of semoe: what is trained, on what, within which budgets.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Name of the run; its folder is `runs/NAME`.
    #[schemars(extend("x-default" = "the file's name without .toml"), length(min = 1))]
    pub name: String,
    /// The model: a shape to start from scratch, or a checkpoint folder to continue from.
    #[schemars(extend("x-required" = true))]
    pub model: Model,
    /// The text and the tokenizer.
    #[schemars(extend("x-required" = true))]
    pub data: Data,
    /// Steps, batch, learning rate, and when to commit.
    #[schemars(extend("x-required" = true))]
    pub train: Train,
    /// Where expert blocks live and how they travel.
    #[schemars(extend("x-required" = true))]
    pub storage: Storage,
    /// One table for each actor.
    #[serde(default)]
    pub actors: Actors,
    /// The scheduler.
    #[serde(default)]
    pub graph: Graph,
    /// How the work is divided between ranks.
    #[serde(default)]
    pub parallel: Parallel,
    /// The recorded timeline.
    #[serde(default)]
    pub trace: Trace,
}

impl Config {
    /// Reads `path`, applies `sets` (each `a.b=value`) and resolves every default.
    ///
    /// # Errors
    /// `Config` for anything refused, naming file, line, key and the nearest valid one.
    pub fn load(path: &Path, sets: &[String]) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|e| {
            Error::config(format!("cannot read the configuration {}", path.display()))
                .from_source(e)
        })?;
        Self::parse(&text, path, sets)
    }

    /// As [`Config::load`], from text that stands (or would stand) in the file `path`.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn parse(text: &str, path: &Path, sets: &[String]) -> Result<Self> {
        let mut source = Source::parse(text, path)?;
        source.apply(sets)?;
        let resolved = resolve(&mut source, path);
        resolved.map_err(|fault| source.error(&fault))
    }

    /// Checks every value and every rule between values. [`Config::load`] has done so already;
    /// a configuration that was put together or changed in code is checked here.
    ///
    /// # Errors
    /// `Config`, naming the key.
    pub fn validate(&self) -> Result<()> {
        let error = |fault: Fault| Error::config(fault.to_string());
        let table = self.to_table()?;
        check::first_fault(&table).map_or(Ok(()), |fault| Err(error(fault)))?;
        rules::check(self).map_err(error)
    }

    /// The effective configuration as TOML that [`Config::load`] reads back to an equal value.
    ///
    /// # Errors
    /// `Bug` when a value has no TOML form.
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string(self).map_err(|e| {
            Error::bug("the configuration has a value that TOML cannot hold").from_source(e)
        })
    }

    /// The run folder when the command line names none: `runs/NAME`.
    pub fn default_run_dir(&self) -> PathBuf {
        Path::new("runs").join(&self.name)
    }

    /// The store's folder of a run in `run`.
    pub fn store_dir(&self, run: &Path) -> PathBuf {
        self.storage.dir.clone().unwrap_or_else(|| run.join("store"))
    }

    /// Refuses what `semoe plan` can compute with and this build cannot train.
    ///
    /// # Errors
    /// `Config` for `train.device = "cuda"`.
    pub fn check_trainable(&self) -> Result<()> {
        if self.train.device == Device::Cuda {
            return Err(Error::config(
                "train.device = \"cuda\" cannot be trained by this build: \
                 set train.device = \"cpu\" (semoe plan works with both)",
            ));
        }
        Ok(())
    }

    /// The effective configuration as a table, as it stands in a run folder.
    ///
    /// # Errors
    /// `Bug` when a value has no TOML form.
    pub fn to_table(&self) -> Result<toml::Table> {
        toml::Table::try_from(self).map_err(|e| {
            Error::bug("the configuration has a value that TOML cannot hold").from_source(e)
        })
    }
}

/// Checks the table, fills what is left out and builds the typed configuration.
fn resolve(source: &mut Source, path: &Path) -> Result<Config, Fault> {
    defaults::expand_shorthand(&mut source.table);
    if let Some(fault) = check::first_fault(&source.table) {
        return Err(fault);
    }
    defaults::derive(&mut source.table, path)?;
    let config: Config = source
        .table
        .clone()
        .try_into()
        .map_err(|e: toml::de::Error| Fault::new("", e.message().to_owned()))?;
    rules::check(&config)?;
    Ok(config)
}

#[cfg(test)]
mod tests;
