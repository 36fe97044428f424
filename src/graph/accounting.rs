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

#[cfg(test)]
mod tests {
    use super::super::{Command, Credits, Engine, EngineConfig, Event, NodeSpec, Schedule};
    use super::*;
    use proptest::prelude::*;
    use std::cmp::Reverse;
    use std::collections::BinaryHeap;

    fn cause(by: Option<(NodeId, Lane)>, times: [Nanos; 5]) -> Cause {
        let [by_ended, enabled, acquired, granted, issued] = times;
        Cause { by, by_ended, enabled, acquired, granted, issued }
    }

    #[test]
    fn a_gap_is_given_to_the_lanes_of_the_chain_that_filled_it() {
        let mut account = Accounting::new(0);
        // Node 0 computes from 2 to 10; its end is known at 11.
        account.issued(0, Lane::Compute, cause(None, [0, 1, 1, 1, 1]));
        account.busy(0, 2, 10);
        account.done(11, 0);
        // Node 1 exchanges until 31, after waiting from 11 to 16 for buffers.
        let by = Some((0, Lane::Compute));
        account.issued(1, Lane::Comm, cause(by, [11, 11, 11, 16, 16]));
        account.done(31, 1);
        // Node 2 is added at 35 by the planner, waits for weights until 55 and computes from 56.
        let by = Some((1, Lane::Comm));
        account.issued(2, Lane::Compute, cause(by, [31, 35, 35, 55, 55]));
        account.busy(2, 56, 100);
        account.done(101, 2);

        let report = account.finish(104);
        assert_eq!((report.wall, report.busy, report.nodes), (104, 8 + 44, 2));
        assert_eq!(report.exposed_of(Lane::Comm), 15); // 16 to 31
        assert_eq!(report.exposed_of(Lane::Io), 5 + 20); // 11 to 16, 35 to 55
        assert_eq!(report.exposed_of(Lane::Control), 1 + 4 + 3); // 0 to 1, 31 to 35, 101 to 104
        assert_eq!(report.overhead, 1 + 1 + 1 + 1); // 1 to 2, 10 to 11, 55 to 56, 100 to 101
        assert_eq!(report.exposed_of(Lane::Compute), 0);
        assert!(report.imbalance() == 0.0);
        assert_eq!(report.used[Lane::Comm.index()], 15);
    }

    #[test]
    fn a_step_is_the_difference_of_two_reports() {
        let mut account = Accounting::new(100);
        let step = |account: &mut Accounting, id: NodeId, start: Nanos| {
            let by = id.checked_sub(1).map(|id| (id, Lane::Compute));
            account.issued(id, Lane::Compute, cause(by, [start - 2; 5]));
            account.busy(id, start, start + 10);
            account.done(start + 10, id);
            account.report()
        };
        let first = step(&mut account, 0, 110);
        let second = step(&mut account, 1, 125).since(&first);
        assert_eq!((second.wall, second.busy, second.nodes), (15, 10, 1));
        assert_eq!(second.overhead + second.exposed_total(), 5);
        assert!(account.records.is_empty(), "ended nodes are forgotten");
    }

    proptest! {
        /// Random graphs in virtual time, with late hand-overs and grants: the parts are the
        /// wall time exactly.
        #[test]
        fn the_parts_make_up_the_wall_time(
            nodes in prop::collection::vec(
                (0..Lane::COUNT, prop::collection::vec(1..9u64, 0..3), 0..30u64, 1..50u64, 0..5u64),
                1..50,
            ),
            sequential in any::<bool>(),
            late in 0..3u64,
        ) {
            let schedule = if sequential { Schedule::Sequential } else { Schedule::Overlapped };
            let config = EngineConfig { credits: Credits::default(), schedule };
            let mut engine = Engine::new(config).unwrap();
            let mut account = Accounting::new(0);
            let mut future = BinaryHeap::new();
            let mut sequence = 0;
            for id in 0..nodes.len() {
                // Events: 0 add, 1 grant, 2 end. Nodes are added one by one over time.
                future.push(Reverse((id as u64 * 20, 0, id as NodeId)));
            }
            let (mut free_at, mut spans) = (0, std::collections::BTreeMap::new());
            let (mut now, mut busy) = (0, 0);
            while let Some(Reverse((at, what, id))) = future.pop() {
                now = at;
                let (lane, back, _, _, _) = &nodes[id as usize];
                let event = match what {
                    0 => {
                        let lane = Lane::ALL[*lane];
                        let deps = back.iter().filter(|back| **back <= id).map(|back| id - back);
                        let mut spec = NodeSpec::new(id, (), lane).after(deps);
                        spec.acquire = nodes[id as usize].2 > 5;
                        if lane == Lane::Comm {
                            spec.sequence = Some(sequence);
                            sequence += 1;
                        }
                        Event::Add(vec![spec])
                    }
                    1 => Event::Granted(id),
                    _ => {
                        if let Some((start, end)) = spans.remove(&id) {
                            account.busy(id, start, end);
                        }
                        account.done(now, id);
                        Event::Done(id)
                    }
                };
                let mut commands = Vec::new();
                engine.on(now, event, &mut commands).unwrap();
                for command in commands {
                    match command {
                        Command::Acquire(id) => {
                            future.push(Reverse((now + nodes[id as usize].2, 1, id)));
                        }
                        Command::Issue(id, (), lane, cause) => {
                            account.issued(id, lane, cause);
                            let (takes, hand_over) = (nodes[id as usize].3, nodes[id as usize].4);
                            if lane != Lane::Compute {
                                future.push(Reverse((now + takes, 2, id)));
                                continue;
                            }
                            let start = free_at.max(now + hand_over);
                            free_at = start + takes;
                            busy += takes;
                            spans.insert(id, (start, free_at));
                            future.push(Reverse((free_at + late, 2, id)));
                        }
                        Command::Drained => {}
                    }
                }
            }
            prop_assert!(engine.is_idle());
            let report = account.finish(now);
            let parts = report.busy + report.exposed_total() + report.overhead;
            prop_assert_eq!(parts, report.wall);
            prop_assert_eq!((report.wall, report.busy), (now, busy));
            for lane in Lane::ALL {
                prop_assert!(report.used[lane.index()] <= report.wall);
            }
        }
    }
}
