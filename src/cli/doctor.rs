//! `semoe doctor`: what this machine can, measured once and kept for forecasts.

use super::{interrupt, output};
use crate::base::{Error, Result};
use crate::infer::machine::{self, Machine};
use clap::Args;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// A folder on the disk that checkpoints lie on: a file is written there, read, and removed
    /// [default: here].
    #[arg(long, value_name = "DIR", default_value = ".", hide_default_value = true)]
    dir: PathBuf,
    /// Also write the figures as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

impl DoctorArgs {
    /// Runs the command.
    ///
    /// # Errors
    /// As [`measure_and_keep`].
    pub fn run(self) -> Result<()> {
        // Refused before the seconds that measuring takes.
        let file = machine::file()?;
        let machine = measure_and_keep(&self.dir)?;
        if let Some(path) = &self.json {
            output::write_json(path, &machine)?;
        }
        output::print(&machine.to_string())?;
        output::note(&format!("kept in {} for forecasts\n", file.display()))
    }
}

/// Measures this machine, with the disk of `dir`, shows how far it has come, and keeps the figures.
///
/// # Errors
/// As [`Machine::measure`] and [`machine::save`]; `Input` after Ctrl-C.
pub fn measure_and_keep(dir: &Path) -> Result<Machine> {
    let bar = super::run::bar("");
    bar.set_length(machine::STEPS);
    let stop = Arc::new(AtomicBool::new(false));
    let interrupted = interrupt::flags(vec![Arc::clone(&stop)])?;
    let mut begun = 0;
    let measured = Machine::measure(dir, &mut |doing: &str| {
        if stop.load(Ordering::Relaxed) {
            return Err(Error::input("the measurement was stopped: nothing was kept"));
        }
        bar.set_position(begun);
        bar.set_message(doing.to_owned());
        begun += 1;
        Ok(())
    });
    drop(interrupted);
    bar.finish_and_clear();
    let machine = measured?;
    machine::save(&machine)?;
    Ok(machine)
}
