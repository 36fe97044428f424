//! Inference: checkpoints of others, larger than memory, on the blocks, tiers, engine and actors
//! that training runs on.
//!
//! ```text
//! checkpoint (headers) ──► memory plan ──► dense weights, KV caches, slots
//!                                                 │
//! jobs ──► Inbox ──► DecodeStage on the executor: │ attention, gate, experts, head, sampler
//!            ▲          │  runs on while experts are resident; says what is missing
//!            │          ▼
//!         Script     scheduler ─ DecodePlanner ─► prefetcher ─► io: pieces of the files into slots
//!                       │
//! Said (tokens) ◄───────┘          TextStream: whole characters, stop strings
//! ```
//!
//! Law 4, here: what is generated depends on the model, the prompt and the sampling alone; not on
//! budget, policy, arrival order, chunk size, threads, or who else is being served.

pub mod figures;
pub mod foresight;
pub mod generator;
mod headers;
pub mod memory;
mod mix;
pub mod opening;
pub mod options;
pub mod sampler;
pub mod session;
mod stage;
pub mod stream;
pub mod verify;
