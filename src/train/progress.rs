//! What the terminal shows of a run: a bar, or a line now and then where there is no terminal.

use crate::base::Step;
use crate::train::metrics::StepMetrics;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// How the progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Show {
    /// A bar that is redrawn in place.
    Bar,
    /// A line each time this much time has gone by.
    Lines(Duration),
    /// Nothing.
    Quiet,
}

impl Show {
    /// A bar on a terminal, else a line every 10 seconds.
    pub fn detect() -> Self {
        if std::io::stderr().is_terminal() {
            Self::Bar
        } else {
            Self::Lines(Duration::from_secs(10))
        }
    }
}

/// The progress of a run, written to stderr.
#[derive(Debug)]
pub struct TrainProgress {
    show: Show,
    bar: ProgressBar,
    total: Step,
    eta: Eta,
    last_line: Option<Instant>,
}

impl TrainProgress {
    /// A run of `total` steps of which `done` were taken before.
    pub fn new(show: Show, total: Step, done: Step) -> Self {
        let target = match show {
            Show::Bar => ProgressDrawTarget::stderr_with_hz(8),
            Show::Lines(_) | Show::Quiet => ProgressDrawTarget::hidden(),
        };
        let bar = ProgressBar::with_draw_target(Some(total), target).with_position(done);
        // The template is a constant; a wrong one would only lose the style.
        if let Ok(style) =
            ProgressStyle::with_template("{bar:24.cyan/white} {pos}/{len} {wide_msg}")
        {
            bar.set_style(style.progress_chars("━╸─"));
        }
        Self { show, bar, total, eta: Eta::default(), last_line: None }
    }

    /// Shows a finished step.
    pub fn step(&mut self, metrics: &StepMetrics) {
        self.eta.add(metrics.seconds);
        let left = self.eta.left(self.total.saturating_sub(metrics.step));
        let text = describe(metrics, left);
        match self.show {
            Show::Bar => {
                self.bar.set_position(metrics.step);
                self.bar.set_message(text);
            }
            Show::Lines(every) => {
                let due = self.last_line.is_none_or(|at| at.elapsed() >= every);
                if due || metrics.step >= self.total {
                    self.last_line = Some(Instant::now());
                    eprintln!("step {}/{} {text}", metrics.step, self.total);
                }
            }
            Show::Quiet => {}
        }
    }

    /// Shows how far a piece of preparation has come; `total` 0 is unknown.
    pub fn note(&mut self, doing: &str, done: u64, total: u64) {
        match self.show {
            Show::Bar => {
                self.bar.set_length(total.max(done));
                self.bar.set_position(done);
                self.bar.set_message(doing.to_owned());
            }
            Show::Lines(every) => {
                if self.last_line.is_none_or(|at| at.elapsed() >= every) {
                    self.last_line = Some(Instant::now());
                    eprintln!(
                        "{doing}: {done}{}",
                        if total > 0 { format!(" of {total}") } else { String::new() }
                    );
                }
            }
            Show::Quiet => {}
        }
    }

    /// Says something without tearing the bar.
    pub fn say(&self, text: &str) {
        match self.show {
            Show::Bar => self.bar.suspend(|| eprintln!("{text}")),
            Show::Lines(_) => eprintln!("{text}"),
            Show::Quiet => {}
        }
    }

    /// Leaves the bar as it stands.
    pub fn finish(&self) {
        self.bar.abandon();
    }
}

/// One line about a step: loss, speed, time left, what lanes did, what was waited for.
pub fn describe(metrics: &StepMetrics, left: Option<Duration>) -> String {
    let mut text = format!(
        "loss {:.4} · {} tok/s · {:.2} s/step",
        metrics.loss,
        metrics.tokens_per_second().round(),
        metrics.seconds
    );
    if let Some(validation) = metrics.validation_loss {
        text += &format!(" · val {validation:.4}");
    }
    if let Some(left) = left {
        text += &format!(" · {} left", human(left));
    }
    let lanes: Vec<String> = metrics
        .utilisation
        .iter()
        .map(|(lane, share)| format!("{lane} {:.0}%", share * 100.0))
        .collect();
    if !lanes.is_empty() {
        text += &format!(" · {}", lanes.join(" "));
    }
    if metrics.seconds > 0.0 {
        let share = metrics.exposed_io_seconds / metrics.seconds * 100.0;
        text += &format!(" · exposed io {share:.0}%");
    }
    if metrics.dropped_tokens > 0 {
        text += &format!(" · dropped {}", metrics.dropped_tokens);
    }
    if metrics.skipped {
        text += " · update skipped (not finite)";
    }
    text
}

/// A running mean of seconds a step, which follows a run that changes its speed.
#[derive(Debug, Clone, Copy, Default)]
struct Eta {
    mean: f64,
    steps: u64,
}

impl Eta {
    fn add(&mut self, seconds: f64) {
        self.steps += 1;
        let weight = 1.0 / self.steps.min(20) as f64;
        self.mean += (seconds - self.mean) * weight;
    }

    /// None until a step was seen.
    fn left(&self, steps: Step) -> Option<Duration> {
        if self.steps == 0 {
            return None;
        }
        Duration::try_from_secs_f64(self.mean * steps as f64).ok()
    }
}

fn human(duration: Duration) -> String {
    let s = duration.as_secs();
    match s {
        0..60 => format!("{s} s"),
        60..3600 => format!("{} min {:02} s", s / 60, s % 60),
        3600..86_400 => format!("{} h {:02} min", s / 3600, s / 60 % 60),
        _ => format!("{} d {:02} h", s / 86_400, s / 3600 % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_one_line() {
        let metrics = StepMetrics {
            step: 3,
            loss: 5.25,
            tokens: 2048,
            seconds: 2.0,
            exposed_io_seconds: 0.5,
            dropped_tokens: 4,
            utilisation: [("compute".to_owned(), 0.75), ("io".to_owned(), 0.5)].into(),
            ..Default::default()
        };
        insta::assert_snapshot!(
            describe(&metrics, Some(Duration::from_secs(3725))),
            @"loss 5.2500 · 1024 tok/s · 2.00 s/step · 1 h 02 min left · compute 75% io 50% · exposed io 25% · dropped 4"
        );
    }

    #[test]
    fn time_left_follows_the_speed() {
        let mut eta = Eta::default();
        assert_eq!(eta.left(10), None);
        eta.add(1.0);
        assert_eq!(eta.left(10), Some(Duration::from_secs(10)));
        for _ in 0..200 {
            eta.add(3.0);
        }
        let left = eta.left(10).unwrap().as_secs_f64();
        assert!((left - 30.0).abs() < 0.1, "{left}");
    }

    #[test]
    fn quiet_says_nothing_and_does_not_fail() {
        let mut progress = TrainProgress::new(Show::Quiet, 10, 2);
        progress.step(&StepMetrics { step: 3, ..Default::default() });
        progress.say("hello");
        progress.finish();
    }
}
