//! The last steps of a timeline as one SVG picture: what each lane did, and what the executor
//! waited for. For the eye and for reports; `trace.json` has every span.
//!
//! Every column of the picture is a stretch of time. The executor's row shows the kind of work
//! that filled most of it, the row below what it waited for; reads and writes are drawn as high
//! as they were deep.

use super::recorder::{EXPOSED, Span, Timeline};
use super::report::{EXECUTOR, Report};
use crate::base::clock::Nanos;
use crate::base::{Error, Result, Step};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use std::collections::{BTreeMap, BTreeSet};

const COLUMNS: usize = 960;
const LEFT: i32 = 110;
const RIGHT: i32 = 20;
const TOP: i32 = 66;
const ROW: i32 = 46;
const GAP: i32 = 10;
const INK: RGBColor = RGBColor(51, 51, 51);
const PAPER: RGBColor = RGBColor(242, 242, 242);
const WAITED: RGBColor = RGBColor(214, 39, 40);
/// Kinds of work (the start of a span's name) in the order of the legend.
const KINDS: [(&str, RGBColor); 9] = [
    ("dense grad", RGBColor(23, 80, 128)),
    ("dense", RGBColor(120, 170, 214)),
    ("gate", RGBColor(148, 103, 189)),
    ("expert grad", RGBColor(200, 100, 10)),
    ("expert", RGBColor(255, 170, 80)),
    ("head", RGBColor(140, 86, 75)),
    ("update", RGBColor(44, 160, 44)),
    ("read", RGBColor(127, 127, 127)),
    ("write", RGBColor(60, 60, 60)),
];
const OTHER: (&str, RGBColor) = ("other", RGBColor(188, 189, 34));

/// Draws the last `steps` steps of `timeline`.
///
/// # Errors
/// Bug when drawing fails.
pub fn draw(title: &str, timeline: &Timeline, steps: u64) -> Result<String> {
    let shown = last_steps(timeline, steps);
    let mut svg = String::new();
    draw_into(&mut svg, title, &shown)
        .map_err(|e| Error::bug(format!("drawing the timeline: {e}")))?;
    Ok(svg)
}

/// The spans of the last `steps` steps that have work on the executor.
fn last_steps(timeline: &Timeline, steps: u64) -> Timeline {
    let worked = timeline.spans.iter().filter(|span| span.lane == EXECUTOR);
    let all: BTreeSet<Step> = worked.map(|span| span.step).collect();
    let first = all
        .iter()
        .nth_back(steps.clamp(1, all.len().max(1) as u64) as usize - 1)
        .copied()
        .unwrap_or(0);
    let mut of_steps = timeline.spans.iter().filter(|s| s.lane == EXECUTOR && s.step >= first);
    let Some(begin) = of_steps.next().map(|span| span.start) else { return Timeline::default() };
    let end = of_steps.map(|span| span.end).max().unwrap_or(begin);
    // Waits and transfers belong to a stretch of time, not to a step.
    let spans = timeline.spans.iter().filter(|span| span.end > begin && span.start < end);
    let cut =
        |span: &Span| Span { start: span.start.max(begin), end: span.end.min(end), ..span.clone() };
    Timeline { spans: spans.map(cut).collect(), dropped: timeline.dropped }
}

fn kind_of(name: &str) -> (&'static str, RGBColor) {
    KINDS.into_iter().find(|(kind, _)| name.starts_with(kind)).unwrap_or(OTHER)
}

/// A row of the picture.
struct Row<'a> {
    label: String,
    spans: Vec<&'a Span>,
    /// Reads and writes overlap: drawn by depth.
    deep: bool,
    waited: bool,
}

fn rows(spans: &[Span]) -> Vec<Row<'_>> {
    let many = spans.iter().any(|span| span.rank > 0);
    // (rank, place) orders the rows: executor, what it waited for, then the other lanes.
    let mut found: BTreeMap<(u16, u8, String), Vec<&Span>> = BTreeMap::new();
    for span in spans {
        let (place, lane) = match span.lane.as_ref() {
            EXECUTOR => (0, EXECUTOR.to_owned()),
            EXPOSED => (1, "waited for".to_owned()),
            "io" if span.name.starts_with("write") => (3, "writes".to_owned()),
            "io" if span.name.starts_with("read") => (2, "reads".to_owned()),
            // What the io lane does besides blocks (batches, commits) is not worth a row.
            "control" | "io" => continue,
            other => (4, other.to_owned()),
        };
        found.entry((span.rank, place, lane)).or_default().push(span);
    }
    let label = |rank: u16, lane: String| if many { format!("{rank} {lane}") } else { lane };
    let row = |((rank, place, lane), spans): ((u16, u8, String), Vec<_>)| Row {
        label: label(rank, lane),
        spans,
        deep: place > 1,
        waited: place == 1,
    };
    found.into_iter().map(row).collect()
}

/// Time that each kind fills of each column, in nanoseconds.
type Columns = Vec<BTreeMap<&'static str, (Nanos, RGBColor)>>;

fn columns(row: &Row<'_>, begin: Nanos, width: Nanos) -> Columns {
    let mut all: Columns = vec![BTreeMap::new(); COLUMNS];
    for span in &row.spans {
        let (kind, colour) = if row.waited { (EXPOSED, WAITED) } else { kind_of(&span.name) };
        let first = ((span.start - begin) / width) as usize;
        let last = (((span.end - begin) / width) as usize).min(COLUMNS - 1);
        for (at, column) in all.iter_mut().enumerate().take(last + 1).skip(first) {
            let from = begin + at as Nanos * width;
            let covered = span.end.min(from + width).saturating_sub(span.start.max(from));
            column.entry(kind).or_insert((0, colour)).0 += covered;
        }
    }
    all
}

/// Neighbouring columns that look the same become one rectangle: (first, last, height, colour).
fn bars(columns: &Columns, row: &Row<'_>, width: Nanos) -> Vec<(usize, usize, i32, RGBColor)> {
    let total = |c: &BTreeMap<&str, (Nanos, RGBColor)>| c.values().map(|v| v.0).sum::<Nanos>();
    let deepest = columns.iter().map(total).max().unwrap_or(0).max(width);
    let mut bars: Vec<(usize, usize, i32, RGBColor)> = Vec::new();
    for (at, column) in columns.iter().enumerate() {
        let Some((_, colour)) = column.values().max_by_key(|(time, _)| *time) else { continue };
        let full = if row.deep { deepest } else { width };
        let height = (total(column).min(full) * ROW as Nanos).div_ceil(full) as i32;
        match bars.last_mut() {
            _ if height == 0 => {}
            Some(bar) if (bar.1 + 1, bar.2, bar.3) == (at, height, *colour) => bar.1 = at,
            _ => bars.push((at, at, height, *colour)),
        }
    }
    bars
}

fn draw_into(
    svg: &mut String,
    title: &str,
    timeline: &Timeline,
) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let rows = rows(&timeline.spans);
    let height = TOP + rows.len() as i32 * (ROW + GAP) + 56;
    let size = ((LEFT + COLUMNS as i32 + RIGHT) as u32, height as u32);
    let root = SVGBackend::with_string(svg, size).into_drawing_area();
    root.fill(&WHITE)?;
    let text = |size: i32| ("sans-serif", size).into_font().color(&INK);
    root.draw(&Text::new(title.to_owned(), (LEFT, 12), text(20)))?;
    root.draw(&Text::new(figures(&Report::of(timeline)), (LEFT, 38), text(14)))?;
    let begin = timeline.spans.iter().map(|s| s.start).min().unwrap_or(0);
    let end = timeline.spans.iter().map(|s| s.end).max().unwrap_or(begin + 1);
    let width = (end - begin).div_ceil(COLUMNS as Nanos).max(1);
    let right = text(14).pos(Pos::new(HPos::Right, VPos::Center));
    for (nth, row) in rows.iter().enumerate() {
        let top = TOP + nth as i32 * (ROW + GAP);
        let back = [(LEFT, top), (LEFT + COLUMNS as i32, top + ROW)];
        root.draw(&Rectangle::new(back, PAPER.filled()))?;
        root.draw(&Text::new(row.label.clone(), (LEFT - 8, top + ROW / 2), right.clone()))?;
        for (first, last, tall, colour) in bars(&columns(row, begin, width), row, width) {
            let (x0, x1) = (LEFT + first as i32, LEFT + last as i32 + 1);
            let bar = [(x0, top + ROW - tall), (x1, top + ROW)];
            root.draw(&Rectangle::new(bar, colour.filled()))?;
        }
    }
    let foot = TOP + rows.len() as i32 * (ROW + GAP);
    let seconds = (end - begin) as f64 * 1e-9;
    for tenth in 0..=5 {
        let x = LEFT + COLUMNS as i32 * tenth / 5;
        let label = format!("{:.3} s", seconds * f64::from(tenth) / 5.0);
        let style = text(12).pos(Pos::new(HPos::Center, VPos::Top));
        root.draw(&Text::new(label, (x, foot - GAP + 4), style))?;
    }
    let mut x = LEFT;
    for (kind, colour) in KINDS.into_iter().chain([OTHER, ("waited", WAITED)]) {
        let y = foot + 26;
        root.draw(&Rectangle::new([(x, y), (x + 12, y + 12)], colour.filled()))?;
        root.draw(&Text::new(kind.to_owned(), (x + 16, y), text(13)))?;
        x += 34 + 7 * kind.len() as i32;
    }
    root.present()?;
    Ok(())
}

/// One line: how the executors' time divides.
fn figures(report: &Report) -> String {
    let ranks = report.overhead_seconds.len().max(1) as f64;
    let whole = (report.wall_seconds * ranks).max(f64::MIN_POSITIVE);
    let percent = |seconds: f64| format!("{:.1}%", 100.0 * seconds / whole);
    let busy = report.lanes.iter().filter(|lane| lane.lane == EXECUTOR).map(|l| l.busy_seconds);
    let mut line = format!("{:.3} s: executor busy {}", report.wall_seconds, percent(busy.sum()));
    for (cause, seconds) in report.exposed_by_cause() {
        line += &format!(", waited for {cause} {}", percent(seconds));
    }
    line + &format!(", overhead {}", percent(report.overhead_seconds.iter().sum()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(lane: &'static str, name: &'static str, step: Step, start: Nanos, end: Nanos) -> Span {
        Span { step, ..Span::new(lane, name, start, end) }
    }

    fn timeline() -> Timeline {
        let spans = vec![
            span("compute", "dense 0.0", 1, 0, 1_000_000),
            span("compute", "dense 0.0", 2, 1_000_000, 2_000_000),
            span("io", "read w0.1", 0, 900_000, 2_500_000),
            span("io", "read w0.2", 0, 1_500_000, 2_500_000),
            span(EXPOSED, "io", 0, 2_000_000, 2_500_000),
            span("compute", "expert 0/1", 2, 2_500_000, 4_000_000),
        ];
        Timeline { spans, dropped: 0 }
    }

    #[test]
    fn the_last_steps_are_cut_out_and_named() {
        let last = last_steps(&timeline(), 1);
        assert_eq!(last.spans.len(), 5);
        assert_eq!(last.spans.iter().map(|s| s.start).min(), Some(1_000_000));
        let svg = draw("run <1>", &timeline(), 1).unwrap();
        for text in ["run &lt;1&gt;", "0.003 s", "waited for", "busy 83.3%", "io 16.7%", "reads"] {
            assert!(svg.contains(text), "{text}\n{svg}");
        }
    }

    #[test]
    fn a_column_shows_what_filled_it_and_how_deep() {
        let shown = last_steps(&timeline(), 1);
        let rows = rows(&shown.spans);
        let width = 3_000_000u64.div_ceil(COLUMNS as u64);
        let drawn = |row: &Row<'_>| bars(&columns(row, 1_000_000, width), row, width);
        let executor = drawn(&rows[0]);
        // Dense, then a gap of a sixth, then the expert.
        assert_eq!((executor[0].0, executor[0].3), (0, kind_of("dense 0").1));
        assert_eq!(executor.last().map(|bar| (bar.1, bar.3)), Some((959, kind_of("expert").1)));
        assert!(!executor.iter().any(|bar| bar.0 > 322 && bar.1 < 478));
        let reads = drawn(&rows[2]);
        let tallest = reads.iter().max_by_key(|bar| bar.2).unwrap();
        assert_eq!((tallest.2, reads[0].2), (ROW, ROW / 2));
    }

    #[test]
    fn nothing_recorded_is_a_picture_too() {
        assert!(draw("none", &Timeline::default(), 2).unwrap().starts_with("<svg"));
    }
}
