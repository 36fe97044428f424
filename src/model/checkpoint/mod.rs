//! Checkpoints, opened where they lie: which bytes of which file are which tensor, and nothing read
//! but headers.
//!
//! ```text
//! folder of safetensors ─┐                      ┌─► pieces(layer, expert) ─► a fetch
//! .gguf file             ├─► Table ─► Experts ─►│   expert(layer, expert, bytes) ─► views
//! imported store         ┘  by name   layouts   └─► tensor(name) ─► dense weights, resident
//! ```
//!
//! Law: the bytes of a fetch are the bytes of the file; a weight stays encoded as it is written.

mod entries;
mod experts;
mod export;
mod folder;
mod identity;
mod layout;
#[cfg(test)]
mod logits_tests;
mod read;
mod source;
pub mod store;
mod stored;
mod table;
#[cfg(test)]
mod tests;

pub use entries::{Entries, Meta, Origin, Row};
pub use export::export;
pub use layout::{GateUpAt, Layout, MatrixAt, Span};
pub use source::Source;
pub use stored::{Stored, scales_shape};
pub use table::{Piece, Place, RowOrder, Table};
