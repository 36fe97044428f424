//! The ring of recorded spans that every thread writes to.
//!
//! It holds whole steps: the spans of the last `steps` steps, and never more than `max_events`;
//! what falls out is counted.

use crate::base::Step;
use crate::base::clock::Nanos;
use serde_json::Value;
use std::borrow::Cow;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// The lane of spans that say what the executor waited for; a span's name is the cause.
pub const EXPOSED: &str = "exposed";

/// Something that a lane did.
#[derive(Debug, Clone, PartialEq)]
pub struct Span {
    pub name: Cow<'static, str>,
    pub lane: Cow<'static, str>,
    pub rank: u16,
    pub step: Step,
    /// Since the recorder's start.
    pub start: Nanos,
    pub end: Nanos,
    /// The node's id, which arrows point from. 0 for none.
    pub id: u64,
    /// The ids that it waited for: an arrow is drawn from each to it.
    pub after: Vec<u64>,
    pub args: Vec<(&'static str, Value)>,
}

impl Span {
    /// A span without arrows and arguments.
    pub fn new(
        lane: impl Into<Cow<'static, str>>,
        name: impl Into<Cow<'static, str>>,
        start: Nanos,
        end: Nanos,
    ) -> Self {
        Self {
            name: name.into(),
            lane: lane.into(),
            rank: 0,
            step: 0,
            start,
            end: end.max(start),
            id: 0,
            after: Vec::new(),
            args: Vec::new(),
        }
    }

    /// Gives it an id that arrows can start at.
    #[must_use]
    pub fn id(mut self, id: u64) -> Self {
        self.id = id;
        self
    }

    /// Draws an arrow from the span `id` to this one.
    #[must_use]
    pub fn after(mut self, id: u64) -> Self {
        self.after.reserve_exact(1);
        self.after.push(id);
        self
    }

    /// Adds an argument, shown when the span is selected.
    #[must_use]
    pub fn arg(mut self, key: &'static str, value: impl Into<Value>) -> Self {
        // Of the many spans that are held most have one: room for more would be several times its size.
        self.args.reserve_exact(1);
        self.args.push((key, value.into()));
        self
    }

    pub fn nanos(&self) -> Nanos {
        self.end - self.start
    }
}

/// How much is recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecorderOptions {
    pub enabled: bool,
    /// Spans that are held at most.
    pub max_events: usize,
    /// Steps that are held at most.
    pub steps: u64,
}

impl RecorderOptions {
    /// Nothing is recorded.
    pub fn off() -> Self {
        Self { enabled: false, max_events: 0, steps: 0 }
    }
}

impl Default for RecorderOptions {
    fn default() -> Self {
        Self { enabled: true, max_events: 200_000, steps: 8 }
    }
}

impl RecorderOptions {
    /// What the ring takes at most, for the ledger: a span with two arguments and an arrow.
    pub fn bytes(&self) -> u64 {
        let span = size_of::<Span>() + 2 * size_of::<(&str, Value)>() + 64;
        if self.enabled { self.max_events as u64 * span as u64 } else { 0 }
    }
}

/// What was recorded, oldest first.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Timeline {
    pub spans: Vec<Span>,
    /// Spans that fell out of the ring before their step did: the oldest step held is cut.
    pub dropped: u64,
}

/// A handle to the ring; clones share it.
#[derive(Debug, Clone)]
pub struct Recorder {
    options: RecorderOptions,
    rank: u16,
    origin: Instant,
    ring: Arc<Mutex<Ring>>,
}

#[derive(Debug, Default)]
struct Ring {
    spans: VecDeque<Span>,
    step: Step,
    dropped: u64,
}

impl Recorder {
    /// A recorder whose time is zero at `origin`, which the run's clock shares.
    pub fn new(options: RecorderOptions, origin: Instant) -> Self {
        Self { options, rank: 0, origin, ring: Arc::default() }
    }

    /// A recorder that keeps nothing.
    pub fn off() -> Self {
        let options = RecorderOptions { enabled: false, max_events: 0, steps: 0 };
        Self::new(options, Instant::now())
    }

    /// A handle to the same ring whose spans are those of `rank`.
    #[must_use]
    pub fn for_rank(&self, rank: u16) -> Self {
        Self { rank, ..self.clone() }
    }

    pub fn enabled(&self) -> bool {
        self.options.enabled
    }

    /// Nanoseconds since the recorder's start.
    pub fn now(&self) -> Nanos {
        self.nanos_at(Instant::now())
    }

    /// An instant on the recorder's clock.
    pub fn nanos_at(&self, at: Instant) -> Nanos {
        at.saturating_duration_since(self.origin).as_nanos() as Nanos
    }

    /// Spans from here on are those of `step`; steps before the last few fall out.
    pub fn begin_step(&self, step: Step) {
        if !self.enabled() {
            return;
        }
        let mut ring = self.lock();
        ring.step = step;
        let oldest = step.saturating_sub(self.options.steps.saturating_sub(1));
        while ring.spans.front().is_some_and(|span| span.step < oldest) {
            ring.spans.pop_front();
        }
        // A run that drops spans says so only for the steps that are still held.
        if ring.spans.is_empty() {
            ring.dropped = 0;
        }
    }

    /// Records a span; its rank and step are filled in (a step that was set stays).
    pub fn record(&self, mut span: Span) {
        if !self.enabled() {
            return;
        }
        span.rank = self.rank;
        let mut ring = self.lock();
        if span.step == 0 {
            span.step = ring.step;
        }
        if ring.spans.len() >= self.options.max_events {
            ring.spans.pop_front();
            ring.dropped += 1;
        }
        if self.options.max_events > 0 {
            ring.spans.push_back(span);
        }
    }

    /// Records that the executor waited from `start` to `end` for `cause` (a lane).
    pub fn exposed(&self, cause: impl Into<Cow<'static, str>>, start: Nanos, end: Nanos) {
        if end > start {
            self.record(Span::new(EXPOSED, cause, start, end));
        }
    }

    /// Runs `work` as a span of `lane`.
    pub fn time<T>(
        &self,
        lane: &'static str,
        name: impl Into<Cow<'static, str>>,
        work: impl FnOnce() -> T,
    ) -> T {
        if !self.enabled() {
            return work();
        }
        let start = self.now();
        let result = work();
        self.record(Span::new(lane, name, start, self.now()));
        result
    }

    /// A copy of what is held, ordered by start.
    pub fn timeline(&self) -> Timeline {
        let ring = self.lock();
        let mut spans: Vec<Span> = ring.spans.iter().cloned().collect();
        spans.sort_by_key(|span| (span.start, span.end));
        Timeline { spans, dropped: ring.dropped }
    }

    fn lock(&self) -> MutexGuard<'_, Ring> {
        // A thread that died while it held the lock left at worst a span out.
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recorder(max_events: usize, steps: u64) -> Recorder {
        let options = RecorderOptions { enabled: true, max_events, steps };
        Recorder::new(options, Instant::now())
    }

    #[test]
    fn the_ring_holds_the_last_steps_and_no_more() {
        let recorder = recorder(100, 3);
        for step in 1..=10 {
            recorder.begin_step(step);
            for i in 0..5 {
                recorder.record(Span::new("compute", "work", step * 100 + i, step * 100 + i + 1));
            }
        }
        let timeline = recorder.timeline();
        assert_eq!(timeline.spans.len(), 15);
        assert_eq!(timeline.spans[0].step, 8);
        assert_eq!(timeline.dropped, 0);
        for i in 0..200 {
            recorder.record(Span::new("io", "read", 5000 + i, 5001 + i));
        }
        let timeline = recorder.timeline();
        assert_eq!((timeline.spans.len(), timeline.dropped), (100, 115));
    }

    #[test]
    fn handles_of_threads_and_ranks_share_one_ring() {
        let recorder = recorder(1000, 8);
        recorder.begin_step(1);
        std::thread::scope(|scope| {
            for rank in 0..4 {
                let own = recorder.for_rank(rank);
                scope.spawn(move || {
                    for i in 0..50 {
                        own.record(Span::new("compute", "work", i, i + 1));
                    }
                });
            }
        });
        let timeline = recorder.timeline();
        assert_eq!(timeline.spans.len(), 200);
        assert_eq!(timeline.spans.iter().filter(|s| s.rank == 3).count(), 50);
    }

    #[test]
    fn switched_off_it_keeps_nothing() {
        let recorder = Recorder::off();
        recorder.begin_step(1);
        assert_eq!(recorder.time("compute", "work", || 7), 7);
        assert!(recorder.timeline().spans.is_empty());
    }
}
