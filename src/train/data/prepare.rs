//! The tokenizer of a run: made once from its specification, then kept in the run folder.
//!
//! A BPE is trained on a seeded sample of the data, so that a corpus of any size takes bounded
//! memory; a small corpus is its own sample.

use super::document::Documents;
use super::files::PIECE;
use super::mix::hash;
use super::{FileSpec, Format};
use crate::base::file::write_whole;
use crate::base::{Error, Result};
use crate::text::tokenizer::{Tokenizer, TokenizerSpec};
use std::path::Path;

/// Pieces of text that a BPE is trained on at most, and the bytes of all of them.
const SAMPLE: usize = 1024;
pub const SAMPLE_BYTES: u64 = (SAMPLE * LONGEST) as u64;
/// A longer document is cut.
const LONGEST: usize = 2 * PIECE;
/// A template beside a given tokenizer belongs to it.
const TEMPLATE: &str = "chat_template.jinja";

/// The tokenizer that a run uses: the one kept in `dir` if the run made it before, else made
/// from `spec` (a BPE from `files` and `seed`) and kept there.
///
/// # Errors
/// When the data or the given tokenizer is missing or malformed, or `dir` cannot be written.
pub fn tokenizer_for(
    spec: &TokenizerSpec,
    files: &[FileSpec],
    seed: u64,
    dir: &Path,
) -> Result<Tokenizer> {
    if dir.join("tokenizer.json").exists() {
        return Tokenizer::load(dir);
    }
    let tokenizer = match spec {
        TokenizerSpec::Bytes => Tokenizer::bytes()?,
        TokenizerSpec::Bpe { vocab } => Tokenizer::train_bpe(*vocab, &sample(files, seed)?)?,
        TokenizerSpec::File { path } => Tokenizer::load(path)?,
    };
    std::fs::create_dir_all(dir)
        .map_err(|e| Error::io(format!("creating folder {}", dir.display()), e))?;
    if let TokenizerSpec::File { path } = spec {
        let from = if path.is_dir() { path.as_path() } else { path.parent().unwrap_or(path) };
        let template = from.join(TEMPLATE);
        if template.exists() {
            let bytes = std::fs::read(&template)
                .map_err(|e| Error::io(format!("reading {}", template.display()), e))?;
            write_whole(&dir.join(TEMPLATE), &bytes)?;
        }
    }
    tokenizer.save(dir)?;
    Ok(tokenizer)
}

/// Pieces of about [`PIECE`] bytes of the files' text: all of them, or a seeded choice of
/// `SAMPLE` (Vitter's algorithm R), in an order that depends on the data and the seed alone.
///
/// # Errors
/// When a file is missing, malformed or empty.
pub fn sample(files: &[FileSpec], seed: u64) -> Result<Vec<String>> {
    let mut reservoir = Reservoir { seed, seen: 0, kept: Vec::new() };
    for file in files {
        let before = reservoir.seen;
        let mut documents = Documents::open(&file.path, file.format, &file.text_key)?;
        let lines = documents.format() != Format::Text;
        let mut piece = String::new();
        while let Some(document) = documents.read_next()? {
            piece += &document.text();
            if lines {
                piece.push('\n');
            }
            while piece.len() > LONGEST {
                let rest = piece.split_off(piece.floor_char_boundary(LONGEST));
                reservoir.offer(std::mem::replace(&mut piece, rest));
            }
            if piece.len() >= PIECE {
                reservoir.offer(std::mem::take(&mut piece));
            }
        }
        if !piece.trim().is_empty() {
            reservoir.offer(piece);
        }
        if reservoir.seen == before {
            return Err(Error::input(format!("data file {} is empty", file.path.display()))
                .with("key", "data.files"));
        }
    }
    Ok(reservoir.kept)
}

struct Reservoir {
    seed: u64,
    seen: u64,
    kept: Vec<String>,
}

impl Reservoir {
    fn offer(&mut self, piece: String) {
        self.seen += 1;
        if self.kept.len() < SAMPLE {
            self.kept.push(piece);
            return;
        }
        let at = hash(self.seed, self.seen, 0) % self.seen;
        if let Some(slot) = self.kept.get_mut(at as usize) {
            *slot = piece;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_keeps_its_tokenizer() {
        let dir = tempfile::tempdir().unwrap();
        let text: String =
            (0..500).map(|i| format!("verse {i} of the book of numbers\n")).collect();
        let path = dir.path().join("a.txt");
        std::fs::write(&path, &text).unwrap();
        let (files, kept) = ([FileSpec::new(&path)], dir.path().join("tokenizer"));
        let spec = TokenizerSpec::Bpe { vocab: 300 };
        let first = tokenizer_for(&spec, &files, 1, &kept).unwrap();
        // The data may go: the tokenizer is the run's.
        std::fs::remove_file(&path).unwrap();
        let again = tokenizer_for(&spec, &files, 1, &kept).unwrap();
        assert_eq!(again.fingerprint().unwrap(), first.fingerprint().unwrap());

        // A given tokenizer comes with its template.
        std::fs::write(kept.join(TEMPLATE), "{{ messages }}").unwrap();
        let other = dir.path().join("other");
        let spec = TokenizerSpec::File { path: kept };
        let given = tokenizer_for(&spec, &[], 1, &other).unwrap();
        assert_eq!(given.fingerprint().unwrap(), first.fingerprint().unwrap());
        assert!(other.join(TEMPLATE).exists());
    }

    #[test]
    fn a_sample_is_of_the_whole_and_bounded() {
        let mut reservoir = Reservoir { seed: 3, seen: 0, kept: Vec::new() };
        for i in 0..10 * SAMPLE {
            reservoir.offer(i.to_string());
        }
        assert_eq!(reservoir.kept.len(), SAMPLE);
        let late = reservoir.kept.iter().filter(|p| p.parse::<usize>().unwrap() >= 5 * SAMPLE);
        let late = late.count();
        assert!((SAMPLE * 2 / 5..SAMPLE * 3 / 5).contains(&late), "{late}");
    }

    #[test]
    fn a_long_document_is_cut() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.jsonl");
        let text = "é".repeat(3 * LONGEST);
        std::fs::write(&path, serde_json::json!({ "text": text }).to_string()).unwrap();
        let pieces = sample(&[FileSpec::new(&path)], 0).unwrap();
        assert!(pieces.iter().all(|piece| piece.len() <= LONGEST));
        assert_eq!(pieces.concat().trim_end(), text);
    }

    #[test]
    fn empty_data_trains_no_tokenizer() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.txt");
        std::fs::write(&path, " \n\n").unwrap();
        let e = sample(&[FileSpec::new(&path)], 0).unwrap_err();
        assert!(e.to_string().contains("a.txt is empty"), "{e}");
    }
}
