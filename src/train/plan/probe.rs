//! How fast the disk of a store moves a run's blocks: reads alone, writes alone, both at once.

use crate::base::Result;
use crate::base::units::round_up;
use crate::storage::disk::{IoOp, IoOptions};
use crate::storage::probe::{Checksums, Probe, ProbeFile};
use serde::Serialize;
use std::fmt;
use std::path::Path;
use std::time::Duration;

/// Blocks in flight at once.
const DEPTH: u32 = 8;
/// Bytes that one measurement moves, at least and at most.
const LEAST: u64 = 4 << 20;
const MOST: u64 = 256 << 20;

/// Bytes a second.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct DiskRates {
    pub read: f64,
    pub write: f64,
    /// Of reads and writes together, as many of each.
    pub mixed: f64,
    /// Processor seconds that a byte costs, the kernel's part among them. (The updates compute the
    /// checksums.)
    pub cpu: f64,
}

impl DiskRates {
    /// Seconds that the disk needs for these bytes, moving both ways while there are both.
    pub fn seconds(&self, read: u64, written: u64) -> f64 {
        let both = read.min(written);
        (2 * both) as f64 / self.mixed
            + (read - both) as f64 / self.read
            + (written - both) as f64 / self.write
    }

    /// Measures with blocks of `block` bytes in a file of its own in `dir`, moving about `bytes`
    /// each time.
    ///
    /// # Errors
    /// `Io` when the file cannot be made, written or read.
    pub fn measure(dir: &Path, options: &IoOptions, block: u64, bytes: u64) -> Result<Self> {
        let block = round_up(block.clamp(4096, MOST / 8), 4096);
        let count = (bytes.clamp(LEAST, MOST) / block).max(u64::from(DEPTH));
        let file = ProbeFile::make(dir, block * count)?;
        let probe = Probe::open(&file, options, block, DEPTH, Checksums::None)?;
        let run = |op: fn(u64) -> IoOp| {
            let all = (0..count).map(|at| (op(at), at));
            probe.run(all, Duration::MAX).map(|moved| moved.rate())
        };
        // The first pass gives the file its blocks on the disk.
        run(|_| IoOp::Write)?;
        let before = cpu_seconds();
        let write = run(|_| IoOp::Write)?;
        let read = run(|_| IoOp::Read)?;
        let mixed = run(|at| if at % 2 == 0 { IoOp::Read } else { IoOp::Write })?;
        let cpu = (cpu_seconds() - before) / (3 * count * block) as f64;
        Ok(Self { read, write, mixed, cpu })
    }
}

impl fmt::Display for DiskRates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [read, write, mixed] = [self.read, self.write, self.mixed].map(|rate| rate / 1e9);
        write!(f, "reads {read:.2} GB/s, writes {write:.2} GB/s, both at once {mixed:.2} GB/s")
    }
}

/// Processor seconds of this process so far.
fn cpu_seconds() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_take_the_mixed_rate_and_the_rest_its_own() {
        let rates = DiskRates { read: 2.0, write: 1.0, mixed: 4.0, cpu: 0.0 };
        assert_eq!(rates.seconds(8, 4), 2.0 + 2.0);
        assert_eq!(rates.seconds(0, 3), 3.0);
    }

    #[test]
    fn a_probe_measures_and_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let rates = DiskRates::measure(dir.path(), &IoOptions::default(), 5000, 1).unwrap();
        assert!(rates.read > 0.0 && rates.write > 0.0 && rates.mixed > 0.0);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
