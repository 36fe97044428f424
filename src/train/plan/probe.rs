//! How fast the disk of a store moves a run's blocks: reads alone, writes alone, both at once.

use crate::base::units::round_up;
use crate::base::{Error, Part, Result};
use crate::storage::arena::Arena;
use crate::storage::disk::{
    DataFile, Extent, FileId, IoBuf, IoDone, IoOp, IoOptions, IoRequest, IoService,
};
use crate::storage::hierarchy::{SlotClass, SlotId};
use crossbeam_channel::{Receiver, unbounded};
use serde::Serialize;
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

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
    /// Processor seconds that a byte costs: checksums and the kernel's part.
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
        let path = dir.join(format!(".semoe-probe-{}", std::process::id()));
        let block = round_up(block.clamp(4096, MOST / 8), 4096);
        let count = (bytes.clamp(LEAST, MOST) / block).max(u64::from(DEPTH));
        let rates = Probe::open(&path, options, block, count).and_then(|probe| {
            // The first pass gives the file its blocks on the disk.
            probe.run(|_| IoOp::Write)?;
            let before = cpu_seconds();
            let write = probe.run(|_| IoOp::Write)?;
            let read = probe.run(|_| IoOp::Read)?;
            let mixed = probe.run(|at| if at % 2 == 0 { IoOp::Read } else { IoOp::Write })?;
            let cpu = (cpu_seconds() - before) / (3 * count * block) as f64;
            Ok(Self { read, write, mixed, cpu })
        });
        // A probe that stays behind is small and named for what it is.
        drop(std::fs::remove_file(&path));
        rates
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

struct Probe {
    // Dropped first: nothing is under way when the arena goes.
    io: IoService,
    done: Receiver<IoDone>,
    arena: Arc<Arena>,
    block: u64,
    count: u64,
}

impl Probe {
    fn open(path: &Path, options: &IoOptions, block: u64, count: u64) -> Result<Self> {
        let len = block * count;
        std::fs::File::create(path)
            .and_then(|file| file.set_len(len))
            .map_err(|e| Error::io(format!("creating {}", path.display()), e))?;
        let class = SlotClass { part: Part::Weights, slot_bytes: block, slots: DEPTH };
        let arena = Arena::new(&[class])?;
        let (sender, done) = unbounded();
        let on_done = Arc::new(move |finished: IoDone| drop(sender.send(finished)));
        let data = DataFile { id: FileId(0), path: path.to_owned(), len, read_only: false };
        let io = IoService::start(options, vec![data], None, on_done)?;
        Ok(Self { io, done, arena, block, count })
    }

    /// Moves every block once, in order, and gives the rate.
    fn run(&self, op: impl Fn(u64) -> IoOp) -> Result<f64> {
        let start = Instant::now();
        let mut free: Vec<u32> = (0..DEPTH).collect();
        let mut slot_of = vec![0; self.count as usize];
        let (mut next, mut finished) = (0, 0);
        while finished < self.count {
            while next < self.count
                && let Some(index) = free.pop()
            {
                let slot = self.arena.slot(SlotId { part: Part::Weights, index })?;
                // SAFETY: the arena outlives the service, and a slot serves one request at a time.
                let buf = unsafe { IoBuf::new(slot.ptr, slot.len) };
                let extent = Extent { file: FileId(0), offset: next * self.block, len: self.block };
                slot_of[next as usize] = index;
                self.io.submit(IoRequest {
                    tag: next,
                    op: op(next),
                    extent,
                    buf,
                    urgency: 0,
                    lift: None,
                })?;
                next += 1;
            }
            let one = self.done.recv().map_err(|_| Error::bug("the io thread went away"))?;
            one.result?;
            free.push(slot_of[one.tag as usize]);
            finished += 1;
        }
        Ok((self.count * self.block) as f64 / start.elapsed().as_secs_f64())
    }
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
