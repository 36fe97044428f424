//! What an import has done so far: a line a block, written once the block is durable.

use super::recode::Deviation;
use crate::base::{Error, Result};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

/// A block that is on disk.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Done {
    /// CRC32C of its bytes.
    pub crc: u32,
    pub deviation: Deviation,
}

/// The log of an import.
pub(super) struct Log {
    file: File,
    path: PathBuf,
}

impl Log {
    /// Opens the log, and says what it holds: blocks in their order, from the first. A line that a
    /// kill cut off, and what follows it, does not count.
    ///
    /// # Errors
    /// Io.
    pub fn open(path: &Path) -> Result<(Self, Vec<Done>)> {
        let io = |e| Error::io(format!("opening {}", path.display()), e);
        let text = match std::fs::read(path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(e) => return Err(io(e)),
        };
        let mut done = Vec::new();
        for line in text.split_inclusive(|byte| *byte == b'\n') {
            match parse(line, done.len()) {
                Some(block) => done.push(block),
                None => break,
            }
        }
        let file = OpenOptions::new().create(true).append(true).open(path).map_err(io)?;
        Ok((Self { file, path: path.to_owned() }, done))
    }

    /// Makes the log hold `done` and nothing else.
    ///
    /// # Errors
    /// Io.
    pub fn restart(&mut self, done: &[Done]) -> Result<()> {
        self.file
            .set_len(0)
            .map_err(|e| Error::io(format!("writing {}", self.path.display()), e))?;
        self.append(0, done)
    }

    /// Adds blocks, the first having number `first`.
    ///
    /// # Errors
    /// Io.
    pub fn append(&mut self, first: usize, done: &[Done]) -> Result<()> {
        let line = |(number, done): (usize, &Done)| {
            let Done { crc, deviation: Deviation { error, norm } } = done;
            format!("{} {crc:08x} {error:e} {norm:e}\n", first + number)
        };
        let text: String = done.iter().enumerate().map(line).collect();
        self.file
            .write_all(text.as_bytes())
            .and_then(|()| self.file.sync_data())
            .map_err(|e| Error::io(format!("writing {}", self.path.display()), e))
    }
}

fn parse(line: &[u8], number: usize) -> Option<Done> {
    let line = std::str::from_utf8(line).ok()?.strip_suffix('\n')?;
    let mut words = line.split(' ');
    if words.next()?.parse::<usize>().ok()? != number {
        return None;
    }
    let crc = u32::from_str_radix(words.next()?, 16).ok()?;
    let deviation =
        Deviation { error: words.next()?.parse().ok()?, norm: words.next()?.parse().ok()? };
    words.next().is_none().then_some(Done { crc, deviation })
}
