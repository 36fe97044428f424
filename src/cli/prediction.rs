//! A run's prediction beside what it measured, where this machine's figures are known.

use super::output;
use crate::base::Result;
use crate::infer::figures::Passes;
use crate::infer::forecast::{Beside, DiskRate, Forecast, Rates, Workload};
use crate::infer::machine::{self, Machine, device_of};
use std::path::Path;

/// What a run was, as far as a forecast goes.
#[derive(Debug, Clone)]
pub struct Run<'a> {
    pub model: &'a Path,
    pub work: &'a Workload,
    /// Threads of the kernels.
    pub threads: usize,
    /// The passes that decoded.
    pub decode: &'a Passes,
    /// Positions that a text held on average while it was made.
    pub positions: f64,
}

/// Shows prediction and measurement on standard error; gives the prediction. None where nothing
/// was decoded, or, which it says, where nobody has measured this machine.
///
/// # Errors
/// `Io` when it cannot be written.
pub fn show(run: &Run<'_>) -> Result<Option<Forecast>> {
    if run.decode.passes == 0 {
        return Ok(None);
    }
    let Some(machine) = machine::load() else {
        output::note("run `semoe doctor` for a prediction\n")?;
        return Ok(None);
    };
    let rates = Rates { disk: DiskRate::Measured(&machine.disk), compute: &machine.compute };
    let beside = Beside::of(run.work, &rates, run.decode, run.positions);
    let Some(beside) = beside else { return Ok(None) };
    output::note(&beside.to_string())?;
    output::note(&reservations(&machine, run.model, run.threads, true))?;
    Ok(Some(beside.forecast))
}

/// In what the figures differ from what is foretold with them, a line each; `disk` is whether
/// those of the disk are used.
pub fn reservations(machine: &Machine, model: &Path, threads: usize, disk: bool) -> String {
    let mut text = String::new();
    let measured = machine.compute.threads;
    if threads != measured {
        text += &format!("the forecast is for {measured} threads, not {threads}\n");
    }
    // A file that cannot be asked was refused before this.
    if disk && device_of(model).is_ok_and(|device| device != machine.disk.device) {
        text += &format!(
            "the forecast is for the disk of {}; the model lies on another: `semoe doctor --dir` \
             measures it\n",
            machine.disk.dir.display()
        );
    }
    text
}
