//! Training data: files to documents, documents to tokens, tokens to batches.
//!
//! ```text
//! files ──▶ document ──▶ tokenise ──▶ cache (token files in the run folder)
//!  zstd,     text, JSON    tokenizer,           │
//!  UTF-8     lines, chat   chat template        ▼
//!                                      source: (seed, step) ──▶ Batch
//! ```
//!
//! The law: a batch is a pure function of the data, the seed and the step, so the position of a
//! run in its data is its step number and nothing else.

pub mod cache;
pub mod document;
pub mod files;
pub mod mix;
pub mod prepare;
pub mod source;
pub mod tokenise;

pub use document::Format;
pub use prepare::tokenizer_for;
pub use source::TextSource;

use crate::base::{Result, Step};
use std::path::{Path, PathBuf};

/// A target that no loss is taken of (torch's `ignore_index`).
pub const IGNORED: i64 = -100;

/// One data file and its share.
#[derive(Debug, Clone, PartialEq)]
pub struct FileSpec {
    pub path: PathBuf,
    /// How often its sequences are seen, relative to the other files' sequences: with 1.0
    /// everywhere one epoch passes over all the text once.
    pub weight: f64,
    pub format: Format,
    /// The key of the document in a JSON line.
    pub text_key: String,
}

impl FileSpec {
    /// A file of weight 1 whose format is found out.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), weight: 1.0, format: Format::Auto, text_key: "text".to_owned() }
    }
}

/// The data of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct DataSpec {
    pub files: Vec<FileSpec>,
    /// Sequences a step.
    pub batch: usize,
    /// Tokens a sequence.
    pub seq: usize,
    /// The share of documents (of one long text: of sequences) that is held out.
    pub validation: f64,
    pub shuffle: bool,
    pub seed: u64,
    /// Where token files are kept.
    pub cache: PathBuf,
    /// Threads that tokenise, before the run's own threads start.
    pub threads: usize,
    /// The model's vocabulary.
    pub vocab: usize,
}

/// How far tokenising a file has come.
#[derive(Debug, Clone, Copy)]
pub struct Progress<'a> {
    pub file: &'a Path,
    /// Bytes of text (uncompressed) that were read.
    pub text_bytes: u64,
    pub tokens: u64,
    pub documents: u64,
}

/// `batch` sequences of `seq` tokens, row by row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    pub batch: usize,
    pub seq: usize,
    /// [B, T]
    pub ids: Vec<i64>,
    /// [B, T]: the token after each, or [`IGNORED`].
    pub targets: Vec<i64>,
}

impl Batch {
    /// How many targets count, the denominator of the loss.
    pub fn total_targets(&self) -> u64 {
        self.targets.iter().filter(|&&t| t != IGNORED).count() as u64
    }

    /// The rows `from..to` as a batch of their own: a micro-batch, or the share of a rank.
    pub fn rows(&self, from: usize, to: usize) -> Self {
        let range = from * self.seq..to * self.seq;
        Self {
            batch: to - from,
            seq: self.seq,
            ids: self.ids[range.clone()].to_vec(),
            targets: self.targets[range].to_vec(),
        }
    }
}

/// Where a run's batches come from. The law: a batch depends on the step alone.
pub trait DataSource: Send {
    /// The batch of `step`, counted from 1.
    ///
    /// # Errors
    /// When the data cannot be read.
    fn batch(&mut self, step: Step) -> Result<Batch>;

    /// How many batches are held out for validation; 0 when there are none.
    fn validation_batches(&self) -> u64;

    /// The `index`-th held-out batch; the last may have fewer rows.
    ///
    /// # Errors
    /// As [`Self::batch`].
    fn validation_batch(&mut self, index: u64) -> Result<Batch>;

    /// What the batches are made of, beyond the configuration: a resume refuses another value.
    /// Under `files`, each with its name under `file`, where there are files.
    fn identity(&self) -> serde_json::Value;
}
