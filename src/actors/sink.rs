//! The sink: what a pass leaves for the outside. It turns the running totals of clocks, cache
//! and disk into the figures of one pass and hands them to the trainer.

use super::link::{Alarm, RankEvent};
use super::meter::Meter;
use super::stage::PassNumbers;
use crate::base::clock::Nanos;
use crate::graph::Report;
use crate::graph::planner::Task;
use crate::observable;
use actix::{Actor, Context, Handler, Message};
use serde::Serialize;
use std::sync::Arc;

/// A pass ended: from the scheduler.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct PassEnded {
    pub task: Task,
    pub numbers: Box<PassNumbers>,
    /// The account since the run began.
    pub accounting: Report,
    pub at: Nanos,
}

/// Totals of cache and disk at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Traffic {
    pub cache_hits: u64,
    pub cache_misses: u64,
    /// Misses on blocks that were on their way in.
    pub cache_late: u64,
    /// Reads that began before anyone asked for the block.
    pub prefetches: u64,
    /// Those of them that nobody asked for at their time.
    pub wasted: u64,
    pub bytes_read: u64,
    pub bytes_written: u64,
    /// Nanoseconds in which the disk had at least one request.
    pub disk_busy: u64,
    /// Bytes of expert weights, read in the forward and backward passes.
    pub weight_bytes_read: u64,
    /// Bytes read for guesses while nobody waited for them, and those of them that were of no use.
    pub bytes_ahead: u64,
    pub bytes_in_vain: u64,
}

impl Traffic {
    fn since(&self, earlier: &Self) -> Self {
        Self {
            cache_hits: self.cache_hits - earlier.cache_hits,
            cache_misses: self.cache_misses - earlier.cache_misses,
            cache_late: self.cache_late - earlier.cache_late,
            prefetches: self.prefetches - earlier.prefetches,
            wasted: self.wasted - earlier.wasted,
            bytes_read: self.bytes_read - earlier.bytes_read,
            bytes_written: self.bytes_written - earlier.bytes_written,
            disk_busy: self.disk_busy - earlier.disk_busy,
            weight_bytes_read: self.weight_bytes_read - earlier.weight_bytes_read,
            bytes_ahead: self.bytes_ahead - earlier.bytes_ahead,
            bytes_in_vain: self.bytes_in_vain - earlier.bytes_in_vain,
        }
    }
}

/// The figures of one pass on one rank.
#[derive(Debug, Clone)]
pub struct PassReport {
    pub task: Task,
    pub numbers: PassNumbers,
    /// Seconds since the pass before ended.
    pub seconds: f64,
    pub accounting: Report,
    pub traffic: Traffic,
}

/// See the module.
#[derive(Debug)]
pub struct Sink {
    meter: Arc<Meter>,
    alarm: Alarm,
    passes: u64,
    last_at: Nanos,
    last_accounting: Report,
    last_traffic: Traffic,
}

impl Sink {
    pub fn new(meter: Arc<Meter>, alarm: Alarm, now: Nanos) -> Self {
        Self {
            meter,
            alarm,
            passes: 0,
            last_at: now,
            last_accounting: Report::default(),
            last_traffic: Traffic::default(),
        }
    }

    fn state(&self) -> impl Serialize + use<> {
        serde_json::json!({ "passes": self.passes, "traffic": self.last_traffic })
    }
}

impl Actor for Sink {
    type Context = Context<Self>;
}

impl Handler<PassEnded> for Sink {
    type Result = ();

    fn handle(&mut self, ended: PassEnded, _: &mut Self::Context) {
        let traffic = self.meter.read();
        let report = PassReport {
            task: ended.task,
            numbers: *ended.numbers,
            seconds: ended.at.saturating_sub(self.last_at) as f64 * 1e-9,
            accounting: ended.accounting.since(&self.last_accounting),
            traffic: traffic.since(&self.last_traffic),
        };
        self.passes += 1;
        self.last_at = ended.at;
        self.last_accounting = ended.accounting;
        self.last_traffic = traffic;
        self.alarm.tell(RankEvent::Pass(Box::new(report)));
    }
}

observable!(Sink, "sink");
