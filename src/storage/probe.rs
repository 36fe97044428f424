//! How fast a disk moves blocks: the io service at work on a file of its own.
//!
//! Law: a file that was made for it is gone when the measurement is, whatever came of it (a kill leaves
//! it, under a name that says what it is). A file that was there is only read.

use super::arena::Arena;
use super::disk::{
    DataFile, Extent, FileId, IoBuf, IoDone, IoEffective, IoOp, IoOptions, IoRequest, IoService,
};
use super::hierarchy::{SlotClass, SlotId};
use crate::base::{Error, Part, Result};
use crossbeam_channel::{Receiver, unbounded};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The file that is written and read.
#[derive(Debug)]
pub struct ProbeFile {
    path: PathBuf,
    len: u64,
    /// Made for this, and not there before.
    own: bool,
}

impl ProbeFile {
    /// A file of `len` bytes in `dir`, without blocks on the disk yet.
    ///
    /// # Errors
    /// `Io` when it cannot be made.
    pub fn make(dir: &Path, len: u64) -> Result<Self> {
        let path = dir.join(format!(".semoe-probe-{}", std::process::id()));
        let file = Self { path, len, own: true };
        std::fs::File::create(&file.path)
            .and_then(|made| made.set_len(len))
            .map_err(|e| Error::io(format!("creating {}", file.path.display()), e))?;
        Ok(file)
    }

    /// A file that is there, to be read.
    ///
    /// # Errors
    /// `Io` when it cannot be looked at.
    pub fn existing(path: &Path) -> Result<Self> {
        let len = std::fs::metadata(path)
            .map_err(|e| Error::io(format!("cannot read {}", path.display()), e))?
            .len();
        Ok(Self { path: path.to_owned(), len, own: false })
    }

    /// Its bytes.
    pub fn bytes(&self) -> u64 {
        self.len
    }
}

impl Drop for ProbeFile {
    fn drop(&mut self) {
        if self.own {
            drop(std::fs::remove_file(&self.path));
        }
    }
}

/// What was moved.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Moved {
    pub bytes: u64,
    pub seconds: f64,
}

impl Moved {
    /// Bytes a second.
    pub fn rate(self) -> f64 {
        self.bytes as f64 / self.seconds
    }
}

/// Whether reads compute the checksums of what they bring, as those of a store do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checksums {
    Computed,
    /// As for files of others.
    None,
}

/// Moves blocks of one size, so many at a time.
pub struct Probe {
    // Dropped first: nothing is under way when the arena goes.
    io: IoService,
    done: Receiver<IoDone>,
    arena: Arc<Arena>,
    block: u64,
    depth: u32,
    checksums: Checksums,
}

impl Probe {
    /// A probe with blocks of `block` bytes (a multiple of 4096), `depth` of them at a time.
    ///
    /// # Errors
    /// As [`Arena::new`] and [`IoService::start`].
    pub fn open(
        file: &ProbeFile,
        options: &IoOptions,
        block: u64,
        depth: u32,
        checksums: Checksums,
    ) -> Result<Self> {
        let class = SlotClass { part: Part::Weights, slot_bytes: block, slots: depth };
        let arena = Arena::new(&[class])?;
        let whole = arena.whole();
        // SAFETY: nothing else knows of the arena yet.
        scatter(unsafe { whole.as_mut_slice() });
        let (sender, done) = unbounded();
        let on_done = Arc::new(move |finished: IoDone| drop(sender.send(finished)));
        let path = file.path.clone();
        let data = DataFile { id: FileId(0), path, len: file.len, read_only: !file.own };
        let io = IoService::start(options, vec![data], Some((whole.ptr, whole.len)), on_done)?;
        Ok(Self { io, done, arena, block, depth, checksums })
    }

    /// What the io service put in place.
    pub fn effective(&self) -> &IoEffective {
        self.io.effective()
    }

    /// Moves the blocks that `moves` names by their place in the file, in this order, until there
    /// are no more or `patience` is over.
    ///
    /// # Errors
    /// As [`IoService::submit`]; `Io` when a transfer fails.
    pub fn run(
        &self,
        moves: impl IntoIterator<Item = (IoOp, u64)>,
        patience: Duration,
    ) -> Result<Moved> {
        let start = Instant::now();
        let mut moves = moves.into_iter();
        let mut free: Vec<u32> = (0..self.depth).collect();
        let mut bytes = 0;
        loop {
            while start.elapsed() < patience
                && let Some(index) = free.pop()
            {
                let Some((op, place)) = moves.next() else {
                    free.push(index);
                    break;
                };
                self.submit(op, place, index)?;
            }
            if free.len() == self.depth as usize {
                return Ok(Moved { bytes, seconds: start.elapsed().as_secs_f64() });
            }
            let one = self.done.recv().map_err(|_| Error::bug("the io thread went away"))?;
            one.result?;
            bytes += self.block;
            free.push(one.tag as u32);
        }
    }

    /// Starts a transfer of the block at `place` with slot `index`, after which it is called.
    fn submit(&self, op: IoOp, place: u64, index: u32) -> Result<()> {
        let slot = self.arena.slot(SlotId { part: Part::Weights, index })?;
        // SAFETY: the arena outlives the service, and a slot serves one request at a time.
        let buf = unsafe { IoBuf::new(slot.ptr, slot.len) };
        let unchecked = op == IoOp::Read && self.checksums == Checksums::None;
        self.io.submit(IoRequest {
            tag: u64::from(index),
            op,
            extent: Extent { file: FileId(0), offset: place * self.block, len: self.block },
            buf,
            urgency: 0,
            check: !unchecked,
            lift: None,
        })
    }
}

/// Bytes that no disk compresses.
fn scatter(bytes: &mut [u8]) {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for eight in bytes.chunks_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        eight.copy_from_slice(&state.to_le_bytes()[..eight.len()]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_blocks_are_moved_or_as_many_as_there_is_time_for() {
        let dir = tempfile::tempdir().unwrap();
        let file = ProbeFile::make(dir.path(), 64 << 10).unwrap();
        for checksums in [Checksums::Computed, Checksums::None] {
            let probe = Probe::open(&file, &IoOptions::default(), 4096, 3, checksums).unwrap();
            let all = |op| (0..16).map(move |place| (op, place));
            let written = probe.run(all(IoOp::Write), Duration::MAX).unwrap();
            let read = probe.run(all(IoOp::Read), Duration::MAX).unwrap();
            assert_eq!((written.bytes, read.bytes), (64 << 10, 64 << 10));
            assert!(read.rate() > 0.0);
            assert_eq!(probe.run(all(IoOp::Read), Duration::ZERO).unwrap().bytes, 0);
        }
        drop(file);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
