//! Seconds and bytes of a step: forecast before it, measured after it.

use super::probe::DiskRates;
use super::rehearsal::Rehearsal;
use crate::base::Result;
use crate::base::units::Bytes;
use crate::config::{Config, ScheduleKind};
use crate::train::launch::io_options;
use crate::train::metrics::StepMetrics;
use crate::train::placement::{Load, Moved, Placement, Traffic};
use serde::Serialize;
use std::fmt;
use std::path::Path;

/// What a step in steady state will take.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Forecast {
    pub seconds: f64,
    pub read: u64,
    pub written: u64,
    pub compute_seconds: f64,
    pub io_seconds: f64,
    pub rehearsal: Rehearsal,
    /// None where nothing travels.
    pub disk: Option<DiskRates>,
}

impl Forecast {
    /// Rehearses the run's arithmetic and, where blocks travel, probes the disk of `dir`.
    ///
    /// # Errors
    /// As [`Rehearsal::of`] and [`DiskRates::measure`].
    pub fn of(config: &Config, load: &Load, placement: &Placement, dir: &Path) -> Result<Self> {
        let traffic = traffic_of(config, load, placement);
        let Traffic { forward, backward } = traffic;
        let (read, written) = (forward.read + backward.read, forward.written + backward.written);
        let disk = (read > 0)
            .then(|| {
                let block = placement.state_bytes;
                DiskRates::measure(dir, &io_options(config), block, read + written)
            })
            .transpose()?;
        let rehearsal = Rehearsal::of(config, load)?;
        // Io takes a core from the executor, whose other threads wait for that one.
        let io_cpu = disk.map_or(0.0, |disk| disk.cpu * (read + written) as f64);
        let compute_seconds = rehearsal.seconds() + io_cpu;
        let io = |moved: Moved| disk.map_or(0.0, |disk| disk.seconds(moved.read, moved.written));
        let (io_forward, io_backward) = (io(forward), io(backward));
        let io_seconds = io_forward + io_backward;
        let seconds = match config.graph.schedule {
            ScheduleKind::Sequential => compute_seconds + io_seconds,
            // What is carried over has no time but the forward pass, the rest that of the backward
            // pass, which computes twice as much.
            ScheduleKind::Overlapped => {
                let compute_forward = compute_seconds / 3.0;
                io_forward.max(compute_forward) + io_backward.max(compute_seconds - compute_forward)
            }
        };
        Ok(Self { seconds, read, written, compute_seconds, io_seconds, rehearsal, disk })
    }
}

/// What all ranks move in a step, a commit's share among it.
fn traffic_of(config: &Config, load: &Load, placement: &Placement) -> Traffic {
    let mut traffic = placement.traffic();
    let slots = placement.slots;
    // A commit writes what is resident and changed.
    let resident = u64::from(slots.weights) * placement.weights_bytes
        + u64::from(slots.states) * placement.state_bytes;
    traffic.backward.written += resident.checked_div(config.train.commit_every).unwrap_or(0);
    for moved in [&mut traffic.forward, &mut traffic.backward] {
        moved.read *= load.ranks as u64;
        moved.written *= load.ranks as u64;
    }
    traffic
}

/// What steps took: the median of their seconds, the mean of their bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Measured {
    /// Steps that count: the first two warm up where there are more.
    pub steps: usize,
    pub seconds: f64,
    pub read: u64,
    pub written: u64,
}

/// What the steps of a run took.
pub fn measured(steps: &[StepMetrics]) -> Measured {
    let steps = steps.get(2.min(steps.len().saturating_sub(1))..).unwrap_or_default();
    let mut seconds: Vec<f64> = steps.iter().map(|step| step.seconds).collect();
    seconds.sort_by(f64::total_cmp);
    let Some(median) = seconds.get(seconds.len() / 2) else { return Measured::default() };
    let mean =
        |get: fn(&StepMetrics) -> u64| steps.iter().map(get).sum::<u64>() / steps.len() as u64;
    Measured {
        steps: steps.len(),
        seconds: *median,
        read: mean(|step| step.bytes_read),
        written: mean(|step| step.bytes_written),
    }
}

/// Both, side by side.
pub struct Beside<'a>(pub &'a Forecast, pub &'a Measured);

impl fmt::Display for Beside<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(forecast, measured) = self;
        writeln!(f, "a step         forecast    measured")?;
        writeln!(f, "seconds    {:>12.3}{:>12.3}", forecast.seconds, measured.seconds)?;
        let mut bytes = |name, forecast: u64, measured: u64| {
            let (forecast, measured) = (Bytes(forecast).to_string(), Bytes(measured).to_string());
            writeln!(f, "{name:<11}{forecast:>12}{measured:>12}")
        };
        bytes("read", forecast.read, measured.read)?;
        bytes("written", forecast.written, measured.written)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(seconds: f64, bytes_read: u64) -> StepMetrics {
        StepMetrics { seconds, bytes_read, ..Default::default() }
    }

    #[test]
    fn the_first_two_steps_warm_up() {
        let steps = [step(9.0, 900), step(8.0, 0), step(1.0, 10), step(3.0, 10), step(2.0, 40)];
        let of = measured(&steps);
        assert_eq!((of.steps, of.seconds, of.read), (3, 2.0, 20));
        assert_eq!(measured(&steps[..1]).seconds, 9.0);
        assert_eq!(measured(&[]), Measured::default());
    }
}
