//! Token files: what a data file became, kept in the run folder and read by position.
//!
//! A token is two or four bytes, the top bit saying that it is no target (a prompt's token in a
//! chat). A file is written once, streaming, and named by what it was made from; the description
//! beside it is written last, so a half-written file is never taken for a whole one. Small files
//! are held in memory, large ones are read a sequence at a time.

use crate::base::behind::{ReadOnce, WriteOnce, give_back, without_read_ahead};
use crate::base::{Error, Result, checksum};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Files up to this many bytes are held in memory.
pub const HELD: u64 = 8 << 20;

/// What is known of a token file without opening it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenCount {
    pub tokens: u64,
    /// Tokens that are targets.
    pub targets: u64,
    /// CRC32C of the bytes of the file: equal data and tokenizer give an equal one.
    pub crc: u32,
    /// Bytes a token: 2 for vocabularies up to 32768, else 4.
    pub width: u8,
}

/// Bytes a token that a vocabulary of this size needs.
pub fn width_for(vocab: usize) -> u8 {
    if vocab <= 1 << 15 { 2 } else { 4 }
}

/// Writes a token file from front to back.
#[derive(Debug)]
pub struct TokenWriter {
    path: PathBuf,
    out: BufWriter<WriteOnce>,
    count: TokenCount,
    scratch: Vec<u8>,
}

impl TokenWriter {
    /// # Errors
    /// When the file cannot be created.
    pub fn create(path: &Path, width: u8) -> Result<Self> {
        let file = File::create(path)
            .map_err(|e| Error::io(format!("creating token file {}", path.display()), e))?;
        Ok(Self {
            path: path.to_owned(),
            out: BufWriter::with_capacity(1 << 20, WriteOnce::new(file)),
            count: TokenCount { tokens: 0, targets: 0, crc: 0, width },
            scratch: Vec::new(),
        })
    }

    /// Appends tokens, each with whether it is a target.
    ///
    /// # Errors
    /// When the disk is full or writing fails.
    pub fn push(&mut self, tokens: &[(u32, bool)]) -> Result<()> {
        self.scratch.clear();
        for &(id, target) in tokens {
            if self.count.width == 2 {
                let word = id as u16 | if target { 0 } else { 1 << 15 };
                self.scratch.extend_from_slice(&word.to_le_bytes());
            } else {
                let word = id | if target { 0 } else { 1 << 31 };
                self.scratch.extend_from_slice(&word.to_le_bytes());
            }
            self.count.targets += u64::from(target);
        }
        self.count.tokens += tokens.len() as u64;
        self.count.crc = checksum::crc32c_append(self.count.crc, &self.scratch);
        self.out.write_all(&self.scratch).map_err(|e| self.writing(e))
    }

    /// Makes the file durable.
    ///
    /// # Errors
    /// As [`Self::push`].
    pub fn finish(mut self) -> Result<TokenCount> {
        let flushed = self.out.flush().and_then(|()| self.out.get_mut().finish());
        flushed.map_err(|e| self.writing(e))?;
        Ok(self.count)
    }

    fn writing(&self, e: std::io::Error) -> Error {
        Error::io(format!("writing token file {}", self.path.display()), e)
    }
}

/// A token file, open for reading at any position.
#[derive(Debug)]
pub struct TokenFile {
    path: PathBuf,
    count: TokenCount,
    bytes: Held,
}

#[derive(Debug)]
enum Held {
    Memory(Vec<u8>),
    Disk(File),
}

impl TokenFile {
    /// Opens what [`TokenWriter`] wrote.
    ///
    /// # Errors
    /// When the file is missing, has another length, or (a small one) another checksum.
    pub fn open(path: &Path, count: &TokenCount) -> Result<Self> {
        Self::open_holding(path, count, HELD)
    }

    /// As [`Self::open`], holding files of up to `most` bytes in memory.
    fn open_holding(path: &Path, count: &TokenCount, most: u64) -> Result<Self> {
        let reading = |e| Error::io(format!("reading token file {}", path.display()), e);
        let file = File::open(path).map_err(reading)?;
        let len = file.metadata().map_err(reading)?.len();
        let expected = count.tokens * u64::from(count.width);
        if len != expected {
            return Err(damaged(path).with("bytes", len).with("expected", expected));
        }
        let bytes = if len <= most {
            let mut bytes = Vec::with_capacity(len as usize);
            ReadOnce::new(file).read_to_end(&mut bytes).map_err(reading)?;
            if checksum::crc32c(&bytes) != count.crc {
                return Err(damaged(path).with("bytes", len));
            }
            Held::Memory(bytes)
        } else {
            // Sequences are read in a shuffled order: readahead would only fill the page cache.
            without_read_ahead(&file);
            Held::Disk(file)
        };
        Ok(Self { path: path.to_owned(), count: count.clone(), bytes })
    }

    pub fn count(&self) -> &TokenCount {
        &self.count
    }

    /// Bytes of memory that the file takes.
    pub fn held_bytes(&self) -> u64 {
        match &self.bytes {
            Held::Memory(bytes) => bytes.len() as u64,
            Held::Disk(_) => 0,
        }
    }

    /// Appends the `len` tokens from `start` to `out`, each with whether it is a target.
    ///
    /// # Errors
    /// When reading fails, or the range reaches beyond the file.
    pub fn read(&self, start: u64, len: usize, out: &mut Vec<(u32, bool)>) -> Result<()> {
        if start + len as u64 > self.count.tokens {
            return Err(Error::bug("a sequence reaches beyond its token file")
                .with("start", start)
                .with("tokens", self.count.tokens));
        }
        let width = usize::from(self.count.width);
        let from = start as usize * width;
        let read;
        let bytes = match &self.bytes {
            Held::Memory(bytes) => &bytes[from..from + len * width],
            Held::Disk(file) => {
                let mut buffer = vec![0; len * width];
                file.read_exact_at(&mut buffer, from as u64).map_err(|e| {
                    Error::io(format!("reading token file {}", self.path.display()), e)
                })?;
                // No sequence is read twice before all others were.
                give_back(file, None);
                read = buffer;
                &read[..]
            }
        };
        if width == 2 {
            out.extend(bytes.as_chunks::<2>().0.iter().map(|b| {
                let word = u16::from_le_bytes(*b);
                (u32::from(word & 0x7fff), word >> 15 == 0)
            }));
        } else {
            out.extend(bytes.as_chunks::<4>().0.iter().map(|b| {
                let word = u32::from_le_bytes(*b);
                (word & 0x7fff_ffff, word >> 31 == 0)
            }));
        }
        Ok(())
    }
}

fn damaged(path: &Path) -> Error {
    Error::corrupt(format!(
        "token file {} is damaged: remove it, and it is made again from the data",
        path.display()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_come_back_in_both_widths() {
        let dir = tempfile::tempdir().unwrap();
        for (vocab, width) in [(259, 2), (32_768, 2), (50_304, 4)] {
            assert_eq!(width_for(vocab), width);
            let path = dir.path().join(format!("{vocab}.tokens"));
            let mut writer = TokenWriter::create(&path, width).unwrap();
            let tokens: Vec<(u32, bool)> =
                (0..1000).map(|i| (i * 977 % vocab as u32, i % 3 > 0)).collect();
            writer.push(&tokens[..300]).unwrap();
            writer.push(&tokens[300..]).unwrap();
            let count = writer.finish().unwrap();
            assert_eq!((count.tokens, count.targets), (1000, 666));
            // Held in memory, and read from the disk.
            for most in [HELD, 0] {
                let file = TokenFile::open_holding(&path, &count, most).unwrap();
                assert_eq!(file.held_bytes(), (1000 * u64::from(width)).min(most));
                let mut out = Vec::new();
                file.read(290, 20, &mut out).unwrap();
                assert_eq!(out, tokens[290..310]);
                assert!(file.read(990, 11, &mut out).is_err());
            }
        }
    }

    #[test]
    fn a_damaged_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.tokens");
        let mut writer = TokenWriter::create(&path, 2).unwrap();
        writer.push(&[(1, true), (2, true)]).unwrap();
        let count = writer.finish().unwrap();
        std::fs::write(&path, [1, 0, 3, 0]).unwrap();
        let e = TokenFile::open(&path, &count).unwrap_err();
        assert!(e.to_string().contains("is damaged: remove it"), "{e}");
        std::fs::write(&path, [1]).unwrap();
        assert!(TokenFile::open(&path, &count).is_err());
    }
}
