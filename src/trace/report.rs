//! A timeline in numbers: how busy each lane was, and what the executor waited for.
//!
//! For each rank busy + Σ exposed + overhead = wall: `compute` is the executor's lane, exposed
//! are the recorded waits, overhead is what is left.

use super::recorder::{EXPOSED, Span, Timeline};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;

/// The executor's lane.
pub const EXECUTOR: &str = "compute";

/// One lane of one rank.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LaneReport {
    pub rank: u16,
    pub lane: String,
    pub spans: u64,
    /// Seconds in which at least one span ran.
    pub busy_seconds: f64,
    /// `busy_seconds` of the wall time, 0 to 1.
    pub utilisation: f64,
    /// Spans at a time, on average while busy: how deep the io queue was.
    pub depth: f64,
    /// The longest span.
    pub longest: String,
    pub longest_seconds: f64,
}

/// What one rank's executor waited for in one lane.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ExposedReport {
    pub rank: u16,
    pub cause: String,
    pub seconds: f64,
    /// `seconds` of the wall time, 0 to 1.
    pub share: f64,
    pub waits: u64,
}

/// The figures of a timeline.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Report {
    /// Steps that the timeline holds.
    pub steps: u64,
    /// From the first start to the last end.
    pub wall_seconds: f64,
    pub lanes: Vec<LaneReport>,
    pub exposed: Vec<ExposedReport>,
    /// Of each rank: wall minus the executor's busy and exposed seconds.
    pub overhead_seconds: Vec<f64>,
    pub dropped_spans: u64,
}

impl Report {
    pub fn of(timeline: &Timeline) -> Self {
        let spans = &timeline.spans;
        let start = spans.iter().map(|s| s.start).min().unwrap_or(0);
        let end = spans.iter().map(|s| s.end).max().unwrap_or(0);
        let wall = seconds(end - start);
        let share = |s: f64| if wall > 0.0 { s / wall } else { 0.0 };
        let mut steps: Vec<u64> = spans.iter().map(|s| s.step).collect();
        steps.sort_unstable();
        steps.dedup();

        let mut by_lane: BTreeMap<(u16, &str), Vec<&Span>> = BTreeMap::new();
        let mut by_cause: BTreeMap<(u16, &str), (u64, u64)> = BTreeMap::new();
        let mut ranks: BTreeMap<u16, f64> = BTreeMap::new();
        for span in spans {
            ranks.entry(span.rank).or_insert(wall);
            if span.lane == EXPOSED {
                let entry = by_cause.entry((span.rank, &span.name)).or_default();
                *entry = (entry.0 + span.nanos(), entry.1 + 1);
            } else {
                by_lane.entry((span.rank, &span.lane)).or_default().push(span);
            }
        }
        let lanes: Vec<LaneReport> = by_lane
            .into_iter()
            .map(|((rank, lane), spans)| {
                let busy = seconds(union(&spans));
                let total = seconds(spans.iter().map(|s| s.nanos()).sum());
                let longest = spans.iter().max_by_key(|s| s.nanos());
                LaneReport {
                    rank,
                    lane: lane.to_owned(),
                    spans: spans.len() as u64,
                    busy_seconds: busy,
                    utilisation: share(busy),
                    depth: if busy > 0.0 { total / busy } else { 0.0 },
                    longest: longest.map(|s| s.name.to_string()).unwrap_or_default(),
                    longest_seconds: longest.map_or(0.0, |s| seconds(s.nanos())),
                }
            })
            .collect();
        let exposed: Vec<ExposedReport> = by_cause
            .into_iter()
            .map(|((rank, cause), (nanos, waits))| ExposedReport {
                rank,
                cause: cause.to_owned(),
                seconds: seconds(nanos),
                share: share(seconds(nanos)),
                waits,
            })
            .collect();
        for lane in lanes.iter().filter(|l| l.lane == EXECUTOR) {
            ranks.entry(lane.rank).and_modify(|rest| *rest -= lane.busy_seconds);
        }
        for wait in &exposed {
            ranks.entry(wait.rank).and_modify(|rest| *rest -= wait.seconds);
        }
        Self {
            steps: steps.len() as u64,
            wall_seconds: wall,
            lanes,
            exposed,
            overhead_seconds: ranks.into_values().collect(),
            dropped_spans: timeline.dropped,
        }
    }

    /// Seconds that the executors waited, by cause, all ranks together.
    pub fn exposed_by_cause(&self) -> BTreeMap<String, f64> {
        let mut all = BTreeMap::new();
        for wait in &self.exposed {
            *all.entry(wait.cause.clone()).or_default() += wait.seconds;
        }
        all
    }
}

fn seconds(nanos: u64) -> f64 {
    nanos as f64 * 1e-9
}

/// Nanoseconds that at least one of `spans` covers; they are ordered by start.
fn union(spans: &[&Span]) -> u64 {
    let (mut covered, mut until) = (0, 0);
    for span in spans {
        covered += span.end.saturating_sub(span.start.max(until));
        until = until.max(span.end);
    }
    covered
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} steps in {:.3} s", self.steps, self.wall_seconds)?;
        let many = self.overhead_seconds.len() > 1;
        let rank = |rank: u16| if many { format!("rank {rank} ") } else { String::new() };
        writeln!(
            f,
            "  {:<18} {:>9} {:>6} {:>8} {:>6}  longest",
            "lane", "busy s", "share", "spans", "depth"
        )?;
        for lane in &self.lanes {
            writeln!(
                f,
                "  {:<18} {:>9.3} {:>5.1}% {:>8} {:>6.1}  {} ({:.2} ms)",
                rank(lane.rank) + &lane.lane,
                lane.busy_seconds,
                lane.utilisation * 100.0,
                lane.spans,
                lane.depth,
                lane.longest,
                lane.longest_seconds * 1e3,
            )?;
        }
        let wall = self.wall_seconds.max(f64::MIN_POSITIVE);
        writeln!(f, "  {:<18} {:>9} {:>6} {:>8}", "executor waited", "s", "share", "waits")?;
        for wait in &self.exposed {
            let (seconds, share) = (wait.seconds, wait.share * 100.0);
            let name = format!("{}for {}", rank(wait.rank), wait.cause);
            writeln!(f, "  {name:<18} {seconds:>9.3} {share:>5.1}% {:>8}", wait.waits)?;
        }
        for (i, seconds) in self.overhead_seconds.iter().enumerate() {
            let name = format!("{}overhead", rank(i as u16));
            writeln!(f, "  {name:<18} {seconds:>9.3} {:>5.1}%", seconds / wall * 100.0)?;
        }
        if self.dropped_spans > 0 {
            writeln!(
                f,
                "  {} spans fell out of the ring: raise trace.max_events",
                self.dropped_spans
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timeline() -> Timeline {
        let ms = 1_000_000;
        let mut spans = vec![
            Span::new("compute", "dense", 0, 40 * ms),
            Span::new("io", "read a", 10 * ms, 60 * ms),
            Span::new("io", "read b", 20 * ms, 70 * ms),
            Span::new(EXPOSED, "io", 40 * ms, 70 * ms),
            Span::new("compute", "expert", 71 * ms, 100 * ms),
        ];
        for span in &mut spans {
            span.step = 1;
        }
        Timeline { spans, dropped: 0 }
    }

    #[test]
    fn busy_exposed_and_overhead_are_the_wall() {
        let report = Report::of(&timeline());
        assert_eq!(report.steps, 1);
        let lane = |name: &str| report.lanes.iter().find(|l| l.lane == name).unwrap();
        assert!((lane("compute").busy_seconds - 0.069).abs() < 1e-9);
        // Overlapping reads count once, and show as depth.
        assert!((lane("io").busy_seconds - 0.060).abs() < 1e-9);
        assert!((lane("io").depth - 100.0 / 60.0).abs() < 1e-9);
        assert!((report.exposed_by_cause()["io"] - 0.030).abs() < 1e-9);
        assert!((report.overhead_seconds[0] - 0.001).abs() < 1e-9);
    }

    #[test]
    fn the_table_reads_well() {
        insta::assert_snapshot!(Report::of(&timeline()).to_string(), @r"
        1 steps in 0.100 s
          lane                  busy s  share    spans  depth  longest
          compute                0.069  69.0%        2    1.0  dense (40.00 ms)
          io                     0.060  60.0%        2    1.7  read b (50.00 ms)
          executor waited            s  share    waits
          for io                 0.030  30.0%        1
          overhead               0.001   1.0%
        ");
    }
}
