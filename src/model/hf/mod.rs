//! Checkpoints in the Hugging Face layout: `config.json`, safetensors (sharded or not) with
//! their index, `generation_config.json`.
//!
//! ```text
//! folder ─► header (checked: lengths, ranges, types, names) ─► Checkpoint ─► read_f32(name)
//! tensor list ─► Writer (offsets fixed first, tensors in any order) ─► finish: index, configs
//! ```

mod checkpoint;
pub mod config;
mod encoding;
pub mod expert;
pub mod header;
mod keys;
mod rope;
mod shards;
#[cfg(test)]
mod tests;
mod writer;

pub use checkpoint::Checkpoint;
pub use header::{Dtype, TensorInfo};
pub use shards::{ShardTensor, Shards, write_json};
pub use writer::{Writer, WriterTensor};
