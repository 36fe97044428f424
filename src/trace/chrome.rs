//! A timeline as Chrome trace JSON, which chrome://tracing and ui.perfetto.dev open.
//!
//! A rank is a process, a lane a thread; where spans of a lane overlap in time (outstanding
//! reads) the lane gets as many threads as it takes. Arrows lead from what a span waited for to
//! the span. (Trace Event Format: complete events X, flow events s and f, metadata M.)

use super::recorder::{EXPOSED, Span, Timeline};
use crate::base::{Error, Result};
use serde::Serialize;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

/// Lanes in the order in which they are shown; others follow by name.
const ORDER: [&str; 7] = ["compute", EXPOSED, "io", "copy", "comm", "optim", "control"];

/// The thread numbers of a lane start at a multiple of this.
const LANE_TRACKS: u64 = 1000;

#[derive(Serialize)]
struct Event<'a> {
    ph: &'static str,
    name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    cat: Option<&'a str>,
    pid: u16,
    tid: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    ts: Option<Micros>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dur: Option<Micros>,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bp: Option<&'static str>,
    #[serde(skip_serializing_if = "Map::is_empty")]
    args: Map<String, Value>,
}

/// Nanoseconds, written as the microseconds that the format wants, to the last digit.
struct Micros(u64);

impl Serialize for Micros {
    fn serialize<S: serde::Serializer>(&self, s: S) -> std::result::Result<S::Ok, S::Error> {
        if self.0.is_multiple_of(1000) {
            return s.serialize_u64(self.0 / 1000);
        }
        s.serialize_f64(self.0 as f64 / 1000.0)
    }
}

/// Writes `timeline` to `path`, as a whole: an interrupted write leaves the earlier file.
///
/// # Errors
/// When the file cannot be written.
pub fn write(timeline: &Timeline, path: &Path) -> Result<()> {
    let writing = |e| Error::io(format!("writing timeline {}", path.display()), e);
    let beside = path.with_extension("json.tmp");
    let file = File::create(&beside).map_err(writing)?;
    let mut out = BufWriter::with_capacity(1 << 20, file);
    write_to(timeline, &mut out).and_then(|()| out.flush()).map_err(writing)?;
    std::fs::rename(&beside, path).map_err(writing)
}

/// Writes `timeline` as JSON, one event a line.
///
/// # Errors
/// When `out` does.
pub fn write_to(timeline: &Timeline, out: &mut impl Write) -> std::io::Result<()> {
    let tracks = assign_tracks(&timeline.spans);
    out.write_all(b"{\"displayTimeUnit\":\"ms\",\"otherData\":")?;
    serde_json::to_writer(&mut *out, &json!({"dropped_spans": timeline.dropped}))?;
    out.write_all(b",\"traceEvents\":[")?;
    let mut events = Events { out, first: true };
    name_tracks(&timeline.spans, &tracks, &mut events)?;

    // Where each id ends: an arrow starts there. An id is a node of a rank, used once.
    let mut ends: HashMap<(u16, u64), usize> = HashMap::new();
    for (i, span) in timeline.spans.iter().enumerate() {
        if span.id != 0 {
            ends.insert((span.rank, span.id), i);
        }
    }
    let mut arrows = 0;
    for (span, &tid) in timeline.spans.iter().zip(&tracks) {
        let mut args: Map<String, Value> =
            span.args.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect();
        args.insert("step".to_owned(), json!(span.step));
        events.push(&Event {
            ph: "X",
            name: &span.name,
            cat: Some(&span.lane),
            pid: span.rank,
            tid,
            ts: Some(Micros(span.start)),
            dur: Some(Micros(span.nanos())),
            id: None,
            bp: None,
            args,
        })?;
        for before in &span.after {
            let Some(&from) = ends.get(&(span.rank, *before)) else { continue };
            let source = &timeline.spans[from];
            arrows += 1;
            // A start lies inside its span: the end itself belongs to what comes after.
            let start = source.end.saturating_sub(1).max(source.start);
            for (ph, tid, at, bp) in
                [("s", tracks[from], start, None), ("f", tid, span.start.max(start), Some("e"))]
            {
                events.push(&Event {
                    ph,
                    name: "enables",
                    cat: Some("flow"),
                    pid: span.rank,
                    tid,
                    ts: Some(Micros(at)),
                    dur: None,
                    id: Some(arrows),
                    bp,
                    args: Map::new(),
                })?;
            }
        }
    }
    out.write_all(b"\n]}\n")
}

struct Events<'a, W> {
    out: &'a mut W,
    first: bool,
}

impl<W: Write> Events<'_, W> {
    fn push(&mut self, event: &Event<'_>) -> std::io::Result<()> {
        self.out.write_all(if std::mem::take(&mut self.first) { b"\n" } else { b",\n" })?;
        serde_json::to_writer(&mut *self.out, event)?;
        Ok(())
    }
}

/// The position of a lane among all lanes of the timeline.
fn lane_numbers(spans: &[Span]) -> BTreeMap<&str, u64> {
    let mut names: Vec<&str> = spans.iter().map(|span| span.lane.as_ref()).collect();
    names.sort_unstable();
    names.dedup();
    let rank = |name: &str| ORDER.iter().position(|o| *o == name).unwrap_or(ORDER.len());
    names.sort_by_key(|name| (rank(name), *name));
    names.into_iter().zip(1..).collect()
}

/// The thread number of each span, so that no two spans of a thread overlap. `spans` are
/// ordered by start.
fn assign_tracks(spans: &[Span]) -> Vec<u64> {
    let lanes = lane_numbers(spans);
    // Of each rank and lane, when each of its threads is free again.
    let mut free: HashMap<(u16, &str), Vec<u64>> = HashMap::new();
    spans
        .iter()
        .map(|span| {
            let tracks = free.entry((span.rank, &span.lane)).or_default();
            let track = tracks.iter().position(|&end| end <= span.start).unwrap_or_else(|| {
                tracks.push(0);
                tracks.len() - 1
            });
            tracks[track] = span.end;
            lanes[span.lane.as_ref()] * LANE_TRACKS + track as u64
        })
        .collect()
}

fn name_tracks<W: Write>(
    spans: &[Span],
    tracks: &[u64],
    events: &mut Events<'_, W>,
) -> std::io::Result<()> {
    let mut named: BTreeMap<(u16, u64), &str> = BTreeMap::new();
    for (span, &tid) in spans.iter().zip(tracks) {
        named.entry((span.rank, tid)).or_insert(&span.lane);
    }
    let mut meta = |name, pid, tid, args: Value| {
        let Value::Object(args) = args else { return Ok(()) };
        let event = Event {
            ph: "M",
            name,
            cat: None,
            pid,
            tid,
            ts: None,
            dur: None,
            id: None,
            bp: None,
            args,
        };
        events.push(&event)
    };
    let mut ranks: Vec<u16> = named.keys().map(|(rank, _)| *rank).collect();
    ranks.dedup();
    for rank in ranks {
        meta("process_name", rank, 0, json!({"name": format!("rank {rank}")}))?;
    }
    for ((rank, tid), lane) in named {
        let track = tid % LANE_TRACKS;
        let name = if track == 0 { lane.to_owned() } else { format!("{lane} {}", track + 1) };
        meta("thread_name", rank, tid, json!({"name": name}))?;
        meta("thread_sort_index", rank, tid, json!({"sort_index": tid}))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(spans: Vec<Span>) -> Value {
        let mut out = Vec::new();
        write_to(&Timeline { spans, dropped: 3 }, &mut out).unwrap();
        serde_json::from_slice(&out).unwrap()
    }

    fn of_kind<'a>(trace: &'a Value, ph: &str) -> Vec<&'a Value> {
        trace["traceEvents"].as_array().unwrap().iter().filter(|e| e["ph"] == ph).collect()
    }

    #[test]
    fn spans_become_complete_events_with_arrows() {
        let trace = written(vec![
            Span::new("io", "read layer0.expert1", 1000, 4500).id(1).arg("bytes", 4096),
            Span::new("compute", "expert \"1\"", 4500, 9000).id(2).after(1).after(77),
        ]);
        assert_eq!(trace["otherData"]["dropped_spans"], 3);
        let complete = of_kind(&trace, "X");
        assert_eq!(complete.len(), 2);
        assert_eq!(complete[0]["ts"], 1);
        assert_eq!(complete[0]["dur"], 3.5);
        assert_eq!(complete[0]["args"]["bytes"], 4096);
        assert_eq!(complete[1]["name"], "expert \"1\"");
        let (starts, finishes) = (of_kind(&trace, "s"), of_kind(&trace, "f"));
        assert_eq!((starts.len(), finishes.len()), (1, 1));
        assert_eq!(starts[0]["id"], finishes[0]["id"]);
        assert_eq!(starts[0]["tid"], complete[0]["tid"]);
        assert_eq!(finishes[0]["tid"], complete[1]["tid"]);
        let names: Vec<&Value> =
            of_kind(&trace, "M").into_iter().filter(|e| e["name"] == "thread_name").collect();
        assert_eq!(names[0]["args"]["name"], "compute");
        assert_eq!(names[1]["args"]["name"], "io");
    }

    #[test]
    fn spans_that_overlap_lie_on_threads_of_their_own() {
        let spans = vec![
            Span::new("io", "a", 0, 10),
            Span::new("io", "b", 5, 20),
            Span::new("io", "c", 10, 15),
            Span::new("io", "d", 12, 13),
        ];
        assert_eq!(assign_tracks(&spans), [1000, 1001, 1000, 1002]);
    }

    #[test]
    fn an_empty_timeline_is_valid() {
        assert_eq!(written(Vec::new())["traceEvents"], json!([]));
    }
}
