//! What a run will need and do, without starting it: memory by ledger line, disk, traffic, time.
//!
//! ```text
//! rehearsal: the run's own kernels at its own shapes ─┐
//! probe: the disk with the run's own blocks           ├─► forecast: seconds and bytes of a step
//! placement: what is resident, what travels          ─┘
//! ```

mod forecast;
mod probe;
mod rehearsal;

pub use forecast::{Beside, Forecast, Measured, measured};
pub use probe::DiskRates;
pub use rehearsal::Rehearsal;

use super::account::account;
use super::placement::Placement;
use super::{model_of, prepare};
use crate::base::Result;
use crate::base::ledger::Ledger;
use crate::base::units::Bytes;
use crate::config::{self, Config, Device};
use crate::model::config::ModelConfig;
use crate::storage::store::Store;
use crate::text::tokenizer::Tokenizer;
use serde::Serialize;
use std::path::Path;

/// The prediction.
#[derive(Debug, Clone, Serialize)]
pub struct Plan {
    pub ledger: Ledger,
    pub memory_bytes: u64,
    pub disk_bytes: u64,
    pub forecast: Forecast,
    pub tokens_per_second: f64,
    pub terabytes_written_per_day: f64,
    pub placement: Placement,
}

/// Plans `config`.
///
/// # Errors
/// Budget where the configuration cannot work, with the figure that would.
pub fn plan(config: &Config, probe_dir: &Path) -> Result<Plan> {
    let model = planned_model(config)?;
    let load = prepare::load_of(config, &model);
    let placement = Placement::new(&load)?;
    let ranks = load.ranks as u64;
    let account = account(config, &load, &placement);
    let disk_bytes = Store::disk_required(&placement.store(&load, serde_json::json!({}))) * ranks;
    let forecast = Forecast::of(config, &load, &placement, probe_dir)?;
    let tokens = (load.batch * load.seq) as f64;
    Ok(Plan {
        memory_bytes: account.total(),
        ledger: account,
        disk_bytes,
        tokens_per_second: tokens / forecast.seconds,
        terabytes_written_per_day: forecast.written as f64 / forecast.seconds * 86_400.0 / 1e12,
        forecast,
        placement,
    })
}

/// The model without reading any data: a vocabulary that would be trained is taken at its word.
fn planned_model(config: &Config) -> Result<ModelConfig> {
    let tokenizer = match &config.data.tokenizer {
        config::Tokenizer::File { path } => Tokenizer::load(path)?,
        _ => Tokenizer::bytes()?,
    };
    let mut model = model_of::model_config(config, &tokenizer)?;
    let unset = config.model.shape().is_some_and(|shape| shape.vocab.is_none());
    if let (config::Tokenizer::Bpe { vocab }, true) = (&config.data.tokenizer, unset) {
        model.vocab = *vocab;
    }
    Ok(model)
}

impl Plan {
    /// The plan as text.
    pub fn text(&self, config: &Config) -> String {
        let device = match config.train.device {
            Device::Cpu => "cpu",
            Device::Cuda => "cuda (this machine's figures; its GPU was not measured)",
        };
        let Forecast { read, written, seconds, compute_seconds, io_seconds, disk, .. } =
            self.forecast;
        let mut text = format!(
            "device            {device}\n\
             memory at most\n{}\n\
             disk              {}\n\
             read a step       {}\n\
             written a step    {}\n\
             seconds a step    {seconds:.3} (compute {compute_seconds:.3}, disk {io_seconds:.3})\n\
             tokens a second   {:.0}\n\
             SSD writes        {:.2} TB a day\n",
            self.ledger,
            Bytes(self.disk_bytes),
            Bytes(read),
            Bytes(written),
            self.tokens_per_second,
            self.terabytes_written_per_day,
        );
        if let Some(disk) = disk {
            text += &format!("this disk         {disk}\n");
        }
        text
    }
}
