//! What a rank does next: the order of passes, commits and the end.
//!
//! Ranks ask the same script, so they agree without a message. When a run is asked to stop, the
//! last step is fixed for all ranks at once: the furthest that any of them has begun.

use super::message::Directive;
use std::sync::{Arc, Mutex, PoisonError};

/// Answers, whenever a rank has nothing to begin, what it does next; `None` waits for a
/// directive from the trainer.
pub trait Script: Send {
    fn next(&mut self) -> Option<Directive>;
}

/// A script that only waits: everything comes from the trainer.
#[derive(Debug, Clone, Copy, Default)]
pub struct OnDemand;

impl Script for OnDemand {
    fn next(&mut self) -> Option<Directive> {
        None
    }
}

#[derive(Debug)]
struct Gate {
    begun: u64,
    stop_after: u64,
}

/// The last step that may be begun, shared by all ranks and the trainer.
#[derive(Debug, Clone)]
pub struct StopGate(Arc<Mutex<Gate>>);

impl StopGate {
    /// Steps up to and with `last` may begin.
    pub fn until(last: u64) -> Self {
        Self(Arc::new(Mutex::new(Gate { begun: 0, stop_after: last })))
    }

    /// Whether `step` may begin; if so it counts as begun.
    pub fn begin(&self, step: u64) -> bool {
        let mut gate = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if step > gate.stop_after {
            return false;
        }
        gate.begun = gate.begun.max(step);
        true
    }

    /// No step begins that none has begun yet; returns the last one.
    pub fn stop(&self) -> u64 {
        let mut gate = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        gate.stop_after = gate.stop_after.min(gate.begun);
        gate.stop_after
    }
}
