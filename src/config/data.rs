//! `[data]`: the files, how they are read, and the tokenizer.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// The text and the tokenizer. Relative paths are relative to the working directory.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Data {
    /// The files to read, each a path or a table; a path that ends in `.zst` is decompressed.
    #[schemars(schema_with = "files_schema", extend("x-required" = true))]
    pub files: Vec<FileSource>,
    /// How text becomes token ids.
    #[schemars(extend("x-default" = "with model.from the folder's tokenizer.json; else required"))]
    pub tokenizer: Tokenizer,
    /// Fraction of the sequences that is held out for `semoe eval` and `train.eval_every`.
    #[schemars(range(min = 0), extend("exclusiveMaximum" = 1))]
    pub validation: f64,
    /// Whether sequences are drawn in a seeded random order.
    pub shuffle: bool,
    /// Seed of the order and of the held-out fraction.
    #[schemars(extend("x-default" = "train.seed"))]
    pub seed: u64,
}

impl Default for Data {
    fn default() -> Self {
        Self {
            files: Vec::new(),
            tokenizer: Tokenizer::Bytes {},
            validation: 0.01,
            shuffle: true,
            seed: 0,
        }
    }
}

/// One input file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct FileSource {
    /// The file.
    #[schemars(extend("x-required" = true))]
    pub path: PathBuf,
    /// How often it is drawn from, relative to the other files.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub weight: f64,
    /// What the file holds.
    pub format: FileFormat,
    /// The field of a JSON line that holds the text.
    #[schemars(length(min = 1))]
    pub text_key: String,
}

impl Default for FileSource {
    fn default() -> Self {
        Self {
            path: PathBuf::new(),
            weight: 1.0,
            format: FileFormat::Auto,
            text_key: "text".to_owned(),
        }
    }
}

/// What an input file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum FileFormat {
    /// By the first line: an object with `messages` is chat, another object JSON lines, else text.
    #[default]
    Auto,
    /// Plain text.
    Text,
    /// JSON lines with a text field.
    Jsonl,
    /// JSON lines with `messages`; the loss is on the answers only.
    Chat,
}

/// How text becomes token ids.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum Tokenizer {
    /// One token a byte, and begin, end and padding: 259 in all.
    Bytes {},
    /// A byte-pair encoding trained on the data.
    Bpe {
        /// Number of tokens, special ones included.
        #[serde(default = "bpe_vocab")]
        #[schemars(range(min = 259))]
        vocab: usize,
    },
    /// An existing tokenizer.json.
    File {
        /// The file.
        #[schemars(extend("x-required" = true))]
        path: PathBuf,
    },
}

fn bpe_vocab() -> usize {
    4096
}

fn files_schema(generator: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "minItems": 1,
        "items": { "anyOf": [{ "type": "string" }, FileSource::json_schema(generator)] },
    })
}
