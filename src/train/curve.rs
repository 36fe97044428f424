//! The loss curve of a run as an SVG picture.

use crate::base::file::write_whole;
use crate::base::{Error, Result};
use crate::train::metrics::StepMetrics;
use plotters::prelude::*;
use std::path::Path;

const SIZE: (u32, u32) = (960, 540);
/// More points than this cannot be told apart in the picture.
const MOST_POINTS: usize = 1500;
const TRAIN: RGBColor = RGBColor(31, 119, 180);
const VALIDATION: RGBColor = RGBColor(214, 39, 40);
const GRID: RGBColor = RGBColor(228, 228, 228);

/// A step and a loss.
type Point = (f64, f64);

/// Writes the curve of `metrics` to `path`, as a whole: each step's loss, the smoothed loss, and
/// the validation losses. Values that are not finite are left out.
///
/// # Errors
/// When drawing fails or the file cannot be written.
pub fn write(path: &Path, title: &str, metrics: &[StepMetrics]) -> Result<()> {
    write_whole(path, draw(title, metrics)?.as_bytes())
}

/// The curve as SVG text.
///
/// # Errors
/// When drawing fails.
pub fn draw(title: &str, metrics: &[StepMetrics]) -> Result<String> {
    let finite = |value: f64, step| value.is_finite().then_some((step as f64, value));
    let train: Vec<Point> = metrics.iter().filter_map(|m| finite(m.lm_loss, m.step)).collect();
    let validation: Vec<Point> =
        metrics.iter().filter_map(|m| finite(m.validation_loss?, m.step)).collect();
    let mut svg = String::new();
    draw_into(&mut svg, title, &train, &validation)
        .map_err(|e| Error::bug(format!("drawing the loss curve: {e}")))?;
    Ok(svg)
}

fn draw_into(
    svg: &mut String,
    title: &str,
    train: &[Point],
    validation: &[Point],
) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let (x, y) = ranges(train.iter().chain(validation));
    let mut chart = ChartBuilder::on(&root)
        .caption(title, ("sans-serif", 22))
        .margin(14)
        .x_label_area_size(44)
        .y_label_area_size(62)
        .build_cartesian_2d(x, y)?;
    chart
        .configure_mesh()
        .bold_line_style(GRID)
        .light_line_style(WHITE)
        .axis_style(BLACK.mix(0.6))
        .label_style(("sans-serif", 14))
        .axis_desc_style(("sans-serif", 16))
        .x_desc("step")
        .y_desc("loss (nats a token)")
        .x_label_formatter(&|x| format!("{x:.0}"))
        .y_label_formatter(&|y| format!("{y:.2}"))
        .draw()?;

    let faint = TRAIN.mix(0.28).stroke_width(1);
    chart
        .draw_series(LineSeries::new(thin_out(train), faint))?
        .label("train, each step")
        .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], faint));
    let strong = TRAIN.stroke_width(2);
    chart
        .draw_series(LineSeries::new(thin_out(&smooth(train)), strong))?
        .label("train, smoothed")
        .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], strong));
    if !validation.is_empty() {
        let line = VALIDATION.stroke_width(1);
        chart.draw_series(LineSeries::new(validation.iter().copied(), line))?;
        chart
            .draw_series(validation.iter().map(|&at| Circle::new(at, 4, VALIDATION.filled())))?
            .label("validation")
            .legend(|(x, y)| Circle::new((x + 9, y), 4, VALIDATION.filled()));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .margin(12)
        .label_font(("sans-serif", 15))
        .background_style(WHITE.mix(0.85))
        .border_style(GRID)
        .draw()?;
    root.present()?;
    Ok(())
}

/// The ranges of the axes, with some room, never empty.
fn ranges<'a>(
    points: impl Iterator<Item = &'a Point>,
) -> (std::ops::Range<f64>, std::ops::Range<f64>) {
    let (mut last, mut low, mut high) = (1.0f64, f64::INFINITY, f64::NEG_INFINITY);
    for &(x, y) in points {
        last = last.max(x);
        low = low.min(y);
        high = high.max(y);
    }
    if low > high {
        (low, high) = (0.0, 1.0);
    }
    let room = ((high - low) * 0.06).max(1e-3 * high.abs().max(1.0));
    (0.0..last.max(2.0), low - room..high + room)
}

/// An exponential mean over about a fiftieth of the steps, unbiased at its start.
fn smooth(points: &[Point]) -> Vec<Point> {
    let keep = 1.0 - 1.0 / (points.len() as f64 / 50.0).clamp(1.0, 200.0);
    let (mut sum, mut weight) = (0.0, 0.0);
    points
        .iter()
        .map(|&(x, y)| {
            sum = keep * sum + y;
            weight = keep * weight + 1.0;
            (x, sum / weight)
        })
        .collect()
}

/// At most [`MOST_POINTS`] points: of each stretch its lowest and highest, so that a spike stays
/// one.
fn thin_out(points: &[Point]) -> Vec<Point> {
    if points.len() <= MOST_POINTS {
        return points.to_vec();
    }
    let stretch = (2 * points.len()).div_ceil(MOST_POINTS);
    let mut out = Vec::with_capacity(MOST_POINTS + 2);
    for chunk in points.chunks(stretch) {
        let by_loss = |a: &&Point, b: &&Point| a.1.total_cmp(&b.1);
        let (low, high) = (chunk.iter().min_by(by_loss), chunk.iter().max_by(by_loss));
        let mut pair: Vec<Point> = low.into_iter().chain(high).copied().collect();
        pair.sort_by(|a, b| a.0.total_cmp(&b.0));
        pair.dedup();
        out.extend(pair);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(steps: u64) -> Vec<StepMetrics> {
        (1..=steps)
            .map(|step| {
                let t = step as f64;
                let noise = (t * 12.9898).sin() * 0.25;
                let lm_loss = 2.0 + 5.0 * (-t / 60.0).exp() + noise;
                let validation_loss = (step % 40 == 0).then_some(lm_loss - noise + 0.1);
                StepMetrics { step, lm_loss, validation_loss, ..Default::default() }
            })
            .collect()
    }

    #[test]
    fn the_picture_has_lines_axes_and_a_title() {
        let svg = draw("demo <1>", &run(300)).unwrap();
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
        for text in
            ["demo &lt;1&gt;", "step", "loss (nats a token)", "train, smoothed", "validation"]
        {
            assert!(svg.contains(text), "{text}");
        }
        assert!(svg.matches("<polyline").count() >= 3 && svg.matches("<circle").count() >= 7);
    }

    #[test]
    fn few_many_and_broken_steps_can_be_drawn() {
        draw("none", &[]).unwrap();
        draw("one", &run(1)).unwrap();
        let mut bad = run(3);
        bad[1].lm_loss = f64::NAN;
        draw("not finite", &bad).unwrap();
        let long = draw("long", &run(100_000)).unwrap();
        assert!(long.len() < 300_000, "{}", long.len());
    }

    #[test]
    fn thinning_keeps_the_spikes() {
        let mut points: Vec<Point> = (0..50_000).map(|i| (i as f64, 1.0)).collect();
        points[33_333].1 = 9.0;
        let thin = thin_out(&points);
        assert!(thin.len() <= MOST_POINTS + 2);
        assert!(thin.contains(&(33_333.0, 9.0)));
    }
}
