//! The trainer: prepares a run, starts its ranks, and turns what they tell into metrics, progress,
//! a loss curve and a timeline.

use super::account::{account, peak_resident};
use super::agreement;
use super::book::Book;
use super::data::DataSource;
use super::feed::{Division, Feed};
use super::folder::RunFolder;
use super::launch::{self, Ranks, Ready};
use super::metrics::{MetricsWriter, StepMetrics};
use super::pipeline::Pipeline;
use super::plan::{Forecast, Measured, measured};
use super::prepare;
use super::progress::{Show, TrainProgress};
use super::script::{self, Rhythm, TrainScript};
use super::{model_of, summary};
use crate::actors::link::RankEvent;
use crate::actors::prefetcher::AccessTrace;
use crate::actors::script::StopGate;
use crate::base::file::write_whole;
use crate::base::{Error, Result, Step};
use crate::config::Config;
use crate::model::kernels::allocator::{trim_allocator, tune_allocator};
use crate::model::kernels::parallel::set_threads;
use crate::text::tokenizer::Tokenizer;
use crate::trace::{LaneLayer, Recorder, chrome, picture};
use serde::Serialize;
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
    /// What `semoe plan` foresees of a step, from figures taken at the start of this run; none
    /// where they could not be taken.
    pub forecast: Option<Forecast>,
    /// The same of this process's steps.
    pub measured: Measured,
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
    tune_allocator()?;
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
    let Prepared { ready, sources } = match prepared {
        Ok(prepared) => prepared,
        Err(error) => {
            if fresh {
                folder.discard();
            }
            return Err(error);
        }
    };
    let committed = ready.meta.step;
    let data = sources[0].identity();
    if fresh {
        folder.begin_data(&data)?;
    } else {
        let allow = |key: &str| may_change(key) || pipeline.allow.iter().any(|a| a == key);
        for change in folder.resume(&table_of(config)?, &data, committed, allow)? {
            let show =
                |v: &Option<toml::Value>| v.as_ref().map_or("unset".into(), ToString::to_string);
            eprintln!(
                "changed: {} from {} to {}",
                change.key,
                show(&change.from),
                show(&change.to)
            );
        }
        // A stop may have come after the commit and before its name.
        let keep_every = config.train.keep_every;
        if committed > 0 && keep_every > 0 && committed.is_multiple_of(keep_every) {
            let name = script::kept_name(committed);
            ready.stores.iter().try_for_each(|s| agreement::keep_named(s, &name, committed))?;
        }
    }
    run(&pipeline, &folder, ready, sources, show)
}

/// What a run needs before its ranks start.
struct Prepared {
    ready: Ready,
    /// One a rank.
    sources: Vec<Box<dyn DataSource>>,
}

fn prepare_run(pipeline: &Pipeline, folder: &RunFolder, show: Show) -> Result<Prepared> {
    let config = &pipeline.config;
    let tokenizer = prepare::tokenizer(config, &folder.tokenizer_path())?;
    let model = model_of::model_config(config, &tokenizer)?;
    let load = prepare::load_of(config, &model);
    // Data that cannot be used is refused before a store is written.
    let mut sources: Vec<Box<dyn DataSource>> = Vec::with_capacity(load.ranks);
    for _ in 0..load.ranks {
        sources.push(match &pipeline.data {
            Some(make) => make()?,
            None => Box::new(open_text(config, model.vocab, &tokenizer, folder, show)?),
        });
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
    Ok(Prepared { ready, sources })
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
    sources: Vec<Box<dyn DataSource>>,
    show: Show,
) -> Result<Summary> {
    let config = &pipeline.config;
    let committed = ready.meta.step;
    let ranks = ready.load.ranks;
    ready.accesses = config
        .trace
        .enabled
        .then(|| AccessTrace { path: folder.access_path(), until: committed + config.trace.steps });
    let forecast = forecast(config, &ready, folder);
    // What preparing took is given back before the slots are taken.
    trim_allocator();
    let writer = MetricsWriter::open(&folder.metrics_path(), committed)?;
    let recorded = writer.recorded();
    ready.recorded = Some(recorded.clone());
    let held_out = sources[0].validation_batches();
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
    let mut sources = sources.into_iter();
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
            let data = sources.next().ok_or_else(|| Error::bug("a rank has no data"))?;
            Ok(Box::new(Feed { data, division }))
        },
    )?;
    eprint!("{}", summary::opening(config, &ready, &account, &ranks.io));
    let recorder = ranks.recorder.clone();
    LaneLayer::of_the_process().attach(Some(recorder.clone()));
    let mut book = Book::open(folder, writer, &ready, rhythm, last, show, committed);
    let ended = follow(&mut ranks, &mut book, &gate, &signals);
    if ended.is_err() {
        // What cannot be recorded is not committed, so a resume leaves no gap.
        recorded.give_up();
        gate.stop();
    }
    let joined = ranks.join();
    LaneLayer::of_the_process().attach(None);
    book.progress.finish();
    let drawn = draw(config, &recorder, folder, &mut book);
    // What is drawn of a run that failed is less than why it did.
    let steps = ended.and(joined).and(drawn)?;
    let here = steps.partition_point(|step| step.step <= committed);
    Ok(Summary {
        step: book.step,
        loss: book.loss,
        validation_loss: book.validation,
        interrupted: book.step < last,
        tokens_per_second: book.rate(),
        memory_bytes: account.total(),
        peak_bytes: peak_resident(),
        forecast,
        measured: measured(&steps[here..]),
        run_dir: folder.path().to_owned(),
    })
}

/// A run does not depend on its forecast: where none can be made (no room for the probe), it says
/// so and goes on.
fn forecast(config: &Config, ready: &Ready, folder: &RunFolder) -> Option<Forecast> {
    Forecast::of(config, &ready.load, &ready.placement, folder.path())
        .inspect_err(|error| eprintln!("no forecast of the step's seconds: {error}"))
        .ok()
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

/// Timeline and curve; gives the steps of the run.
fn draw(
    config: &Config,
    recorder: &Recorder,
    folder: &RunFolder,
    book: &mut Book<'_>,
) -> Result<Vec<StepMetrics>> {
    if config.trace.enabled {
        let timeline = recorder.timeline();
        chrome::write(&timeline, &folder.trace_path())?;
        let svg = picture::draw(&config.name, &timeline, PICTURED_STEPS)?;
        write_whole(&folder.timeline_path(), svg.as_bytes())?;
    }
    book.draw(&config.name)
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
