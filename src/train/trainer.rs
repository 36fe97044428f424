//! The trainer: prepares a run, starts its ranks, and turns what they tell into metrics, progress,
//! a loss curve and a timeline.

use super::account::{account, peak_resident};
use super::curve;
use super::data::DataSource;
use super::feed::{Division, Feed};
use super::folder::RunFolder;
use super::launch::{self, Ranks, Ready};
use super::metrics::{self, MetricsWriter, StepMetrics};
use super::pipeline::Pipeline;
use super::prepare;
use super::progress::{Show, TrainProgress};
use super::script::{Rhythm, TrainScript};
use super::{model_of, summary};
use crate::actors::link::RankEvent;
use crate::actors::prefetcher::AccessTrace;
use crate::actors::script::StopGate;
use crate::actors::sink::PassReport;
use crate::base::file::write_whole;
use crate::base::{Error, Result, Step};
use crate::config::Config;
use crate::graph::Lane;
use crate::graph::planner::Pass;
use crate::model::kernels::parallel::{set_threads, trim_allocator, tune_allocator};
use crate::text::tokenizer::Tokenizer;
use crate::trace::{LaneLayer, chrome, picture};
use serde::Serialize;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Steps of the timeline that its picture shows.
const PICTURED_STEPS: u64 = 2;

/// How a training run ended.
#[derive(Debug, Clone, Serialize)]
pub struct Summary {
    pub step: Step,
    pub loss: f64,
    pub validation_loss: Option<f64>,
    pub interrupted: bool,
    /// Tokens a second over this process's steps, the first left out.
    pub tokens_per_second: f64,
    /// What the ledger promised, and the most that was resident.
    pub memory_bytes: u64,
    pub peak_bytes: u64,
    pub run_dir: std::path::PathBuf,
}

/// Keys that a resume may change: budgets, actors, trace, the length and the learning rate.
fn may_change(key: &str) -> bool {
    let tables = ["storage.", "actors.", "trace.", "graph."];
    let keys = [
        "train.steps",
        "train.lr",
        "train.min_lr",
        "train.warmup",
        "train.schedule",
        "train.commit_every",
        "train.keep_every",
        "train.eval_every",
        "train.eval_batches",
        "train.nonfinite",
    ];
    // What changes the mathematics, or where the store is, is another run.
    let fixed = ["actors.gate.kind", "storage.dir"];
    !fixed.contains(&key) && (keys.contains(&key) || tables.iter().any(|t| key.starts_with(t)))
}

fn table_of(config: &Config) -> Result<toml::Table> {
    toml::Table::try_from(config)
        .map_err(|e| Error::bug("the configuration has no TOML form").from_source(e))
}

/// See [`Pipeline::train`].
pub(super) fn train(pipeline: Pipeline) -> Result<Summary> {
    let config = &pipeline.config;
    config.validate()?;
    config.check_trainable()?;
    tune_allocator();
    set_threads(1)?; // Executors compute: this thread starts no pool of its own.
    let run_dir = pipeline.run_dir.clone().unwrap_or_else(|| config.default_run_dir());
    let show = Show::detect();
    let fresh = !pipeline.resume;
    let folder = if fresh {
        RunFolder::create(&run_dir, &table_of(config)?)?
    } else {
        RunFolder::open(&run_dir)?
    };
    let prepared = prepare_run(&pipeline, &folder, show);
    let (ready, tokenizer) = match prepared {
        Ok(prepared) => prepared,
        Err(error) => {
            if fresh {
                folder.discard();
            }
            return Err(error);
        }
    };
    let committed = ready.meta.step;
    if !fresh {
        let allow = |key: &str| may_change(key) || pipeline.allow.iter().any(|a| a == key);
        for change in folder.resume(&table_of(config)?, committed, allow)? {
            let show =
                |v: &Option<toml::Value>| v.as_ref().map_or("unset".into(), ToString::to_string);
            eprintln!(
                "changed: {} from {} to {}",
                change.key,
                show(&change.from),
                show(&change.to)
            );
        }
    }
    run(&pipeline, &folder, ready, tokenizer, show)
}

fn prepare_run(pipeline: &Pipeline, folder: &RunFolder, show: Show) -> Result<(Ready, Tokenizer)> {
    let config = &pipeline.config;
    let tokenizer = prepare::tokenizer(config, &folder.tokenizer_path())?;
    let model = model_of::model_config(config, &tokenizer)?;
    let load = prepare::load_of(config, &model);
    if pipeline.data.is_none() {
        // Data that cannot be used is refused before a store is written.
        drop(open_text(config, model.vocab, &tokenizer, folder, show)?);
    }
    let dir = config.store_dir(folder.path());
    let ready = if pipeline.resume {
        prepare::open_stores(pipeline, &dir, load)?
    } else {
        let mut bar = TrainProgress::new(show, (model.layers * model.experts) as u64, 0);
        let made = prepare::create_stores(pipeline, &dir, load, |done, total| {
            bar.note("writing the initial parameters", done, total);
        });
        bar.finish();
        made?
    };
    Ok((ready, tokenizer))
}

fn open_text(
    config: &Config,
    vocab: usize,
    tokenizer: &Tokenizer,
    folder: &RunFolder,
    show: Show,
) -> Result<super::data::TextSource> {
    let mut bar = TrainProgress::new(show, 0, 0);
    let source = prepare::text_source(config, vocab, tokenizer, folder, &mut |at| {
        bar.note("tokenising: bytes", at.text_bytes, 0);
    });
    bar.finish();
    source
}

fn run(
    pipeline: &Pipeline,
    folder: &RunFolder,
    mut ready: Ready,
    tokenizer: Tokenizer,
    show: Show,
) -> Result<Summary> {
    let config = &pipeline.config;
    let committed = ready.meta.step;
    let ranks = ready.load.ranks;
    ready.accesses = config
        .trace
        .enabled
        .then(|| AccessTrace { path: folder.access_path(), until: committed + config.trace.steps });
    let mut sources: Vec<Option<Box<dyn DataSource>>> = Vec::with_capacity(ranks);
    for _ in 0..ranks {
        let source: Box<dyn DataSource> = match &pipeline.data {
            Some(make) => make()?,
            None => Box::new(open_text(config, ready.model.vocab, &tokenizer, folder, show)?),
        };
        sources.push(Some(source));
    }
    // What preparing took is given back before the slots are taken.
    drop(tokenizer);
    trim_allocator();
    let held_out = sources[0].as_ref().map_or(0, |source| source.validation_batches());
    let rhythm = Rhythm {
        commit_every: config.train.commit_every,
        keep_every: config.train.keep_every,
        eval_every: config.train.eval_every,
        eval_batches: (config.train.eval_batches as u64).min(held_out) as u32,
    };
    let account = account(config, &ready.load, &ready.placement);
    let last = config.train.steps;
    let gate = StopGate::until(last);
    let signals = Signals::watch()?;
    let mut ranks = launch::start(
        pipeline,
        &ready,
        |_| Box::new(TrainScript::new(gate.clone(), rhythm, committed, last)),
        |rank| {
            let division = Division {
                rank,
                ranks,
                batch: config.train.batch,
                micro_batches: ready.load.micro_batches,
                seq: config.train.seq,
            };
            let data = sources[rank].take().ok_or_else(|| Error::bug("a rank has no data"))?;
            Ok(Box::new(Feed { data, division }))
        },
    )?;
    eprint!("{}", summary::opening(config, &ready, &account, &ranks.io));
    let recorder = ranks.recorder.clone();
    LaneLayer::of_the_process().attach(Some(recorder.clone()));
    let mut book = Book::open(folder, &ready, rhythm, last, show, committed)?;
    let ended = follow(&mut ranks, &mut book, &gate, &signals);
    let joined = ranks.join();
    LaneLayer::of_the_process().attach(None);
    book.progress.finish();
    if config.trace.enabled {
        let timeline = recorder.timeline();
        chrome::write(&timeline, &folder.trace_path())?;
        let svg = picture::draw(&config.name, &timeline, PICTURED_STEPS)?;
        write_whole(&folder.timeline_path(), svg.as_bytes())?;
    }
    book.draw(&config.name)?;
    joined?;
    ended?;
    Ok(Summary {
        step: book.step,
        loss: book.loss,
        validation_loss: book.validation,
        interrupted: book.step < last,
        tokens_per_second: book.rate(),
        memory_bytes: account.total(),
        peak_bytes: peak_resident(),
        run_dir: folder.path().to_owned(),
    })
}

/// What the outside asks of a run.
struct Signals {
    /// Ctrl-C or SIGTERM: stop after the step; a second one ends the process at once.
    stop: Arc<AtomicBool>,
    /// SIGUSR1: write down the states of all actors.
    observe: Arc<AtomicBool>,
}

impl Signals {
    fn watch() -> Result<Self> {
        let signals = Self { stop: Arc::default(), observe: Arc::default() };
        let cannot = |e| Error::io("cannot watch for signals", e);
        for signal in [libc::SIGINT, libc::SIGTERM] {
            let stop = || Arc::clone(&signals.stop);
            signal_hook::flag::register_conditional_shutdown(signal, 130, stop())
                .and_then(|_| signal_hook::flag::register(signal, stop()))
                .map_err(cannot)?;
        }
        signal_hook::flag::register(libc::SIGUSR1, Arc::clone(&signals.observe)).map_err(cannot)?;
        Ok(signals)
    }
}

/// Takes the ranks' news until they end.
fn follow(ranks: &mut Ranks, book: &mut Book, gate: &StopGate, signals: &Signals) -> Result<()> {
    let mut stopping = false;
    while !ranks.have_ended() {
        if signals.observe.swap(false, Ordering::Relaxed) {
            let path = book.folder.actors_path();
            let states = serde_json::to_vec_pretty(&ranks.states(Duration::from_secs(1))?)
                .map_err(|e| Error::bug("the actors' states have no JSON form").from_source(e))?;
            write_whole(&path, &states)?;
            book.progress.say(&format!("states of the actors: {}", path.display()));
        }
        if signals.stop.load(Ordering::Relaxed) && !stopping {
            stopping = true;
            let last = gate.stop();
            book.progress.say(&format!("stopping after step {last}; Ctrl-C again ends at once"));
            book.last = last;
        }
        match ranks.next(Duration::from_millis(100)) {
            Some((rank, RankEvent::Pass(report))) => book.take(rank, *report)?,
            Some((0, RankEvent::Committed { step, seconds })) => {
                book.progress.say(&format!("committed step {step} in {seconds:.2} s"));
            }
            _ => {}
        }
    }
    Ok(())
}

/// The run's metrics as they come in.
struct Book<'a> {
    folder: &'a RunFolder,
    writer: MetricsWriter,
    progress: TrainProgress,
    rhythm: Rhythm,
    ranks: usize,
    last: Step,
    step: Step,
    loss: f64,
    validation: Option<f64>,
    /// Reports of the current pass, one a rank as they come.
    pass: Vec<PassReport>,
    /// A step whose evaluation is under way.
    waiting: Option<StepMetrics>,
    evaluated: (f64, u64, u32),
    tokens: u64,
    seconds: f64,
    steps: u64,
}

impl<'a> Book<'a> {
    fn open(
        folder: &'a RunFolder,
        ready: &Ready,
        rhythm: Rhythm,
        last: Step,
        show: Show,
        committed: Step,
    ) -> Result<Self> {
        Ok(Self {
            folder,
            writer: MetricsWriter::open(&folder.metrics_path(), committed)?,
            progress: TrainProgress::new(show, last, committed),
            rhythm,
            ranks: ready.load.ranks,
            last,
            step: committed,
            loss: f64::NAN,
            validation: None,
            pass: Vec::new(),
            waiting: None,
            evaluated: (0.0, 0, 0),
            tokens: 0,
            seconds: 0.0,
            steps: 0,
        })
    }

    fn take(&mut self, _rank: usize, report: PassReport) -> Result<()> {
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
        if self.rhythm.evaluates_after(metrics.step, metrics.step == self.last) {
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

    fn draw(&mut self, title: &str) -> Result<()> {
        if let Some(metrics) = self.waiting.take() {
            self.write(metrics)?;
        }
        let path: &Path = &self.folder.metrics_path();
        let all = metrics::read(path)?;
        curve::write(&self.folder.loss_path(), title, &all)
    }

    fn rate(&self) -> f64 {
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
        skipped: numbers.skipped,
    }
}
