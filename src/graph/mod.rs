//! What runs after what: the pure scheduler. No I/O, no tensors, no threads, no clock of its own.
//!
//! ```text
//!            planner (adds nodes as facts arrive)
//!               │ Add
//!               ▼
//!          ┌─────────┐  Acquire(node)   ┌───────────┐
//!          │         │ ───────────────▶ │ hierarchy │   all blocks of a node at once,
//!          │ Engine  │ ◀─────────────── │           │   oldest node first
//!          │         │  Granted(node)   └───────────┘
//!          │         │  Issue(node, kind, lane, cause)
//!          │         │ ───────────────▶ lanes: compute io copy comm optim control
//!          └─────────┘ ◀─────────────── each at most its credits outstanding
//!               │        Done / Failed
//!               ▼
//!          Accounting (busy + Σ exposed + overhead = wall)
//! ```
//!
//! Laws kept here, whatever the order in which events arrive:
//! - a node is issued once, after every node that it depends on is done, and, where it acquires,
//!   after its blocks were granted;
//! - no lane has more nodes outstanding than its credits;
//! - nodes of the comm lane are issued in the order of their sequence numbers, on every rank, and
//!   acquire in that order too: so a later collective never sits on slots that an earlier one needs;
//! - a node depends only on older nodes, so the graph cannot hold a cycle.
//!
//! The same engine drives the real actors, seeded simulations with faults, and virtual time.
//!
//! ```
//! use semoe::graph::{Command, Engine, EngineConfig, Event, Lane, NodeSpec};
//!
//! let mut engine = Engine::new(EngineConfig::default())?;
//! let mut commands = Vec::new();
//! // An expert computes after its weights (acquire) and after the gate (node 0).
//! let nodes = vec![
//!     NodeSpec::new(0, "gate", Lane::Compute),
//!     NodeSpec::new(1, "expert", Lane::Compute).after([0]).acquires(),
//! ];
//! engine.on(0, Event::Add(nodes), &mut commands)?;
//! assert!(matches!(commands.pop(), Some(Command::Issue(0, "gate", Lane::Compute, _))));
//!
//! engine.on(10, Event::Done(0), &mut commands)?;
//! assert!(matches!(commands.pop(), Some(Command::Acquire(1))));
//!
//! engine.on(25, Event::Granted(1), &mut commands)?;
//! let Some(Command::Issue(1, "expert", _, cause)) = commands.pop() else { unreachable!() };
//! assert_eq!(cause.granted - cause.acquired, 15); // it waited for its weights
//! engine.on(30, Event::Done(1), &mut commands)?;
//! assert!(engine.is_idle());
//! # Ok::<(), semoe::base::Error>(())
//! ```

mod accounting;
mod engine;
mod lane;
mod live;
mod node;
pub mod planner;
mod protocol;
#[cfg(test)]
mod tests;

pub use accounting::{Accounting, Report};
pub use engine::Engine;
pub use lane::{Credits, Lane};
pub use node::{Cause, NodeId, NodeSpec};
pub use protocol::{Command, EngineConfig, EngineState, Event, Schedule};
