//! Time as a value that tests can drive: nanoseconds since the run's start.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Instant;

/// Nanoseconds since the start of a run.
pub type Nanos = u64;

/// Where "now" comes from.
pub trait Clock {
    fn now(&self) -> Nanos;
}

/// The machine's monotonic clock.
#[derive(Debug, Clone, Copy)]
pub struct RealClock {
    start: Instant,
}

impl RealClock {
    /// A clock that reads zero now.
    pub fn start() -> Self {
        Self { start: Instant::now() }
    }

    /// A clock that read zero at `start`.
    pub fn since(start: Instant) -> Self {
        Self { start }
    }
}

impl Clock for RealClock {
    fn now(&self) -> Nanos {
        self.start.elapsed().as_nanos() as Nanos
    }
}

/// A clock that stands still until it is moved; clones share the time.
#[derive(Debug, Clone, Default)]
pub struct VirtualClock {
    now: Rc<Cell<Nanos>>,
}

impl VirtualClock {
    /// Moves to `at`; time never goes back.
    pub fn advance_to(&self, at: Nanos) {
        self.now.set(self.now.get().max(at));
    }
}

impl Clock for VirtualClock {
    fn now(&self) -> Nanos {
        self.now.get()
    }
}
