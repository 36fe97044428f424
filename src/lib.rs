//! semoe trains, fine-tunes and serves Mixture-of-Experts models that do not fit in memory.
//!
//! The layers, each of which imports only those above it in this list:
//!
//! ```text
//! base                          errors, ids, units, clock, ledger
//! text                          tokenizers and chat templates
//! storage  model  comm  graph   where bytes live, maths on tensors, collectives, what runs after what
//! actors                        run the graph: one actor per job, plus scheduler and supervisor
//! train  infer  trace           training and inference, wired to actors; timelines
//! config cli                    the TOML file, the commands
//! ```

// Library code returns errors. Tests may unwrap what they expect (clippy.toml); benches, examples
// and the build script are crates of their own, so these stand here and not in Cargo.toml.
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::todo)]

pub mod actors;
pub mod base;
pub mod cli;
pub mod comm;
pub mod config;
pub mod graph;
pub mod infer;
pub mod model;
pub mod storage;
pub mod text;
pub mod trace;
pub mod train;
