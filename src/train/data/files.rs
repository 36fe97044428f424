//! Opening a data file and reading it as text, piece by piece, whatever its size.
//!
//! A file is zstd-compressed when it begins with zstd's magic number, not because of its name.
//! Every piece is checked UTF-8; what is wrong is named by file and line.

use crate::base::behind::ReadOnce;
use crate::base::{Error, Result};
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

/// Bytes of text that are read, and tokenised, at a time.
pub const PIECE: usize = 64 << 10;
/// A line of plain text longer than this is cut; a JSON line longer than this is refused.
const LONGEST_LINE: u64 = 64 << 20;
/// A byte order mark at the start is no text; Windows' editors write one.
const MARK: char = '\u{feff}';
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// Bytes of text in the file at `path`, at most; `None` where only reading all of it would tell.
pub fn text_bytes(path: &Path) -> Option<u64> {
    /// A larger compressed file is not looked through: its text is larger than anybody asks.
    const LOOKED_THROUGH: u64 = 16 << 20;
    let len = std::fs::metadata(path).ok()?.len();
    let mut file = File::open(path).ok()?;
    let mut bytes = vec![0; 4.min(len as usize)];
    file.read_exact(&mut bytes).ok()?;
    if bytes != ZSTD_MAGIC {
        return Some(len);
    }
    if len > LOOKED_THROUGH {
        return None;
    }
    file.read_to_end(&mut bytes).ok()?;
    let (mut rest, mut text) = (&bytes[..], 0);
    while !rest.is_empty() {
        text += zstd::zstd_safe::get_frame_content_size(rest).ok()??;
        rest = rest.get(zstd::zstd_safe::find_frame_compressed_size(rest).ok()?..)?;
    }
    Some(text)
}

/// A data file, read once from its start to its end.
pub struct TextFile {
    path: PathBuf,
    reader: Box<dyn BufRead + Send>,
    /// Lines that were read so far; the line being read is one more.
    line: u64,
    /// Whether anything was read yet.
    started: bool,
    buffer: Vec<u8>,
}

impl std::fmt::Debug for TextFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TextFile").field("path", &self.path).field("line", &self.line).finish()
    }
}

impl TextFile {
    /// # Errors
    /// When there is no such file, or it cannot be read.
    pub fn open(path: &Path) -> Result<Self> {
        let reading = |e| Error::io(format!("reading data file {}", path.display()), e);
        let mut file = File::open(path).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => Error::input(format!(
                "data file {} does not exist: relative paths start at the working directory",
                path.display()
            ))
            .with("key", "data.files"),
            _ => reading(e),
        })?;
        if file.metadata().map_err(reading)?.is_dir() {
            return Err(Error::input(format!(
                "data file {} is a folder: name its files",
                path.display()
            ))
            .with("key", "data.files"));
        }
        let mut magic = Vec::with_capacity(ZSTD_MAGIC.len());
        Read::by_ref(&mut file).take(4).read_to_end(&mut magic).map_err(reading)?;
        let zstd = magic == ZSTD_MAGIC;
        let whole = std::io::Cursor::new(magic).chain(ReadOnce::new(file));
        let reader: Box<dyn BufRead + Send> = if zstd {
            let decoder = zstd::stream::read::Decoder::new(whole).map_err(reading)?;
            Box::new(BufReader::with_capacity(256 << 10, decoder))
        } else {
            Box::new(BufReader::with_capacity(256 << 10, whole))
        };
        Ok(Self { path: path.to_owned(), reader, line: 0, started: false, buffer: Vec::new() })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The number of the line that was read last, from 1.
    pub fn line(&self) -> u64 {
        self.line
    }

    /// The next line without its line end; `None` at the end of the file.
    ///
    /// # Errors
    /// When the line is not UTF-8 or longer than 64 MiB, or reading fails.
    pub fn next_line(&mut self) -> Result<Option<&str>> {
        self.buffer.clear();
        if self.read(LONGEST_LINE)? == 0 {
            return Ok(None);
        }
        self.line += 1;
        if self.buffer.len() as u64 == LONGEST_LINE && !self.buffer.ends_with(b"\n") {
            return Err(Error::input(format!(
                "{}:{} is longer than 64 MiB: one document a line is expected",
                self.path.display(),
                self.line
            )));
        }
        let mut end = self.buffer.len();
        for c in *b"\n\r" {
            if self.buffer[..end].last() == Some(&c) {
                end -= 1;
            }
        }
        let text = std::str::from_utf8(&self.buffer[..end])
            .map_err(|_| not_utf8(&self.path, self.line))?;
        Ok(Some(if self.line == 1 { text.trim_start_matches(MARK) } else { text }))
    }

    /// The next piece of plain text: whole lines of together about [`PIECE`] bytes, or a part of
    /// a longer line; `None` at the end. Where a piece ends depends on the text alone, and the
    /// pieces together are the file.
    ///
    /// # Errors
    /// When the text is not UTF-8, or reading fails.
    pub fn next_piece(&mut self) -> Result<Option<String>> {
        let mut piece = String::new();
        let first = !std::mem::replace(&mut self.started, true);
        loop {
            // The buffer begins with the bytes of a character that the last read cut.
            if self.read(PIECE as u64)? == 0 {
                if self.buffer.is_empty() {
                    break;
                }
                return Err(not_utf8(&self.path, self.line + 1));
            }
            let (text, cut) = match std::str::from_utf8(&self.buffer) {
                Ok(text) => (text, self.buffer.len()),
                // Only the end of the buffer is missing: the next read brings it.
                Err(e) if e.error_len().is_none() => {
                    let cut = e.valid_up_to();
                    (std::str::from_utf8(&self.buffer[..cut]).unwrap_or_default(), cut)
                }
                Err(_) => return Err(not_utf8(&self.path, self.line + 1)),
            };
            piece.push_str(text);
            let whole_line = text.ends_with('\n');
            self.buffer.drain(..cut);
            self.line += u64::from(whole_line);
            if piece.len() >= 2 * PIECE || (piece.len() >= PIECE && whole_line) {
                break;
            }
        }
        if first && piece.starts_with(MARK) {
            piece.drain(..MARK.len_utf8());
        }
        Ok((!piece.is_empty()).then_some(piece))
    }

    /// Appends to the buffer up to and with the next line end, at most `limit` bytes.
    fn read(&mut self, limit: u64) -> Result<usize> {
        Read::by_ref(&mut self.reader).take(limit).read_until(b'\n', &mut self.buffer).map_err(
            |e| {
                Error::io(format!("reading data file {}", self.path.display()), e)
                    .with("line", self.line + 1)
            },
        )
    }
}

fn not_utf8(path: &Path, line: u64) -> Error {
    Error::input(format!("{}:{line} is not UTF-8: convert the file first", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(path: &Path) -> Result<Vec<String>> {
        let mut file = TextFile::open(path)?;
        let mut all = Vec::new();
        while let Some(piece) = file.next_piece()? {
            all.push(piece);
        }
        Ok(all)
    }

    #[test]
    fn compressed_and_plain_files_read_alike() {
        let dir = tempfile::tempdir().unwrap();
        let text: String = (0..40_000).map(|i| format!("line {i} of the text\n")).collect();
        let plain = dir.path().join("plain.zst");
        std::fs::write(&plain, &text).unwrap();
        let packed = dir.path().join("packed.txt");
        std::fs::write(&packed, zstd::encode_all(text.as_bytes(), 1).unwrap()).unwrap();
        assert_eq!(text_bytes(&plain), Some(text.len() as u64));
        // Streamed frames do not tell their content; those of a whole buffer do.
        assert_eq!(text_bytes(&packed), None);
        let mut frames = zstd::bulk::compress(text.as_bytes(), 1).unwrap();
        frames.extend(zstd::bulk::compress(b"more", 1).unwrap());
        let two = dir.path().join("two.zst");
        std::fs::write(&two, frames).unwrap();
        assert_eq!(text_bytes(&two), Some(text.len() as u64 + 4));
        let (a, b) = (pieces(&plain).unwrap(), pieces(&packed).unwrap());
        assert_eq!(a, b);
        assert_eq!(a.concat(), text);
        assert!(a.len() > 10 && a[..a.len() - 1].iter().all(|p| p.ends_with('\n')));
    }

    #[test]
    fn text_without_lines_is_cut_between_characters() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("one-line.txt");
        let text = "x".to_owned() + &"é世".repeat(100_000);
        std::fs::write(&path, &text).unwrap();
        let all = pieces(&path).unwrap();
        assert!(all.len() > 2);
        assert_eq!(all.concat(), text);
    }

    #[test]
    fn lines_lose_their_ends_and_the_byte_order_mark() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.jsonl");
        std::fs::write(&path, "\u{feff}one\r\n\ntwo").unwrap();
        let mut file = TextFile::open(&path).unwrap();
        assert_eq!(file.next_line().unwrap(), Some("one"));
        assert_eq!(file.next_line().unwrap(), Some(""));
        assert_eq!(file.next_line().unwrap(), Some("two"));
        assert_eq!(file.next_line().unwrap(), None);
        assert_eq!(file.line(), 3);
    }

    #[test]
    fn what_is_wrong_is_named_by_file_and_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bad.txt");
        std::fs::write(&path, b"fine\nfine\n\xff\xfe\n").unwrap();
        let text = pieces(&path).unwrap_err().to_string();
        assert!(text.contains("bad.txt:3 is not UTF-8"), "{text}");
        // A character cut by the end of the file.
        std::fs::write(&path, b"fine\n\xe4\xb8").unwrap();
        let text = pieces(&path).unwrap_err().to_string();
        assert!(text.contains("bad.txt:2 is not UTF-8"), "{text}");
        let missing = TextFile::open(&dir.path().join("none.txt")).unwrap_err();
        assert!(missing.to_string().contains("does not exist"), "{missing}");
        assert_eq!(missing.exit_status(), 2);
    }
}
