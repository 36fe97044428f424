//! The books of a run: what its ranks tell of a pass becomes a line of metrics, a line of progress,
//! and at the end the loss curve.

use super::curve;
use super::folder::RunFolder;
use super::launch::Ready;
use super::metrics::{self, MetricsWriter, StepMetrics};
use super::progress::{Show, TrainProgress};
use super::script::Rhythm;
use crate::actors::sink::PassReport;
use crate::base::{Result, Step};
use crate::graph::Lane;
use crate::graph::planner::Pass;
use std::path::Path;

/// The run's metrics as they come in.
pub(super) struct Book<'a> {
    pub folder: &'a RunFolder,
    writer: MetricsWriter,
    pub progress: TrainProgress,
    rhythm: Rhythm,
    ranks: usize,
    pub last: Step,
    pub step: Step,
    pub loss: f64,
    pub validation: Option<f64>,
    /// Reports of the current pass, one a rank as they come.
    pass: Vec<PassReport>,
    /// The last step as configured, after which the script evaluates: not after one that the run
    /// is stopped at.
    planned: Step,
    /// A step whose evaluation is under way.
    waiting: Option<StepMetrics>,
    evaluated: (f64, u64, u32),
    tokens: u64,
    seconds: f64,
    steps: u64,
}

impl<'a> Book<'a> {
    pub fn open(
        folder: &'a RunFolder,
        writer: MetricsWriter,
        ready: &Ready,
        rhythm: Rhythm,
        last: Step,
        show: Show,
        committed: Step,
    ) -> Self {
        Self {
            folder,
            writer,
            progress: TrainProgress::new(show, last, committed),
            rhythm,
            ranks: ready.load.ranks,
            last,
            step: committed,
            loss: f64::NAN,
            validation: None,
            pass: Vec::new(),
            planned: last,
            waiting: None,
            evaluated: (0.0, 0, 0),
            tokens: 0,
            seconds: 0.0,
            steps: 0,
        }
    }

    pub fn take(&mut self, _rank: usize, report: PassReport) -> Result<()> {
        // Ranks run in step: all reports of a pass come before any of the next but one.
        self.pass.push(report);
        let task = self.pass[0].task;
        let same = |r: &&PassReport| (r.task.step, r.task.pass) == (task.step, task.pass);
        if self.pass.iter().filter(same).count() < self.ranks {
            return Ok(());
        }
        let (now, later): (Vec<PassReport>, Vec<PassReport>) = std::mem::take(&mut self.pass)
            .into_iter()
            .partition(|r| (r.task.step, r.task.pass) == (task.step, task.pass));
        self.pass = later;
        match task.pass {
            Pass::Train => self.trained(&now),
            Pass::Forward(_) => self.evaluated(&now[0]),
        }
    }

    fn trained(&mut self, reports: &[PassReport]) -> Result<()> {
        let metrics = step_metrics(reports);
        (self.step, self.loss) = (metrics.step, metrics.loss);
        self.steps += 1;
        if self.steps > 1 {
            self.tokens += metrics.tokens;
            self.seconds += metrics.seconds;
        }
        if self.rhythm.evaluates_after(metrics.step, metrics.step == self.planned) {
            self.waiting = Some(metrics);
            return Ok(());
        }
        self.write(metrics)
    }

    fn evaluated(&mut self, report: &PassReport) -> Result<()> {
        let numbers = &report.numbers;
        self.evaluated.0 += numbers.lm_loss * numbers.targets as f64;
        self.evaluated.1 += numbers.targets;
        self.evaluated.2 += 1;
        if self.evaluated.2 < self.rhythm.eval_batches {
            return Ok(());
        }
        let (nll, targets, _) = std::mem::take(&mut self.evaluated);
        self.validation = Some(nll / targets.max(1) as f64);
        match self.waiting.take() {
            Some(metrics) => {
                self.write(StepMetrics { validation_loss: self.validation, ..metrics })
            }
            None => Ok(()),
        }
    }

    fn write(&mut self, metrics: StepMetrics) -> Result<()> {
        self.progress.step(&metrics);
        self.writer.append(&metrics)
    }

    /// Draws the loss curve; gives the steps of the run.
    pub fn draw(&mut self, title: &str) -> Result<Vec<StepMetrics>> {
        if let Some(metrics) = self.waiting.take() {
            self.write(metrics)?;
        }
        let path: &Path = &self.folder.metrics_path();
        let all = metrics::read(path)?;
        curve::write(&self.folder.loss_path(), title, &all)?;
        Ok(all)
    }

    pub fn rate(&self) -> f64 {
        if self.seconds > 0.0 { self.tokens as f64 / self.seconds } else { 0.0 }
    }
}

/// One step's metrics from the reports of all ranks: the losses are the same on each, traffic adds
/// up, and the slowest rank's clock counts.
fn step_metrics(reports: &[PassReport]) -> StepMetrics {
    let first = &reports[0];
    let numbers = &first.numbers;
    let slowest = reports.iter().max_by(|a, b| a.seconds.total_cmp(&b.seconds)).unwrap_or(first);
    let sum = |get: fn(&PassReport) -> u64| reports.iter().map(get).sum::<u64>();
    let seconds = |nanos: u64| nanos as f64 * 1e-9;
    let account = &slowest.accounting;
    let disk = seconds(slowest.traffic.disk_busy) / slowest.seconds.max(1e-9);
    let mut utilisation: std::collections::BTreeMap<String, f64> = [Lane::Comm, Lane::Optim]
        .into_iter()
        .filter(|lane| account.utilisation(*lane) > 0.0)
        .map(|lane| (lane.name().to_owned(), account.utilisation(lane)))
        .collect();
    let busy = account.busy as f64 / account.wall.max(1) as f64;
    utilisation.insert(Lane::Compute.name().to_owned(), busy);
    utilisation.insert(Lane::Io.name().to_owned(), disk.min(1.0));
    StepMetrics {
        step: first.task.step,
        loss: numbers.loss,
        lm_loss: numbers.lm_loss,
        aux_loss: numbers.aux_loss,
        grad_norm: numbers.grad_norm,
        lr: numbers.lr,
        tokens: numbers.tokens,
        seconds: slowest.seconds,
        exposed_io_seconds: seconds(account.exposed_of(Lane::Io)),
        cache_hits: sum(|r| r.traffic.cache_hits),
        cache_misses: sum(|r| r.traffic.cache_misses),
        bytes_read: sum(|r| r.traffic.bytes_read),
        bytes_written: sum(|r| r.traffic.bytes_written),
        dropped_tokens: numbers.dropped,
        validation_loss: None,
        utilisation,
        exposed_seconds: Lane::ALL
            .into_iter()
            .filter(|lane| account.exposed_of(*lane) > 0)
            .map(|lane| (lane.name().to_owned(), seconds(account.exposed_of(lane))))
            .collect(),
        overhead_seconds: seconds(account.overhead),
        skipped: numbers.skipped,
    }
}
