//! Files that are passed once, from front to back or piece by piece, and leave nothing in the page cache.
//!
//! Law: a run's page cache counts as its memory (a memory cgroup charges it), so whoever reads or
//! writes a file that is larger than a few pages gives its pages back as it goes.

use rustix::fs::{Advice, fadvise};
use std::fs::File;
use std::io::{Read, Result, Write};
use std::num::NonZeroU64;
use std::os::unix::fs::FileExt;

/// Bytes of a page.
const PAGE: u64 = 4096;

/// Bytes after which pages are given back.
pub const WINDOW: u64 = 4 << 20;

/// Gives back the clean pages of the first `len` bytes of `file`, or of all of it. Where the
/// system takes no advice the pages stay, and nothing else changes.
pub fn give_back(file: &File, len: Option<u64>) {
    let _ = fadvise(file, 0, len.and_then(NonZeroU64::new), Advice::DontNeed);
}

/// From now on reads of `file` bring nothing around them into the page cache: for pieces here and there.
/// Where the system takes no advice more is read, and nothing else changes.
pub fn without_read_ahead(file: &File) {
    let _ = fadvise(file, 0, None, Advice::Random);
}

/// Reads `bytes` at `offset` and gives back every page that holds some of them.
///
/// # Errors
/// As [`FileExt::read_exact_at`].
pub fn read_piece(file: &File, bytes: &mut [u8], offset: u64) -> Result<()> {
    file.read_exact_at(bytes, offset)?;
    // Pages of which a part alone is named would stay.
    let start = offset / PAGE * PAGE;
    let end = (offset + bytes.len() as u64).next_multiple_of(PAGE);
    let _ = fadvise(file, start, NonZeroU64::new(end - start), Advice::DontNeed);
    Ok(())
}

/// Reads a file once.
#[derive(Debug)]
pub struct ReadOnce {
    file: File,
    at: u64,
    kept_from: u64,
}

impl ReadOnce {
    pub fn new(file: File) -> Self {
        Self { file, at: 0, kept_from: 0 }
    }
}

impl Read for ReadOnce {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let read = self.file.read(buffer)?;
        self.at += read as u64;
        if self.at - self.kept_from >= WINDOW {
            give_back(&self.file, Some(self.at));
            self.kept_from = self.at;
        }
        Ok(read)
    }
}

impl Drop for ReadOnce {
    fn drop(&mut self) {
        give_back(&self.file, None);
    }
}

/// Writes a file once. Only [`WriteOnce::finish`] makes it durable.
#[derive(Debug)]
pub struct WriteOnce {
    file: File,
    unsynced: u64,
}

impl WriteOnce {
    pub fn new(file: File) -> Self {
        Self { file, unsynced: 0 }
    }

    /// Makes everything durable.
    ///
    /// # Errors
    /// When syncing fails.
    pub fn finish(&mut self) -> Result<()> {
        self.file.sync_all()?;
        give_back(&self.file, None);
        self.unsynced = 0;
        Ok(())
    }
}

impl Write for WriteOnce {
    fn write(&mut self, bytes: &[u8]) -> Result<usize> {
        let written = self.file.write(bytes)?;
        self.unsynced += written as u64;
        if self.unsynced >= WINDOW {
            // Only clean pages can be given back.
            self.file.sync_data()?;
            give_back(&self.file, None);
            self.unsynced = 0;
        }
        Ok(written)
    }

    fn flush(&mut self) -> Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_written_and_read_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        let bytes: Vec<u8> = (0..3 * WINDOW as usize + 5).map(|i| (i % 251) as u8).collect();
        let mut out = WriteOnce::new(File::create(&path).unwrap());
        bytes.chunks(70_001).for_each(|piece| out.write_all(piece).unwrap());
        out.finish().unwrap();
        let mut read = Vec::new();
        let mut input = ReadOnce::new(File::open(&path).unwrap());
        input.read_to_end(&mut read).unwrap();
        assert!(read == bytes);
    }
}
