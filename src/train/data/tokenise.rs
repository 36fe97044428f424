//! A data file to its token files: streaming, in parallel, in the file's order.
//!
//! The ids depend on the text and the tokenizer alone, not on the number of threads.

use super::cache::{TokenCount, TokenFile, TokenWriter, width_for};
use super::document::{Body, Document, Documents};
use super::mix::is_held_out;
use super::{FileSpec, Format, Progress};
use crate::base::{Error, Result, checksum};
use crate::text::chat::ChatTemplate;
use crate::text::tokenizer::Tokenizer;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::path::Path;
use std::time::UNIX_EPOCH;

/// Text that each thread tokenises before results are written.
const SHARE: usize = 512 << 10;

/// A data file as tokens: those of its documents for training, and those held out.
#[derive(Debug)]
pub struct Tokenised {
    pub train: TokenFile,
    pub validation: TokenFile,
    pub description: Description,
}

/// Written beside the token files, last: it makes them valid.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    /// What the tokens were made from; another source makes another file.
    made_from: serde_json::Value,
    pub documents: u64,
    pub train: TokenCount,
    pub validation: TokenCount,
}

/// What tokenising needs beside the file.
#[derive(Clone, Copy)]
pub struct Tokenising<'a> {
    pub tokenizer: &'a Tokenizer,
    pub template: Option<&'a ChatTemplate>,
    /// The share of documents that is held out.
    pub validation: f64,
    pub threads: usize,
}

/// The tokens of `file`: from `dir` when they were made before, else made now.
///
/// # Errors
/// When the data is missing, malformed or empty, a chat has no template, or the disk is full.
pub fn tokenise(
    file: &FileSpec,
    with: Tokenising<'_>,
    dir: &Path,
    progress: &mut dyn FnMut(&Progress<'_>),
) -> Result<Tokenised> {
    let metadata = std::fs::metadata(&file.path);
    // Opening says better what is wrong with the file than asking for its length does.
    let mut documents = Documents::open(&file.path, file.format, &file.text_key)?;
    let metadata =
        metadata.map_err(|e| Error::io(format!("reading data file {}", file.path.display()), e))?;
    let modified = metadata.modified().ok().and_then(|t| t.duration_since(UNIX_EPOCH).ok());
    let chat = documents.format() == Format::Chat;
    // One long text is divided by sequence, once the number of sequences is known.
    let by_document = documents.format() != Format::Text;
    if chat && with.template.is_none() {
        return Err(Error::input(format!(
            "{} holds chats, and there is no chat template: set model.from or data.tokenizer to a \
             folder whose tokenizer_config.json has a chat_template (or that holds \
             chat_template.jinja)",
            file.path.display()
        )));
    }
    let made_from = json!({
        "path": file.path, "bytes": metadata.len(), "modified_ns": modified.map(|t| t.as_nanos().to_string()),
        "format": documents.format(), "text_key": file.text_key, "validation": with.validation,
        "tokenizer": with.tokenizer.fingerprint()?,
        "template": with.template.filter(|_| chat).map(ChatTemplate::fingerprint),
    });
    let name = format!("{:08x}", checksum::crc32c(made_from.to_string().as_bytes()));
    let paths = [format!("{name}.train.tokens"), format!("{name}.validation.tokens")];
    let [train_path, validation_path] = paths.map(|p| dir.join(p));
    let described = dir.join(format!("{name}.json"));
    if let Some(description) = read_description(&described, &made_from)? {
        let train = TokenFile::open(&train_path, &description.train)?;
        let validation = TokenFile::open(&validation_path, &description.validation)?;
        return Ok(Tokenised { train, validation, description });
    }

    std::fs::create_dir_all(dir)
        .map_err(|e| Error::io(format!("creating folder {}", dir.display()), e))?;
    let width = width_for(with.tokenizer.vocab_size());
    let mut train = TokenWriter::create(&train_path, width)?;
    let mut held_out = TokenWriter::create(&validation_path, width)?;
    let mut state = Progress { file: &file.path, text_bytes: 0, tokens: 0, documents: 0 };
    loop {
        let (batch, size) = gather(&mut documents, SHARE * with.threads.max(1))?;
        if batch.is_empty() {
            break;
        }
        let parts = encode_all(&batch, with).map_err(|(line, e)| {
            let place = format!("{}:{line}", file.path.display());
            Error::input(format!("cannot tokenise {place}")).from_source(e)
        })?;
        for (document, tokens) in batch.iter().zip(parts) {
            let out = match by_document && is_held_out(state.documents, with.validation) {
                true => &mut held_out,
                false => &mut train,
            };
            out.push(&tokens)?;
            state.tokens += tokens.len() as u64;
            state.documents += u64::from(document.ends);
        }
        state.text_bytes += size as u64;
        progress(&state);
    }
    let (train, validation) = (train.finish()?, held_out.finish()?);
    if train.tokens + validation.tokens == 0 {
        return Err(Error::input(format!("data file {} is empty", file.path.display()))
            .with("key", "data.files"));
    }
    let description = Description { made_from, documents: state.documents, train, validation };
    write_description(&described, &description)?;
    let train = TokenFile::open(&train_path, &description.train)?;
    let validation = TokenFile::open(&validation_path, &description.validation)?;
    Ok(Tokenised { train, validation, description })
}

/// The next documents of together at least `size` bytes, or what is left, and their size.
fn gather(documents: &mut Documents, size: usize) -> Result<(Vec<Document>, usize)> {
    let (mut batch, mut total) = (Vec::new(), 0);
    while total < size {
        let Some(document) = documents.read_next()? else { break };
        total += document.size();
        batch.push(document);
    }
    Ok((batch, total))
}

type Encoded = Vec<(u32, bool)>;

/// The tokens of each document, by `threads` threads; on failure the line of the first document
/// that failed.
fn encode_all(batch: &[Document], with: Tokenising<'_>) -> Result<Vec<Encoded>, (u64, Error)> {
    let one = |document: &Document| encode(document, with).map_err(|e| (document.line, e));
    let share = batch.len().div_ceil(with.threads.max(1));
    if with.threads <= 1 || batch.len() == 1 {
        return batch.iter().map(one).collect();
    }
    let parts: Vec<Result<Vec<Encoded>, (u64, Error)>> = std::thread::scope(|scope| {
        let workers: Vec<_> = batch
            .chunks(share)
            .map(|chunk| scope.spawn(move || chunk.iter().map(one).collect()))
            .collect();
        workers
            .into_iter()
            .map(|w| w.join().unwrap_or_else(|_| Err((0, Error::bug("a tokenising thread died")))))
            .collect()
    });
    let mut all = Vec::with_capacity(batch.len());
    for part in parts {
        all.extend(part?);
    }
    Ok(all)
}

fn encode(document: &Document, with: Tokenising<'_>) -> Result<Encoded> {
    let tokenizer = with.tokenizer;
    let text = match &document.body {
        Body::Text(text) => text,
        Body::Chat(line) => {
            let template = with.template.ok_or_else(|| Error::bug("a chat without a template"))?;
            return template.encode(tokenizer, line);
        }
    };
    let mut tokens = Vec::with_capacity(text.len() / 3 + 2);
    if document.begins && tokenizer.add_bos() {
        tokens.extend(tokenizer.bos().map(|bos| (bos, true)));
    }
    tokens.extend(tokenizer.encode(text)?.into_iter().map(|id| (id, true)));
    if document.ends && !tokens.is_empty() {
        tokens.extend(tokenizer.eos().map(|eos| (eos, true)));
    }
    Ok(tokens)
}

/// The description at `path` when it is of `made_from`.
fn read_description(path: &Path, made_from: &serde_json::Value) -> Result<Option<Description>> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io(format!("reading {}", path.display()), e)),
    };
    let description: Option<Description> = serde_json::from_str(&text).ok();
    Ok(description.filter(|d| d.made_from == *made_from))
}

fn write_description(path: &Path, description: &Description) -> Result<()> {
    let text = serde_json::to_string_pretty(description)
        .map_err(|e| Error::bug("describing a token file").from_source(e))?;
    crate::base::file::write_whole(path, text.as_bytes())
}
