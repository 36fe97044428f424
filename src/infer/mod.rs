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
//! What a token will take is foretold from the headers and from figures of this machine that are
//! measured once:
//!
//! ```text
//! checkpoint (headers) ──► workload ──┐
//! machine (measured, kept) ──► rates ─┴─► forecast ──► plan; beside what a run measured
//! ```
//!
//! Law 4, here: what is generated depends on the model, the prompt and the sampling alone; not on
//! budget, policy, arrival order, chunk size, threads, or who else is being served.

pub mod figures;
pub mod forecast;
pub mod foresight;
pub mod generator;
mod habits;
mod headers;
pub mod machine;
pub mod memory;
mod mix;
mod opened;
pub mod opening;
pub mod options;
pub mod perplexity;
pub mod plan;
pub mod sampler;
pub mod session;
pub mod settings;
mod stage;
pub mod stream;
mod timeline;
pub mod verify;
