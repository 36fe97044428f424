//! The recorded accesses of a run, and what other cache policies would have made of them.
//!
//! The hierarchy records every access as it is asked for and every change as it is released; a
//! run appends these bytes to one file. Replay serves the same accesses from a cache of the same
//! (or another) size under each policy, and under Belady's optimum, which knows the future.

mod simulate;
mod trace;

pub use simulate::{Comparison, Counts, Row, compare};
pub use trace::{Record, Recorder, Trace};
