//! Reads of a disk at some sizes of requests and some depths, and what lies between them.

use super::Tell;
use crate::base::units::Bytes;
use crate::base::{Error, Result};
use crate::storage::disk::{IoOp, IoOptions};
use crate::storage::probe::{Checksums, Probe, ProbeFile};
use serde::{Deserialize, Serialize};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Bytes of a request: from a matrix of a small expert to the largest that a generator makes.
const BLOCKS: [u64; 3] = [16 << 10, 128 << 10, 1 << 20];
/// Requests with the device at a time; a generator keeps 16, unless asked otherwise.
const DEPTHS: [u32; 3] = [1, 4, 16];
/// The file that is read: as large as this, as a quarter of what is free, or as what can be
/// written in its time.
const MOST: u64 = 512 << 20;
const LEAST: u64 = 16 << 20;
const WRITING: Duration = Duration::from_secs(2);
const READING: Duration = Duration::from_millis(350);

/// Calls of `tell` while the disk is measured.
pub(super) const STEPS: u64 = 1 + (BLOCKS.len() * DEPTHS.len()) as u64;

/// What the disk is measured with.
#[derive(Debug, Clone, Copy)]
pub enum Reads<'a> {
    /// A file that is written to this folder, and removed again.
    Written(&'a Path),
    /// This file: what has lain on a disk for long may come slower than what was just written.
    Of(&'a Path),
}

/// What was measured at one size and depth.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct DiskPoint {
    /// Bytes of a request.
    pub block: u64,
    /// Requests at a time.
    pub depth: u32,
    /// Bytes a second.
    pub rate: f64,
}

/// Reads in random order, by the io service that a generator reads with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DiskFigures {
    /// The folder that was measured, and the device that it is on.
    pub dir: PathBuf,
    pub device: u64,
    /// `uring` or `pool`.
    pub engine: String,
    pub direct: bool,
    pub registered: bool,
    /// Why something is not as it could be.
    pub notes: Vec<String>,
    /// Every size at every depth.
    pub points: Vec<DiskPoint>,
}

impl DiskFigures {
    /// Measures the disk; see [`super::Machine::measure`].
    ///
    /// # Errors
    /// `Io` when the disk fails, `Input` where it is too full or the file too small, and what `tell`
    /// answers.
    pub fn measure(reads: Reads<'_>, tell: &mut Tell<'_>) -> Result<Self> {
        let options = IoOptions::default();
        let largest = BLOCKS[BLOCKS.len() - 1];
        let (dir, file, bytes) = match reads {
            Reads::Written(dir) => {
                let dir = canonical(dir)?;
                tell("writing what the disk is measured with")?;
                let (file, bytes) = written(&dir, &options)?;
                (dir, file, bytes)
            }
            Reads::Of(path) => {
                let path = canonical(path)?;
                tell("looking at the file that is read")?;
                let file = ProbeFile::existing(&path)?;
                let bytes = file.bytes() / largest * largest;
                if bytes < LEAST {
                    return Err(Error::input("the file is too small to measure a disk with")
                        .with("file", path.display())
                        .with("least", Bytes(LEAST)));
                }
                (path.parent().unwrap_or(Path::new("/")).to_owned(), file, bytes)
            }
        };
        let device = device_of(&dir)?;
        let probe = Probe::open(&file, &options, largest, 1, Checksums::None)?;
        let io = probe.effective().clone();
        drop(probe);
        let mut points = Vec::new();
        for block in BLOCKS {
            for depth in DEPTHS {
                tell(&format!("reads of {} KiB, {depth} at once", block >> 10))?;
                let threads = (depth as usize).min(options.threads);
                let options = IoOptions { depth: depth as usize, threads, ..options.clone() };
                let probe = Probe::open(&file, &options, block, depth, Checksums::None)?;
                let order = places(bytes / block).map(|at| (IoOp::Read, at));
                let rate = probe.run(order, READING)?.rate();
                points.push(DiskPoint { block, depth, rate });
            }
        }
        Ok(Self {
            dir,
            device,
            engine: io.engine.to_owned(),
            direct: io.direct,
            registered: io.registered,
            notes: io.notes,
            points,
        })
    }

    /// Bytes a second at requests of `bytes`, `depth` of them at a time: between what was
    /// measured the logarithm of the rate follows those of size and depth, beyond it nothing
    /// changes.
    pub fn rate(&self, bytes: f64, depth: f64) -> f64 {
        let blocks = sorted(self.points.iter().map(|point| point.block));
        let depths = sorted(self.points.iter().map(|point| u64::from(point.depth)));
        let ((low, high, along), (few, many, up)) =
            (between(&blocks, bytes), between(&depths, depth));
        let at = |block: u64, depth: u64| {
            let here = |p: &&DiskPoint| p.block == block && u64::from(p.depth) == depth;
            self.points.iter().find(here).map_or(1.0, |point| point.rate.max(1.0)).ln()
        };
        let mix = |a: f64, b: f64, share: f64| a + share * (b - a);
        let small = mix(at(low, few), at(low, many), up);
        let large = mix(at(high, few), at(high, many), up);
        mix(small, large, along).exp()
    }
}

fn canonical(path: &Path) -> Result<PathBuf> {
    path.canonicalize().map_err(|e| Error::io(format!("cannot find {}", path.display()), e))
}

/// A file that was just written to `dir`, and how much of it.
fn written(dir: &Path, options: &IoOptions) -> Result<(ProbeFile, u64)> {
    let disk = rustix::fs::statvfs(dir)
        .map_err(|e| Error::io(format!("cannot ask {}", dir.display()), e.into()))?;
    let largest = BLOCKS[BLOCKS.len() - 1];
    let free = disk.f_bavail * disk.f_frsize;
    let blocks = (free / 4).min(MOST) / largest;
    if blocks * largest < LEAST {
        return Err(Error::input("the disk is too full to be measured: give --dir elsewhere")
            .with("dir", dir.display())
            .with("free", Bytes(free)));
    }
    let file = ProbeFile::make(dir, blocks * largest)?;
    let probe = Probe::open(&file, options, largest, 16, Checksums::None)?;
    let bytes = probe.run((0..blocks).map(|at| (IoOp::Write, at)), WRITING)?.bytes;
    Ok((file, bytes))
}

/// The device that `path` lies on.
///
/// # Errors
/// `Io` where there is nothing.
pub fn device_of(path: &Path) -> Result<u64> {
    std::fs::metadata(path)
        .map(|meta| meta.dev())
        .map_err(|e| Error::io(format!("cannot read {}", path.display()), e))
}

/// Places among `count` blocks without end, in an order that no disk foresees.
fn places(count: u64) -> impl Iterator<Item = u64> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    std::iter::repeat_with(move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % count.max(1)
    })
}

fn sorted(values: impl Iterator<Item = u64>) -> Vec<u64> {
    let mut values: Vec<u64> = values.collect();
    values.sort_unstable();
    values.dedup();
    values
}

/// The neighbours of `x` in `steps`, and how far it lies from the lower to the upper, in logarithms.
fn between(steps: &[u64], x: f64) -> (u64, u64, f64) {
    let above = steps.iter().position(|step| *step as f64 >= x);
    match above {
        Some(0) => (steps[0], steps[0], 0.0),
        Some(upper) => {
            let (low, high) = (steps[upper - 1], steps[upper]);
            (low, high, (x / low as f64).ln() / (high as f64 / low as f64).ln())
        }
        None => {
            let last = steps.last().copied().unwrap_or_default();
            (last, last, 0.0)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::infer::machine::example;

    #[test]
    fn rates_between_measurements_lie_between_them() {
        let disk = example().disk;
        let close = |found: f64, expected: f64| {
            assert!((found / expected - 1.0).abs() < 1e-9, "{found} instead of {expected}");
        };
        close(disk.rate(16384.0, 1.0), 1e8);
        close(disk.rate(1048576.0, 16.0), 16e8);
        // Half way in logarithms, one way and both.
        close(disk.rate(16384.0, 4.0), 2e8);
        close(disk.rate(131072.0, 4.0), 4e8);
        // Beyond: as at the edge.
        close(disk.rate(1.0, 0.5), 1e8);
        close(disk.rate(1e12, 1e3), 16e8);
    }

    #[test]
    fn a_file_that_is_there_is_read_and_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        std::fs::write(&path, vec![7u8; LEAST as usize + 5]).unwrap();
        let mut told = 0;
        let figures = DiskFigures::measure(Reads::Of(&path), &mut |_| {
            told += 1;
            Ok(())
        });
        let figures = figures.unwrap();
        assert_eq!((told, figures.points.len()), (STEPS, BLOCKS.len() * DEPTHS.len()));
        assert!(figures.points.iter().all(|point| point.rate > 0.0));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing was written");
        std::fs::write(&path, b"small").unwrap();
        let error = DiskFigures::measure(Reads::Of(&path), &mut |_| Ok(())).unwrap_err();
        assert!(error.to_string().contains("model.safetensors"), "{error}");
    }

    #[test]
    fn places_are_all_over_the_file() {
        let found: Vec<u64> = places(8).take(200).collect();
        assert!((0..8).all(|place| found.contains(&place)));
        assert_eq!(sorted(found.into_iter()).len(), 8);
    }
}
