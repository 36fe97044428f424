//! Where the wall time of a run went: executor busy + Σ exposed(lane) + overhead = wall.
//!
//! The executor is idle in the gap before each of its nodes. The gap is walked backwards along
//! the chain that blocked the node: handing over (overhead), waiting for blocks (io), the node
//! that enabled it (its lane, for as long as it was outstanding), what that one waited for, and so
//! on to the start of the gap. So every idle nanosecond is given to exactly one lane, the one in
//! which the chain's end lay at that moment; time in which the chain lay with the executor
//! itself, or in transit, is overhead.

use super::lane::Lane;
use super::node::{Cause, NodeId};
use crate::base::clock::Nanos;
use serde::Serialize;
use std::collections::{HashMap, VecDeque};

/// Ended nodes are remembered while a chain may still pass through them. A chain that is longer
/// is cut and its rest goes to the lane of the last link; nothing realistic comes near.
const MOST_ENDED: usize = 1 << 16;

#[derive(Debug, Clone, Copy)]
struct Record {
    lane: Lane,
    cause: Cause,
}

/// Times in nanoseconds; `busy + exposed.sum() + overhead = wall` while the executor's spans do not
/// overlap.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Time accounted for: from the start to the end of the last busy span (or to the finish).
    pub wall: Nanos,
    /// Time in which the executor ran nodes.
    pub busy: Nanos,
    /// Idle time by the lane that it waited for ([`Lane::index`]). The compute entry is zero: what
    /// would be there is overhead.
    pub exposed: [Nanos; Lane::COUNT],
    /// Idle time in which work was in transit between scheduler and executor.
    pub overhead: Nanos,
    /// Time in which a lane had at least one node outstanding ([`Lane::index`]).
    pub used: [Nanos; Lane::COUNT],
    /// Executor nodes.
    pub nodes: u64,
}

impl Report {
    pub fn exposed_of(&self, lane: Lane) -> Nanos {
        self.exposed[lane.index()]
    }

    /// All the time in which the executor waited for other lanes.
    pub fn exposed_total(&self) -> Nanos {
        self.exposed.iter().sum()
    }

    /// What the parts miss of the wall time, as a share of it: a check on the measurement.
    pub fn imbalance(&self) -> f64 {
        let parts = self.busy + self.exposed_total() + self.overhead;
        parts.abs_diff(self.wall) as f64 / self.wall.max(1) as f64
    }

    /// The share of the wall time in which a lane had work.
    pub fn utilisation(&self, lane: Lane) -> f64 {
        self.used[lane.index()] as f64 / self.wall.max(1) as f64
    }

    /// What was added since an earlier report of the same accounting: a step's share of a run.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let less = |now: Nanos, then: Nanos| now.saturating_sub(then);
        Self {
            wall: less(self.wall, earlier.wall),
            busy: less(self.busy, earlier.busy),
            exposed: std::array::from_fn(|i| less(self.exposed[i], earlier.exposed[i])),
            overhead: less(self.overhead, earlier.overhead),
            used: std::array::from_fn(|i| less(self.used[i], earlier.used[i])),
            nodes: less(self.nodes, earlier.nodes),
        }
    }
}

/// Keeps the account of one executor. Told of every issue, every busy span and every end, in
/// the order in which they happen; of a node on the executor the span comes before the end.
#[derive(Debug)]
pub struct Accounting {
    start: Nanos,
    /// Everything before is settled.
    settled: Nanos,
    records: HashMap<NodeId, Record>,
    /// Ended nodes by the time of their end, oldest first.
    ended: VecDeque<(Nanos, NodeId)>,
    outstanding: [u32; Lane::COUNT],
    since: [Nanos; Lane::COUNT],
    report: Report,
}

impl Accounting {
    /// An empty account that starts at `now`.
    pub fn new(now: Nanos) -> Self {
        Self {
            start: now,
            settled: now,
            records: HashMap::new(),
            ended: VecDeque::new(),
            outstanding: [0; Lane::COUNT],
            since: [now; Lane::COUNT],
            report: Report::default(),
        }
    }

    /// A node was issued: the fields of [`super::Command::Issue`].
    pub fn issued(&mut self, id: NodeId, lane: Lane, cause: Cause) {
        let i = lane.index();
        if self.outstanding[i] == 0 {
            self.since[i] = cause.issued;
        }
        self.outstanding[i] += 1;
        self.records.insert(id, Record { lane, cause });
    }

    /// The executor ran `id` from `start` to `end`, as it measured itself.
    pub fn busy(&mut self, id: NodeId, start: Nanos, end: Nanos) {
        self.attribute(Some(id), start, true);
        self.report.busy += end.saturating_sub(start);
        self.report.nodes += 1;
        self.settled = self.settled.max(end);
        self.forget();
    }

    /// A node ended (well or not); `now` as given to the engine.
    pub fn done(&mut self, now: Nanos, id: NodeId) {
        let Some(record) = self.records.get(&id) else { return };
        let i = record.lane.index();
        self.outstanding[i] = self.outstanding[i].saturating_sub(1);
        if self.outstanding[i] == 0 {
            self.report.used[i] += now.saturating_sub(self.since[i]);
        }
        self.ended.push_back((now, id));
        if self.ended.len() > MOST_ENDED {
            self.drop_oldest();
        }
    }

    /// The account up to the end of the last busy span, with the use of lanes up to there.
    pub fn report(&self) -> Report {
        let mut report = self.report;
        report.wall = self.settled - self.start;
        for i in 0..Lane::COUNT {
            if self.outstanding[i] > 0 {
                report.used[i] += self.settled.saturating_sub(self.since[i]);
            }
        }
        report
    }

    /// Settles everything up to `now`, when the executor is idle for good (the end of a run,
    /// or of a measured part of one), and reports.
    pub fn finish(&mut self, now: Nanos) -> Report {
        let last = self.ended.back().copied();
        // Nothing was under way after the last end.
        let ended = last.map_or(now, |(end, _)| end);
        self.report.exposed[Lane::Control.index()] += now.saturating_sub(ended.max(self.settled));
        let settled = self.settled;
        self.attribute(last.map(|(_, id)| id), ended, false);
        self.settled = now.max(settled);
        self.forget();
        self.report()
    }

    /// Gives the idle time from `settled` to `until` to lanes, walking back from `node`. `runs`:
    /// the node is the one that the executor runs next, so its hand-over is overhead.
    fn attribute(&mut self, node: Option<NodeId>, until: Nanos, runs: bool) {
        let from = self.settled;
        let mut at = until;
        let mut next = node;
        let mut last_lane = Lane::Control;
        let mut hand_over = runs;
        while at > from {
            let record = next.and_then(|id| self.records.get(&id).copied());
            let Some(Record { lane, cause }) = record else {
                self.give(last_lane, at - from);
                break;
            };
            let mut take = |back_to: Nanos, lane: Lane| {
                let back_to = back_to.max(from);
                if back_to < at {
                    self.give(lane, at - back_to);
                    at = back_to;
                }
            };
            // A node on the executor is in transit whenever the executor is idle.
            take(cause.issued, if hand_over { Lane::Compute } else { lane });
            take(cause.granted, lane);
            take(cause.acquired, Lane::Io);
            take(cause.enabled, lane);
            hand_over = false;
            // From the end of the node before to the addition of this one the planner had it.
            take(cause.by_ended, Lane::Control);
            last_lane = cause.by.map_or(Lane::Control, |(_, lane)| lane);
            next = cause.by.map(|(id, _)| id);
        }
        self.settled = self.settled.max(until);
    }

    fn give(&mut self, lane: Lane, time: Nanos) {
        match lane {
            Lane::Compute => self.report.overhead += time,
            lane => self.report.exposed[lane.index()] += time,
        }
    }

    /// Drops nodes that ended before the settled time: no chain goes back further.
    fn forget(&mut self) {
        while self.ended.front().is_some_and(|(end, _)| *end <= self.settled) {
            self.drop_oldest();
        }
    }

    fn drop_oldest(&mut self) {
        if let Some((_, id)) = self.ended.pop_front() {
            self.records.remove(&id);
        }
    }
}
