//! `semoe plan CONFIG`: what a run would need and do, without starting it.

use super::{ConfigFile, output};
use crate::base::Result;
use crate::train::plan::plan;
use clap::Args;
use std::path::PathBuf;

#[derive(Debug, Args)]
pub struct PlanArgs {
    #[command(flatten)]
    config: ConfigFile,
    /// A folder on the disk that the store will be on, for measuring it [default: here].
    #[arg(long, value_name = "DIR", default_value = ".", hide_default_value = true)]
    disk: PathBuf,
    /// Also write the plan as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

impl PlanArgs {
    /// Runs the command.
    ///
    /// # Errors
    /// As [`plan`].
    pub fn run(self) -> Result<()> {
        let config = self.config.load()?;
        let planned = plan(&config, &self.disk)?;
        if let Some(path) = &self.json {
            output::write_json(path, &planned)?;
        }
        output::print(&planned.text(&config))
    }
}
