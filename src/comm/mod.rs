//! Collectives between ranks.
//!
//! ```text
//! rank 0                          rank 1
//! Collective::all_to_all_v ─┐  ┌─ Collective::all_to_all_v     never block; the n-th call of every
//!   (operation 0)           ╳──╳    (operation 0)              rank is the same operation
//! Handle::wait ◀────────────┘  └▶ Handle::wait                 blocks until every part is there,
//!                                                              a rank is gone, or time is up
//! ```
//!
//! Laws kept here:
//! - every rank issues the same operations in the same order; a difference is an error that names
//!   both operations, not a wrong result;
//! - nobody hangs: a rank that is gone, or silent for longer than the timeout, ends every operation
//!   that needs it with an error that names the rank and the operation;
//! - sums are taken in rank order, so every rank gets identical bits.
//!
//! The primitives are [`Collective::all_to_all_v`], [`Collective::all_gather`],
//! [`Collective::broadcast`] and [`Collective::barrier`]; the sums stand on these alone, so that
//! every backend gives the same bits. Backends: [`local`] (ranks are threads of one process), and
//! [`Solo`] for a run with one rank. [`Faulty`] wraps any of them with a planned fault.

mod collective;
mod faulty;
mod inbox;
pub mod local;
mod solo;
#[cfg(test)]
mod tests;

pub use collective::{Collective, Handle, Operation, Pending};
pub use faulty::{Fault, Faulty};
pub use local::{LocalCollective, LocalOptions};
pub use solo::Solo;
