//! `semoe train CONFIG`: train, or go on with a run.

use super::{ConfigFile, output};
use crate::base::Result;
use crate::base::units::Bytes;
use crate::train::pipeline::Pipeline;
use crate::train::plan::Beside;
use clap::Args;
use std::path::PathBuf;

#[derive(Debug, Args)]
pub struct TrainArgs {
    #[command(flatten)]
    config: ConfigFile,
    /// The run folder.
    #[arg(long, value_name = "DIR", help = "The run folder [default: runs/NAME]")]
    run: Option<PathBuf>,
    /// Go on with the run in the folder, from its last commit.
    #[arg(long)]
    resume: bool,
    /// Let a resume change this key although it changes what the run is.
    #[arg(long = "allow-change", value_name = "KEY", requires = "resume")]
    allow_change: Vec<String>,
    /// Also write the summary as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

impl TrainArgs {
    /// Runs the command.
    ///
    /// # Errors
    /// As [`Pipeline::train`].
    pub fn run(self) -> Result<()> {
        let mut pipeline = Pipeline::new(self.config.load()?);
        if let Some(dir) = self.run {
            pipeline = pipeline.run_dir(dir);
        }
        if self.resume {
            pipeline = pipeline.resume(self.allow_change);
        }
        let summary = pipeline.train()?;
        if let Some(path) = &self.json {
            output::write_json(path, &summary)?;
        }
        let state = if summary.interrupted { "stopped" } else { "done" };
        let mut text = format!(
            "{state} after step {}: loss {:.4}, {:.0} tokens/s",
            summary.step, summary.loss, summary.tokens_per_second
        );
        if let Some(loss) = summary.validation_loss {
            text += &format!(", validation loss {loss:.4}");
        }
        let (peak, most) = (Bytes(summary.peak_bytes), Bytes(summary.memory_bytes));
        text += &format!("\nmemory {peak} at the peak, {most} promised");
        if let Some(forecast) = &summary.forecast
            && summary.measured.steps > 0
        {
            text += &format!("\n{}", Beside(forecast, &summary.measured));
        }
        let text = text.trim_end();
        output::print(&format!("{text}\nrun folder {}\n", summary.run_dir.display()))
    }
}
