//! Text to token ids and back: tokenizers, and the chat templates that turn conversations to text.
//!
//! ```text
//! conversation ─► ChatTemplate (Jinja) ─► text ─► Tokenizer ─► ids ─► Tokenizer ─► text
//! ```

pub mod chat;
pub mod tokenizer;
pub mod vocabulary;
