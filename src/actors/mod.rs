//! The actors that run the graph: one for each job, on one arbiter a rank.
//!
//! ```text
//!               Pass, Commit, Finish                              reports, failures
//!  trainer ───────────────────────► scheduler ─────────► sink ─────────────────────► trainer
//!                                    │  ▲  engine + planner (pure)
//!                       Run(node)    │  │ NodeDone(fact)      Granted(lease)
//!        ┌──────────┬────────┬───────┼──┴─────┬────────────┬──────────────┐
//!     source     dense     gate    expert  optimizer   communicator   prefetcher
//!        │          └────────┴───┬───┴────────┘            │              │ hierarchy (pure)
//!   reader thread        executor thread              comm thread      io thread, commit thread
//! ```
//!
//! Actors decide and keep the books; threads work. A message to an actor on the same arbiter
//! costs well under a microsecond, one to a thread goes through a crossbeam channel. Every
//! mailbox is bounded, and there is one place that sends ([`link`]): a full mailbox is a bug,
//! because the lanes' credits bound what can be outstanding. Tensors are moved between threads
//! and never shared.

pub mod backing;
pub mod cache;
pub mod committing;
pub mod communicator;
pub mod compute;
mod contents;
pub mod link;
pub mod message;
pub mod meter;
pub mod observe;
pub mod prefetcher;
pub mod rank;
mod reading;
pub mod scheduler;
pub mod script;
pub mod sink;
pub mod source;
pub mod spans;
pub mod stage;
pub mod supervisor;
pub mod worker;
