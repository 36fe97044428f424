//! What this machine can: measured once, kept in the user's cache, read by forecasts.
//!
//! ```text
//! disk: reads at some sizes and depths ──┐
//! compute: memory, kernels, overhead ────┼─► Machine ◄──► machine.json
//! libtorch: products, what was found ────┘
//! ```

mod compute;
mod disk;
mod kept;
mod torch;

pub use compute::ComputeFigures;
pub use disk::{DiskFigures, DiskPoint, Reads, device_of};
pub use kept::{file, load, save};
pub use torch::TorchFigures;

use crate::base::Result;
use crate::base::units::Bytes;
use crate::infer::memory::whole_memory;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

/// All of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    pub identity: Identity,
    /// Seconds since 1970.
    pub measured_at: u64,
    pub memory_bytes: u64,
    /// What the kernel does about huge pages: `always`, `madvise`, `never`, or `unknown`.
    pub huge_pages: String,
    pub disk: DiskFigures,
    pub compute: ComputeFigures,
    pub torch: TorchFigures,
}

/// What the figures are of: another program or processor has others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Version of the program.
    pub program: String,
    /// Whether it was built with optimisations alone, or for debugging.
    pub optimised: bool,
    pub processor: String,
    pub threads: usize,
}

impl Identity {
    /// Of this program on this machine.
    pub fn here() -> Self {
        let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = cpu.lines().find(|line| line.starts_with("model name"));
        let model = model.and_then(|line| line.split_once(':'));
        Self {
            program: env!("CARGO_PKG_VERSION").to_owned(),
            optimised: !cfg!(debug_assertions),
            processor: model.map_or("unknown", |(_, name)| name.trim()).to_owned(),
            threads: std::thread::available_parallelism().map_or(1, usize::from),
        }
    }
}

/// Steps of [`Machine::measure`].
pub const STEPS: u64 = disk::STEPS + compute::STEPS + torch::STEPS;

/// Told what is measured next; an error ends the measurement.
pub type Tell<'a> = dyn FnMut(&str) -> Result<()> + 'a;

impl Machine {
    /// Measures the disk by `reads`, and everything else. Takes some seconds, and 0.5 GiB of memory and
    /// of disk at most; `tell` is called [`STEPS`] times.
    ///
    /// # Errors
    /// `Io` when the disk cannot be written or read, `Torch` when libtorch fails, and whatever `tell`
    /// answers.
    pub fn measure(reads: Reads<'_>, tell: &mut Tell<'_>) -> Result<Self> {
        let identity = Identity::here();
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        Ok(Self {
            measured_at: now.map_or(0, |since| since.as_secs()),
            memory_bytes: whole_memory()?,
            huge_pages: huge_pages(),
            disk: DiskFigures::measure(reads, tell)?,
            compute: ComputeFigures::measure(identity.threads, tell)?,
            torch: TorchFigures::measure(identity.threads, tell)?,
            identity,
        })
    }
}

/// The mode in brackets of `always [madvise] never`.
fn huge_pages() -> String {
    let path = "/sys/kernel/mm/transparent_hugepage/enabled";
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let mode = text.split_once('[').and_then(|(_, rest)| rest.split_once(']'));
    mode.map_or("unknown", |(mode, _)| mode).to_owned()
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Identity { program, optimised, processor, threads } = &self.identity;
        let built = if *optimised { "" } else { ", built for debugging: slower than it can be" };
        let mut line = |thing: &str, figure: String| writeln!(f, "{thing:<26} {figure}");
        line("thing", "figure".into())?;
        line("program", format!("semoe {program}{built}"))?;
        line("processor", format!("{processor}, {threads} threads"))?;
        line("memory", Bytes(self.memory_bytes).to_string())?;
        let given = match self.huge_pages.as_str() {
            "always" | "madvise" => "permitted",
            _ => "not permitted",
        };
        line("huge pages", format!("{given} ({})", self.huge_pages))?;
        let compute = &self.compute;
        line("memory, read by all", gigabytes(compute.memory))?;
        for (encoding, rate) in &compute.kernels {
            let share = rate / compute.memory;
            line(
                &format!("weights in {encoding}, 1 row"),
                format!("{}, {share:.2} of memory", gigabytes(*rate)),
            )?;
        }
        line("overhead a layer", format!("{:.1} µs", compute.layer_seconds * 1e6))?;
        line("overhead an expert", format!("{:.1} µs", compute.expert_seconds * 1e6))?;
        let TorchFigures { version, cuda_devices, f32_flops, bf16_flops } = &self.torch;
        let cuda = match cuda_devices {
            0 => "no CUDA found".to_owned(),
            devices => format!("CUDA with {devices} devices"),
        };
        line("libtorch", format!("{version}, {cuda}"))?;
        for (name, flops) in [("f32", f32_flops), ("bf16", bf16_flops)] {
            line(&format!("libtorch {name} product"), format!("{:.0} GFLOP/s", flops * 1e-9))?;
        }
        let disk = &self.disk;
        let yes = |yes: bool| if yes { "permitted" } else { "not permitted" }.to_owned();
        line("io_uring", yes(disk.engine == "uring"))?;
        line("registered buffers", yes(disk.registered))?;
        let direct = if disk.direct { "O_DIRECT" } else { "through the page cache" };
        line("disk", format!("{} ({direct})", disk.dir.display()))?;
        for note in &disk.notes {
            line("", note.clone())?;
        }
        for DiskPoint { block, depth, rate } in &disk.points {
            let thing = format!("  reads of {} KiB, {depth} at once", block >> 10);
            line(&thing, gigabytes(*rate))?;
        }
        Ok(())
    }
}

fn gigabytes(rate: f64) -> String {
    format!("{:.2} GB/s", rate * 1e-9)
}

/// Figures of no machine, for tests.
#[cfg(test)]
pub(super) fn example() -> Machine {
    let point = |block, depth, rate| DiskPoint { block, depth, rate };
    Machine {
        identity: Identity::here(),
        measured_at: 7,
        memory_bytes: 1 << 34,
        huge_pages: "madvise".into(),
        disk: DiskFigures {
            dir: "/data".into(),
            device: 5,
            engine: "uring".into(),
            direct: true,
            registered: false,
            notes: vec!["buffers are plain".into()],
            points: vec![
                point(16 << 10, 1, 1e8),
                point(16 << 10, 16, 4e8),
                point(1 << 20, 1, 4e8),
                point(1 << 20, 16, 16e8),
            ],
        },
        compute: ComputeFigures {
            threads: 2,
            memory: 60e9,
            kernels: [("bf16".to_owned(), 54e9)].into(),
            layer_seconds: 2e-5,
            expert_seconds: 1e-5,
        },
        torch: TorchFigures {
            version: "2.11.0".into(),
            cuda_devices: 0,
            f32_flops: 2e11,
            bf16_flops: 3e11,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_says_what_was_found_and_what_was_not() {
        let text = example().to_string();
        for part in [
            "io_uring                   permitted",
            "registered buffers         not permitted",
            "no CUDA found",
            "54.00 GB/s, 0.90 of memory",
            "  reads of 1024 KiB, 16 at once 1.60 GB/s",
            "buffers are plain",
        ] {
            assert!(text.contains(part), "{part:?} is not in\n{text}");
        }
    }
}
