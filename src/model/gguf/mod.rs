//! GGUF files: header with metadata and tensors, the model's configuration and vocabulary out of
//! the metadata, and its tensors under their Hugging Face names.
//!
//! ```text
//! file ─► header (checked: counts, lengths, types, ranges) ─► config, names ─► Table
//!                                                         └─► vocabulary ─► Tokenizer
//! ```
//!
//! Layout: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>. What is read is what
//! llama.cpp's converter writes for the architectures of `config`.

mod config;
mod header;
mod names;
mod reader;
#[cfg(test)]
mod tests;
mod vocabulary;

pub use config::config;
pub use header::{Gguf, Tensor, parse};
pub use names::table;
pub use reader::{List, Value};
pub use vocabulary::vocabulary;
