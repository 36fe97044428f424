//! The data of a run as batches: packing, splitting, shuffling and mixing by position.
//!
//! Documents lie end to end with eos between them; a sequence is the `seq + 1` tokens from a
//! multiple of `seq`, so the last token of one is the first of the next, and every token is a
//! target once. What does not fill a last sequence is left out.

use super::cache::TokenFile;
use super::mix::{Mixture, Split, hash, permute};
use super::tokenise::{Tokenised, Tokenising, tokenise};
use super::{Batch, DataSource, DataSpec, IGNORED, Progress};
use crate::base::ledger::Ledger;
use crate::base::units::Bytes;
use crate::base::{Error, Result, Step};
use crate::text::chat::ChatTemplate;
use crate::text::tokenizer::Tokenizer;
use serde_json::{Value, json};

/// Text files, JSON lines and chats as batches.
#[derive(Debug)]
pub struct TextSource {
    spec: DataSpec,
    files: Vec<FileTokens>,
    mixture: Mixture,
    /// Held-out sequences before each file's, and at the end all of them.
    held_before: Vec<u64>,
}

#[derive(Debug)]
struct FileTokens {
    tokens: Tokenised,
    /// Sequences of the training tokens.
    split: Split,
    /// Whether held-out sequences are of the training tokens, and not of held-out documents.
    by_sequence: bool,
}

impl FileTokens {
    fn held_out(&self, seq: usize) -> u64 {
        if self.by_sequence {
            self.split.held_out()
        } else {
            sequences(self.tokens.validation.count().tokens, seq)
        }
    }
}

/// How many sequences `tokens` fill: the last token of each is only a target.
fn sequences(tokens: u64, seq: usize) -> u64 {
    tokens.saturating_sub(1) / seq.max(1) as u64
}

impl TextSource {
    /// Tokenises what was not tokenised before (`progress` is told), and opens the rest.
    ///
    /// # Errors
    /// When a file is missing, malformed or empty, has fewer tokens than one sequence, when the
    /// tokenizer has more tokens than the model, or a chat has no template.
    pub fn open(
        spec: DataSpec,
        tokenizer: &Tokenizer,
        template: Option<&ChatTemplate>,
        progress: &mut dyn FnMut(&Progress<'_>),
    ) -> Result<Self> {
        check(&spec, tokenizer)?;
        let with =
            Tokenising { tokenizer, template, validation: spec.validation, threads: spec.threads };
        let mut files = Vec::with_capacity(spec.files.len());
        for file in &spec.files {
            let tokens = tokenise(file, with, &spec.cache, progress)?;
            let total = sequences(tokens.train.count().tokens, spec.seq);
            let by_documents = sequences(tokens.validation.count().tokens, spec.seq);
            let by_sequence = by_documents == 0;
            let held_out = if by_sequence { share_of(total, spec.validation) } else { 0 };
            let split = Split::new(total, held_out);
            if split.train() == 0 {
                return Err(Error::input(format!(
                    "data file {} is shorter than one sequence: give more text, or set train.seq \
                     to less than {}",
                    file.path.display(),
                    tokens.train.count().tokens.max(2)
                ))
                .with("tokens", tokens.train.count().tokens)
                .with("seq", spec.seq));
            }
            if tokens.train.count().targets == 0 {
                return Err(Error::input(format!(
                    "data file {} has no answers: no message is the assistant's",
                    file.path.display()
                )));
            }
            files.push(FileTokens { tokens, split, by_sequence });
        }
        let shares: Vec<f64> = files
            .iter()
            .zip(&spec.files)
            .map(|(file, named)| named.weight * file.split.train() as f64)
            .collect();
        let mut held_before = vec![0];
        for file in &files {
            held_before.push(held_before[held_before.len() - 1] + file.held_out(spec.seq));
        }
        Ok(Self { mixture: Mixture::new(&shares), spec, files, held_before })
    }

    /// Sequences for training, all files together.
    pub fn train_sequences(&self) -> u64 {
        self.files.iter().map(|file| file.split.train()).sum()
    }

    /// Sequences for validation, all files together.
    pub fn validation_sequences(&self) -> u64 {
        self.held_before[self.held_before.len() - 1]
    }

    /// Tokens of all files, held-out ones too.
    pub fn tokens(&self) -> u64 {
        self.files
            .iter()
            .map(|f| f.tokens.train.count().tokens + f.tokens.validation.count().tokens)
            .sum()
    }

    /// How many steps one pass over all the training sequences takes (with weights of 1).
    pub fn steps_per_epoch(&self) -> f64 {
        self.train_sequences() as f64 / self.spec.batch as f64
    }

    /// Adds what the source holds in memory.
    pub fn ledger(&self, ledger: &mut Ledger) {
        let held: u64 = self
            .files
            .iter()
            .map(|f| f.tokens.train.held_bytes() + f.tokens.validation.held_bytes())
            .sum();
        // ids and targets, and the tokens that they are read from.
        let batch = self.spec.batch as u64 * (self.spec.seq as u64 + 1) * 24;
        let disk = self.disk_bytes() - held;
        let how = match (held, disk) {
            (_, 0) => "held in memory".to_owned(),
            (0, disk) => format!("read from token files of {} by sequence", Bytes(disk)),
            (held, disk) => format!("{} held, {} read by sequence", Bytes(held), Bytes(disk)),
        };
        ledger.add("training data", held + batch, format!("{} tokens, {how}", self.tokens()));
    }

    /// Bytes of the token files.
    pub fn disk_bytes(&self) -> u64 {
        let bytes = |file: &TokenFile| file.count().tokens * u64::from(file.count().width);
        self.files.iter().map(|f| bytes(&f.tokens.train) + bytes(&f.tokens.validation)).sum()
    }

    /// Appends the sequence of `seq + 1` tokens at `position` of the training order.
    fn train_sequence(&self, position: u64, out: &mut Vec<(u32, bool)>) -> Result<()> {
        let (source, turn) = self.mixture.at(position);
        let file = &self.files[source];
        let count = file.split.train();
        let (epoch, index) = (turn / count, turn % count);
        let index = if self.spec.shuffle {
            permute(hash(self.spec.seed, source as u64, epoch), count, index)
        } else {
            index
        };
        let sequence = file.split.nth_train(index);
        let seq = self.spec.seq;
        file.tokens.train.read(sequence * seq as u64, seq + 1, out)
    }

    fn held_out_sequence(&self, index: u64, out: &mut Vec<(u32, bool)>) -> Result<()> {
        let source = self.held_before.partition_point(|&before| before <= index) - 1;
        let within = index - self.held_before[source];
        let file = &self.files[source];
        let seq = self.spec.seq;
        if file.by_sequence {
            file.tokens.train.read(file.split.nth_held_out(within) * seq as u64, seq + 1, out)
        } else {
            file.tokens.validation.read(within * seq as u64, seq + 1, out)
        }
    }

    /// `rows` sequences as a batch; `read` appends the tokens of a row.
    fn assemble(
        &self,
        rows: usize,
        read: impl Fn(u64, &mut Vec<(u32, bool)>) -> Result<()>,
    ) -> Result<Batch> {
        let seq = self.spec.seq;
        let mut ids = Vec::with_capacity(rows * seq);
        let mut targets = Vec::with_capacity(rows * seq);
        let mut tokens = Vec::with_capacity(seq + 1);
        for row in 0..rows {
            tokens.clear();
            read(row as u64, &mut tokens)?;
            ids.extend(tokens[..seq].iter().map(|&(id, _)| i64::from(id)));
            targets.extend(
                tokens[1..]
                    .iter()
                    .map(|&(id, target)| if target { i64::from(id) } else { IGNORED }),
            );
        }
        Ok(Batch { batch: rows, seq, ids, targets })
    }
}

impl DataSource for TextSource {
    fn batch(&mut self, step: Step) -> Result<Batch> {
        let first = step.saturating_sub(1) * self.spec.batch as u64;
        self.assemble(self.spec.batch, |row, out| self.train_sequence(first + row, out))
    }

    fn validation_batches(&self) -> u64 {
        self.validation_sequences().div_ceil(self.spec.batch as u64)
    }

    fn validation_batch(&mut self, index: u64) -> Result<Batch> {
        let first = index * self.spec.batch as u64;
        let rows = self.validation_sequences().saturating_sub(first).min(self.spec.batch as u64);
        self.assemble(rows as usize, |row, out| self.held_out_sequence(first + row, out))
    }

    fn identity(&self) -> Value {
        let files: Vec<Value> = self
            .files
            .iter()
            .zip(&self.spec.files)
            .map(|(file, named)| {
                json!({
                    "file": named.path.file_name().map(|n| n.to_string_lossy()),
                    "train": file.tokens.train.count(),
                    "validation": file.tokens.validation.count(),
                })
            })
            .collect();
        // How sequences are drawn from them is in the configuration.
        json!({ "files": files })
    }
}

/// How many of `total` a share is: at least one when there is more than one and a share is asked.
fn share_of(total: u64, share: f64) -> u64 {
    if share <= 0.0 || total < 2 {
        return 0;
    }
    ((total as f64 * share).round() as u64).clamp(1, total - 1)
}

fn check(spec: &DataSpec, tokenizer: &Tokenizer) -> Result<()> {
    if spec.files.is_empty() {
        return Err(Error::config("no data: name at least one file").with("key", "data.files"));
    }
    if spec.batch == 0 || spec.seq == 0 {
        return Err(Error::config("a batch needs at least one sequence of one token"));
    }
    if !(0.0..1.0).contains(&spec.validation) {
        return Err(Error::config("the validation share must be at least 0 and less than 1")
            .with("key", "data.validation"));
    }
    for file in &spec.files {
        if !(file.weight.is_finite() && file.weight > 0.0) {
            return Err(Error::config(format!(
                "the weight of {} must be a positive number",
                file.path.display()
            ))
            .with("key", "data.files"));
        }
    }
    let needed = tokenizer.vocab_size();
    if needed > spec.vocab {
        return Err(Error::input(format!(
            "the tokenizer has {needed} tokens and the model a vocabulary of {}: use the model's \
             own tokenizer, or set model.vocab to {needed} or more",
            spec.vocab
        ))
        .with("key", "data.tokenizer"));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
