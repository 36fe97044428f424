//! `semoe doctor`: what this machine can, measured once and kept for forecasts.

use super::{interrupt, output};
use crate::base::{Error, Result};
use crate::infer::machine::{self, Machine, Reads};
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
    /// Read the largest file of this checkpoint (a folder, or a .gguf file) instead: what has lain on a
    /// disk for long may come slower than what was just written.
    #[arg(long, value_name = "MODEL", conflicts_with = "dir")]
    model: Option<PathBuf>,
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
        let largest = self.model.as_deref().map(largest_file).transpose()?;
        let reads = largest.as_deref().map_or(Reads::Written(&self.dir), Reads::Of);
        let machine = measure_and_keep(reads)?;
        if let Some(path) = &self.json {
            output::write_json(path, &machine)?;
        }
        output::print(&machine.to_string())?;
        output::note(&format!("kept in {} for forecasts\n", file.display()))
    }
}

/// The largest file of a checkpoint.
fn largest_file(model: &Path) -> Result<PathBuf> {
    if model.is_file() {
        return Ok(model.to_owned());
    }
    let failed = |e| Error::io(format!("cannot list {}", model.display()), e);
    let mut largest: Option<(u64, PathBuf)> = None;
    for entry in std::fs::read_dir(model).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let meta = std::fs::metadata(&path).map_err(failed)?;
        if meta.is_file() && largest.as_ref().is_none_or(|(len, _)| *len < meta.len()) {
            largest = Some((meta.len(), path));
        }
    }
    largest.map(|(_, path)| path).ok_or_else(|| {
        Error::input("there is no file in this folder to measure a disk with")
            .with("folder", model.display())
    })
}

/// Measures this machine, its disk by `reads`, shows how far it has come, and keeps the figures.
///
/// # Errors
/// As [`Machine::measure`] and [`machine::save`]; `Input` after Ctrl-C.
pub fn measure_and_keep(reads: Reads<'_>) -> Result<Machine> {
    let bar = super::run::bar("");
    bar.set_length(machine::STEPS);
    let stop = Arc::new(AtomicBool::new(false));
    let interrupted = interrupt::flags(vec![Arc::clone(&stop)])?;
    let mut begun = 0;
    let measured = Machine::measure(reads, &mut |doing: &str| {
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
