//! Text to token ids and back: plain bytes, a BPE trained on the data, or a given tokenizer.json.
//!
//! Whatever the kind, what is saved is a `tokenizer.json` that the tokenizers crate and
//! transformers load, and that encodes to the same ids. Encoding and training use no randomness
//! and no threads of their own, so that equal text gives equal ids.

use crate::base::file::{read_json, write_whole};
use crate::base::{Error, Result, checksum};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, Model};

const BOS: &str = "<|bos|>";
const EOS: &str = "<|eos|>";
const PAD: &str = "<|pad|>";
/// Bytes and the three special tokens: the smallest vocabulary that can encode any text.
pub const BYTES_VOCAB: usize = 256 + 3;

/// Which tokenizer a run uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenizerSpec {
    /// Ids 0..=255 are bytes; 256 bos, 257 eos, 258 pad.
    Bytes,
    /// A byte-level BPE with this many tokens, trained on the run's data.
    Bpe { vocab: usize },
    /// A `tokenizer.json`, or a folder that holds one.
    File { path: PathBuf },
}

/// A tokenizer with the special tokens that training needs.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    bytes: bool,
    bos: Option<u32>,
    eos: Option<u32>,
    pad: Option<u32>,
    /// Whether a document begins with bos, as the tokenizer's own configuration says.
    add_bos: bool,
    /// The special tokens as text, for the chat template.
    bos_text: Option<String>,
    eos_text: Option<String>,
    /// `tokenizer_config.json`, written out again beside `tokenizer.json`.
    config: Value,
}

impl Tokenizer {
    /// Ids 0..=255 are bytes, followed by bos, eos and pad.
    ///
    /// # Errors
    /// A bug in the vocabulary, reported by the tokenizers crate.
    pub fn bytes() -> Result<Self> {
        let chars = byte_chars();
        let vocab: [(String, u32); 256] =
            std::array::from_fn(|id| (chars[id].to_string(), id as u32));
        let model = BPE::builder()
            .vocab_and_merges(vocab, Vec::new())
            .build()
            .map_err(|e| Error::bug("building the byte vocabulary").from_source(e))?;
        Self::byte_level(model, false)
    }

    /// Trains a byte-level BPE of `vocab` tokens on `texts`. Equal texts in equal order give an
    /// equal vocabulary.
    ///
    /// # Errors
    /// When `vocab` is too small for the bytes and special tokens.
    pub fn train_bpe(vocab: usize, texts: &[String]) -> Result<Self> {
        if vocab < BYTES_VOCAB {
            return Err(Error::config(format!(
                "a bpe vocabulary of {vocab} is too small: {BYTES_VOCAB} is the least (256 bytes \
                 and 3 special tokens)"
            ))
            .with("key", "data.tokenizer.vocab"));
        }
        // Counting words in a thread pool would leave its threads behind for the whole run.
        tokenizers::utils::parallelism::set_parallelism(false);
        let mut trainer: TrainerWrapper = BpeTrainer::builder()
            .vocab_size(vocab)
            .min_frequency(2)
            .show_progress(false)
            .special_tokens([BOS, EOS, PAD].map(special).to_vec())
            .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
            .build()
            .into();
        let mut inner = tokenizers::Tokenizer::new(BPE::default());
        inner.with_pre_tokenizer(Some(ByteLevel::new(false, true, true)));
        inner
            .train(&mut trainer, texts.iter())
            .map_err(|e| Error::bug("training the tokenizer").from_source(e))?;
        let tokenizers::ModelWrapper::BPE(model) = inner.get_model().clone() else {
            return Err(Error::bug("the trained tokenizer is not a BPE"));
        };
        Self::byte_level(model, true)
    }

    /// Reads `path`, a `tokenizer.json` or a folder that holds one. The special tokens come
    /// from `tokenizer_config.json`, `generation_config.json` or `config.json` beside it.
    ///
    /// # Errors
    /// A missing or malformed file, named.
    pub fn load(path: &Path) -> Result<Self> {
        let file = if path.is_dir() { path.join("tokenizer.json") } else { path.to_owned() };
        if !file.exists() {
            return Err(Error::input(format!(
                "no tokenizer at {}: give a tokenizer.json, or a folder that holds one",
                file.display()
            )));
        }
        let json = std::fs::read_to_string(&file)
            .map_err(|e| Error::io(format!("reading {}", file.display()), e))?;
        let dir = file.parent().unwrap_or(Path::new(".")).to_owned();
        let config = read_json(&dir.join("tokenizer_config.json"))?;
        let mut tokenizer = Self::from_json(&json, config).map_err(|e| {
            Error::input(format!("{} is not a tokenizer", file.display())).from_source(e)
        })?;
        for name in ["generation_config.json", "config.json"] {
            if tokenizer.bos.is_some() && tokenizer.eos.is_some() {
                break;
            }
            if let Some(other) = read_json(&dir.join(name))? {
                tokenizer.fill_in(&other);
            }
        }
        Ok(tokenizer)
    }

    /// A tokenizer from the text of a `tokenizer.json` and the value of its
    /// `tokenizer_config.json`, which names the special tokens.
    ///
    /// # Errors
    /// Input when the text is no tokenizer.
    pub fn from_json(json: &str, config: Option<Value>) -> Result<Self> {
        let mut inner = tokenizers::Tokenizer::from_bytes(json.as_bytes())
            .map_err(|e| Error::input("malformed tokenizer.json").from_source(e))?;
        // Sequences are packed here; the file's own cutting and padding would get in the way.
        inner
            .with_truncation(None)
            .map_err(|e| Error::bug("clearing the truncation").from_source(e))?;
        inner.with_padding(None);
        let from_config = |name: &str| config.as_ref().and_then(|c| special_text(c.get(name)?));
        let bos_text = from_config("bos_token");
        let eos_text = from_config("eos_token");
        let pad_text = from_config("pad_token");
        let id = |text: &Option<String>| text.as_deref().and_then(|t| inner.token_to_id(t));
        let (bos, eos, pad) = (id(&bos_text), id(&eos_text), id(&pad_text));
        let bytes = config.as_ref().is_some_and(|c| c.get("semoe_bytes") == Some(&json!(true)))
            && is_bytes(&inner);
        let config = config.unwrap_or_else(|| json!({}));
        let mut tokenizer =
            Self { inner, bytes, bos, eos, pad, add_bos: false, bos_text, eos_text, config };
        tokenizer.find_add_bos();
        Ok(tokenizer)
    }

    /// Takes bos and eos from another file of the model where the tokenizer's own has none.
    fn fill_in(&mut self, other: &Value) {
        self.bos = self.bos.or_else(|| special_id(other.get("bos_token_id")));
        self.eos = self.eos.or_else(|| special_id(other.get("eos_token_id")));
        let text = |id: Option<u32>| id.and_then(|id| self.inner.id_to_token(id));
        let (bos_text, eos_text) = (text(self.bos), text(self.eos));
        self.bos_text = self.bos_text.take().or(bos_text);
        self.eos_text = self.eos_text.take().or(eos_text);
        self.find_add_bos();
    }

    fn find_add_bos(&mut self) {
        self.add_bos = match self.config.get("add_bos_token") {
            Some(flag) => flag.as_bool().unwrap_or(false),
            None => self
                .inner
                .encode("", true)
                .is_ok_and(|e| self.bos.is_some() && e.get_ids().first().copied() == self.bos),
        };
    }

    fn byte_level(model: BPE, trained: bool) -> Result<Self> {
        let mut inner = tokenizers::Tokenizer::new(model);
        inner.with_pre_tokenizer(Some(ByteLevel::new(false, true, trained)));
        inner.with_decoder(Some(ByteLevel::new(false, true, trained)));
        inner
            .add_special_tokens([BOS, EOS, PAD].map(special))
            .map_err(|e| Error::bug("adding the special tokens").from_source(e))?;
        let mut config = json!({
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": BOS, "eos_token": EOS, "pad_token": PAD,
            "add_bos_token": false,
            "clean_up_tokenization_spaces": false,
        });
        if !trained {
            config["semoe_bytes"] = json!(true);
        }
        let (bos, eos, pad) =
            (inner.token_to_id(BOS), inner.token_to_id(EOS), inner.token_to_id(PAD));
        Ok(Self {
            inner,
            bytes: !trained,
            bos,
            eos,
            pad,
            add_bos: false,
            bos_text: Some(BOS.to_owned()),
            eos_text: Some(EOS.to_owned()),
            config,
        })
    }

    /// The ids of `text`, without special tokens around it.
    ///
    /// # Errors
    /// When the tokenizer cannot encode the text (a model without an unknown token).
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        // The crate's way costs a string a byte; special tokens in the text need it all the same.
        if self.bytes && !text.contains("<|") {
            return Ok(text.bytes().map(u32::from).collect());
        }
        let encoding = self
            .inner
            .encode_fast(text, false)
            .map_err(|e| Error::input("the tokenizer cannot encode the text").from_source(e))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The ids of `text` with the byte range of `text` that each covers.
    ///
    /// # Errors
    /// As [`Self::encode`].
    pub fn encode_with_offsets(&self, text: &str) -> Result<Vec<(u32, std::ops::Range<usize>)>> {
        let encoding = self
            .inner
            .encode(text, false)
            .map_err(|e| Error::input("the tokenizer cannot encode the text").from_source(e))?;
        let offsets = encoding.get_offsets().iter().map(|&(start, end)| start..end);
        Ok(encoding.get_ids().iter().copied().zip(offsets).collect())
    }

    /// The text of `ids`. Bytes that are no UTF-8 become U+FFFD.
    ///
    /// # Errors
    /// When the tokenizer's decoder fails.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        self.inner
            .decode(ids, skip_special)
            .map_err(|e| Error::input("the tokenizer cannot decode the ids").from_source(e))
    }

    /// One more than the largest id: the least vocabulary a model needs.
    pub fn vocab_size(&self) -> usize {
        let largest = self.inner.get_vocab(true).values().copied().max();
        largest.map_or(0, |id| id as usize + 1)
    }

    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    pub fn pad(&self) -> Option<u32> {
        self.pad
    }

    /// Whether a document of plain text begins with bos.
    pub fn add_bos(&self) -> bool {
        self.add_bos && self.bos.is_some()
    }

    /// bos as the chat template writes it; empty where there is none.
    pub fn bos_text(&self) -> &str {
        self.bos_text.as_deref().unwrap_or_default()
    }

    /// eos as the chat template writes it; empty where there is none.
    pub fn eos_text(&self) -> &str {
        self.eos_text.as_deref().unwrap_or_default()
    }

    /// Whether `id` is one of the tokenizer's special tokens.
    pub fn is_special(&self, id: u32) -> bool {
        self.inner
            .get_added_vocabulary()
            .get_added_tokens_decoder()
            .get(&id)
            .is_some_and(|t| t.special)
    }

    /// `tokenizer_config.json`, as it was read or will be written.
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// The tokenizer in the crate's JSON, which [`Self::fingerprint`] and [`Self::save`] use.
    ///
    /// # Errors
    /// When it cannot be written as JSON.
    pub fn to_json(&self) -> Result<String> {
        self.inner
            .to_string(true)
            .map_err(|e| Error::bug("writing the tokenizer as JSON").from_source(e))
    }

    /// Equal for tokenizers that give equal ids.
    ///
    /// # Errors
    /// As [`Self::to_json`].
    pub fn fingerprint(&self) -> Result<u32> {
        let special = format!("{:?} {:?} {}", self.bos, self.eos, self.add_bos);
        Ok(checksum::crc32c_append(
            checksum::crc32c(self.to_json()?.as_bytes()),
            special.as_bytes(),
        ))
    }

    /// Writes `tokenizer.json` and `tokenizer_config.json` into the folder `dir`, as
    /// transformers reads them.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn save(&self, dir: &Path) -> Result<()> {
        let mut config = self.config.clone();
        // A file without its tokenizer_config.json told its special tokens elsewhere.
        for (name, text) in [("bos_token", &self.bos_text), ("eos_token", &self.eos_text)] {
            if let (None, Some(text)) = (config.get(name), text) {
                config[name] = json!(text);
            }
        }
        if config.get("tokenizer_class").is_none() {
            config["tokenizer_class"] = json!("PreTrainedTokenizerFast");
        }
        let text = serde_json::to_string_pretty(&config)
            .map_err(|e| Error::bug("writing the tokenizer's configuration").from_source(e))?;
        write_whole(&dir.join("tokenizer_config.json"), (text + "\n").as_bytes())?;
        // Last, because its being there says that the tokenizer is whole.
        write_whole(&dir.join("tokenizer.json"), self.to_json()?.as_bytes())
    }
}

fn special(text: &str) -> AddedToken {
    AddedToken::from(text, true)
}

/// The character that stands for each byte in a byte-level vocabulary (GPT-2's table): a
/// printable byte is itself, the others are moved behind U+0100.
fn byte_chars() -> [char; 256] {
    let printable = |b: u32| matches!(b, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let mut chars = ['\0'; 256];
    let mut moved = 0;
    for (b, c) in chars.iter_mut().enumerate() {
        let code = if printable(b as u32) {
            b as u32
        } else {
            moved += 1;
            0x100 + moved - 1
        };
        *c = char::from_u32(code).unwrap_or_default();
    }
    chars
}

/// Whether ids 0..=255 of `inner` are the bytes themselves.
fn is_bytes(inner: &tokenizers::Tokenizer) -> bool {
    inner.get_model().get_vocab_size() == 256
        && byte_chars()
            .iter()
            .enumerate()
            .all(|(id, c)| inner.token_to_id(&c.to_string()) == Some(id as u32))
}

/// A special token is written as its text or as `{"content": text, ...}`.
fn special_text(value: &Value) -> Option<String> {
    value.as_str().or_else(|| value.get("content")?.as_str()).map(str::to_owned)
}

/// A special id is written as a number or, with several, as a list: the first counts.
fn special_id(value: Option<&Value>) -> Option<u32> {
    let value = value?;
    value.as_u64().or_else(|| value.get(0)?.as_u64()).and_then(|id| u32::try_from(id).ok())
}

#[cfg(test)]
mod tests;
