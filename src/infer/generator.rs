//! The generator: an opened checkpoint that makes text.
//!
//! ```no_run
//! use semoe::infer::generator::Generator;
//! use semoe::infer::options::Options;
//! use semoe::infer::sampler::Sampling;
//! use semoe::infer::session::Said;
//!
//! let mut generator = Generator::open(&Options::new("path/to/checkpoint"))?;
//! let prompt = generator.encode("In the beginning")?;
//! let job = generator.job(prompt, Sampling::greedy(), 20);
//! generator.run(vec![job], |said| {
//!     if let Said::Token { token, .. } = said {
//!         println!("{token}");
//!     }
//!     Ok(())
//! })?;
//! generator.finish()?;
//! # Ok::<(), semoe::base::Error>(())
//! ```

use super::figures::Figures;
use super::forecast::Workload;
use super::foresight::Tally;
use super::habits::Habits;
use super::memory::MemoryPlan;
use super::opened::Opened;
use super::options::Options;
use super::sampler::Sampling;
use super::session::{Inbox, Job, Said, WhileOpen};
use super::settings::Settings;
use super::stage::{DecodeStage, Parts};
use super::timeline::Keeper;
use crate::actors::backing::Backing;
use crate::actors::cache::Cache;
use crate::actors::link::{Alarm, RankEvent};
use crate::actors::message::Directive;
use crate::actors::prefetcher::AccessTrace;
use crate::actors::rank::{self, Bench, Disk, Rank, RankSpec};
use crate::actors::spans::Spans;
use crate::actors::stage::{MakeStage, Stage};
use crate::base::clock::RealClock;
use crate::base::ledger::Ledger;
use crate::base::{Error, Part, Result};
use crate::graph::planner::decode::DecodePlanner;
use crate::graph::{Credits, EngineConfig, Lane, Schedule};
use crate::model::checkpoint::Source;
use crate::model::config::ModelConfig;
use crate::model::forward::{Forward, KvCache};
use crate::model::kernels::linear::Activations;
use crate::storage::arena::Arena;
use crate::storage::hierarchy::{Hierarchy, SlotClass};
use crate::text::tokenizer::Tokenizer;
use crossbeam_channel::{Receiver, select, unbounded};
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Guesses that are read at once: one, and one that follows without a pause.
const GUESSES: u32 = 2;
/// How long the disk may take after a failure elsewhere.
const PATIENCE: Duration = Duration::from_secs(60);

/// See the module.
pub struct Generator {
    source: Arc<Source>,
    index: Option<PathBuf>,
    habits: Arc<Mutex<Habits>>,
    timeline: Keeper,
    tokenizer: Option<Arc<Tokenizer>>,
    settings: Settings,
    ledger: Ledger,
    workload: Workload,
    rank: Option<Rank>,
    alarm: Alarm,
    events: Receiver<(usize, RankEvent)>,
    said: Receiver<Said>,
    inbox: Arc<Inbox>,
    cache: Arc<Cache>,
    tally: Arc<Mutex<Tally>>,
    figures: Figures,
    next_job: u64,
}

impl Generator {
    /// Opens a checkpoint, plans its memory, loads the dense weights and starts the actors.
    ///
    /// # Errors
    /// As [`Source::open`]; `Budget` with the smallest memory that works; `Config` for options
    /// that mean nothing.
    pub fn open(options: &Options) -> Result<Self> {
        Self::open_on(options, |disk| disk)
    }

    /// As [`Generator::open`], on a disk that `wrap` may have changed (see [`Disk::failing`]).
    ///
    /// # Errors
    /// As [`Generator::open`].
    pub fn open_on(options: &Options, wrap: impl FnOnce(Disk) -> Disk) -> Result<Self> {
        let opened = Opened::new(options)?;
        let Opened { source, index, config, files, needs, plan, workload } = opened;
        let slots = plan.slots;
        let (context, threads) = (needs.context, needs.threads);
        let class = SlotClass { part: Part::Weights, slot_bytes: needs.slot_bytes, slots };
        let tokenizer = source.tokenizer().ok().map(Arc::new);

        let (sender, events) = unbounded();
        let alarm = Alarm::new(0, sender.clone());
        let arena = Arena::new(&[class])?;
        let huge_pages = arena.has_huge_pages();
        let io = Disk::start(&options.io, files.files(), arena.whole(), alarm.clone())?;
        let io = wrap(io);
        let habits = Habits::known(&config, options.predictor.counts_follows(), index.as_deref());
        let warm = options.warm.then(|| habits.hottest(slots as usize));
        let recalled = warm.as_ref().map(|blocks| blocks.len() as u32);
        let settings = Settings::new(options, &needs, &plan, &io, huge_pages, recalled, &source);
        let MemoryPlan { ledger, embedding_in_file, .. } = plan;
        let habits = Arc::new(Mutex::new(habits));
        let mut hierarchy = Hierarchy::new(&[class], &options.policy)?;
        hierarchy.guess(GUESSES);
        let cache = Cache::new(hierarchy, arena);
        let inbox = Arc::new(Inbox::default());
        let (tell, said) = unbounded();
        let predictor = settings.effective.predictor;
        let tally: Arc<Mutex<Tally>> = Arc::default();
        let tallied = Arc::clone(&tally);

        let forward = match embedding_in_file {
            true => Forward::load_but_embedding(&config, source.as_ref())?,
            false => Forward::load(&config, source.as_ref())?,
        };
        let make = |_| KvCache::new(&config, context, options.kv);
        let caches: Vec<KvCache> = (0..options.sequences).map(make).collect();
        let parts = (Arc::clone(&source), Arc::clone(&files), Arc::clone(&cache));
        let noted = Arc::clone(&habits);
        let activations = options.activations.unwrap_or_else(Activations::best);
        let (chunk, jobs) = (options.chunk, Arc::clone(&inbox));
        let executor = Box::new(move |bench: Bench| -> MakeStage {
            Box::new(move || {
                let (source, files, cache) = parts;
                let stage: Box<dyn Stage> = Box::new(DecodeStage::new(Parts {
                    forward,
                    source,
                    files,
                    cache,
                    herald: bench.herald,
                    threads,
                    activations,
                    caches,
                    chunk,
                    predictor,
                    habits: noted,
                    tally: tallied,
                    inbox: jobs,
                    said: tell,
                })?);
                Ok(stage)
            })
        });
        let origin = Instant::now();
        let timeline = Keeper::new(options, origin);
        let rank = rank::start(RankSpec {
            rank: 0,
            clock: RealClock::since(origin),
            engine: EngineConfig { credits: credits(), schedule: Schedule::Overlapped },
            planner: Box::new(DecodePlanner::new(config.layers)),
            script: Box::new(WhileOpen::new(Arc::clone(&inbox))),
            cache: Arc::clone(&cache),
            backing: Backing::InPlace(files),
            io,
            executor,
            training: None,
            mailbox: config.experts * 4 + 4096,
            patience: PATIENCE,
            events: sender,
            spans: Spans::new(timeline.recorder().for_rank(0)),
            accesses: options.accesses.clone().map(|path| AccessTrace { path, until: u64::MAX }),
        })?;
        if let Some(blocks) = warm {
            cache.warm(&blocks)?;
        }
        Ok(Self {
            source,
            index,
            habits,
            timeline,
            tokenizer,
            settings,
            ledger,
            workload,
            rank: Some(rank),
            alarm,
            events,
            said,
            inbox,
            cache,
            tally,
            figures: Figures::default(),
            next_job: 0,
        })
    }

    pub fn config(&self) -> &ModelConfig {
        self.source.config()
    }

    pub fn source(&self) -> &Source {
        &self.source
    }

    /// What was asked and what was put in place.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// What the process will hold at most.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// What a token of this model reads and computes, for forecasts.
    pub fn workload(&self) -> &Workload {
        &self.workload
    }

    /// Sums over all passes so far.
    pub fn figures(&self) -> Figures {
        self.figures
    }

    /// What the predictor came to since the start.
    pub fn tally(&self) -> Tally {
        *self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The cache, for whoever wants its counters.
    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    /// The checkpoint's tokenizer.
    ///
    /// # Errors
    /// As [`Source::tokenizer`].
    pub fn tokenizer(&self) -> Result<Arc<Tokenizer>> {
        match &self.tokenizer {
            Some(tokenizer) => Ok(Arc::clone(tokenizer)),
            None => self.source.tokenizer().map(Arc::new),
        }
    }

    /// Token ids of a prompt, with the beginning-of-text token where the tokenizer wants one.
    ///
    /// # Errors
    /// As [`Source::tokenizer`].
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let tokenizer = self.tokenizer()?;
        let mut ids: Vec<u32> = Vec::new();
        ids.extend(tokenizer.bos().filter(|_| tokenizer.add_bos()));
        let text = tokenizer.encode(text)?;
        let doubled = ids.first().is_some_and(|bos| text.first() == Some(bos));
        ids.extend(text.into_iter().skip(usize::from(doubled)));
        Ok(ids)
    }

    /// A job that ends with the model's end tokens.
    pub fn job(&mut self, prompt: Vec<u32>, sampling: Sampling, most: usize) -> Job {
        self.next_job += 1;
        Job {
            id: self.next_job,
            prompt,
            sampling,
            given: Vec::new(),
            most,
            ends: self.source.config().eos.clone(),
            stop: Arc::new(AtomicBool::new(false)),
            logits: false,
        }
    }

    /// Runs jobs to their end, as many at once as there are sequences; `on` hears what is said.
    ///
    /// # Errors
    /// `Input` for a prompt that is empty or does not fit the context, before anything is run;
    /// whatever stopped the run; whatever `on` answers, after the jobs were stopped.
    pub fn run(&mut self, jobs: Vec<Job>, mut on: impl FnMut(&Said) -> Result<()>) -> Result<()> {
        for job in &jobs {
            self.check(job)?;
        }
        let stops: Vec<Arc<AtomicBool>> = jobs.iter().map(|job| Arc::clone(&job.stop)).collect();
        let mut open = jobs.len();
        jobs.into_iter().for_each(|job| self.inbox.put(job));
        if let Some(rank) = &self.rank {
            rank.tell(Directive::Wake, &self.alarm);
        }
        let mut result = Ok(());
        while open > 0 {
            select! {
                recv(self.said) -> said => {
                    let said = said.map_err(|_| Error::bug("the executor of a generator has gone"))?;
                    open -= usize::from(matches!(said, Said::Ended { .. }));
                    if result.is_ok() {
                        result = on(&said);
                        if result.is_err() {
                            let set = |stop: &Arc<AtomicBool>| {
                                stop.store(true, std::sync::atomic::Ordering::Relaxed);
                            };
                            stops.iter().for_each(set);
                        }
                    }
                }
                recv(self.events) -> event => self.heed(event.map_err(|_| gone())?.1)?,
            }
        }
        result
    }

    /// Waits until the executor has told of every pass, so that the figures are whole.
    fn settle(&mut self) -> Result<()> {
        while let Ok((_, event)) = self.events.recv_timeout(Duration::from_millis(50)) {
            self.heed(event)?;
        }
        Ok(())
    }

    fn heed(&mut self, event: RankEvent) -> Result<()> {
        match event {
            RankEvent::Pass(report) => self.figures.add(&report),
            RankEvent::Committed { .. } => {}
            RankEvent::Ended(error) => {
                return Err(error.unwrap_or_else(gone));
            }
        }
        Ok(())
    }

    /// The figures of everything so far, and zeros from here on.
    ///
    /// # Errors
    /// Whatever stopped the run.
    pub fn take_figures(&mut self) -> Result<Figures> {
        self.settle()?;
        Ok(std::mem::take(&mut self.figures))
    }

    fn check(&self, job: &Job) -> Result<()> {
        let context = self.settings.effective.context;
        if job.prompt.is_empty() {
            return Err(Error::input("a prompt has no tokens: give it at least one"));
        }
        if job.prompt.len() + usize::from(job.most > 0) > context {
            return Err(Error::input(
                "a prompt is longer than the context: shorten it, or give --context more",
            )
            .with("tokens", job.prompt.len())
            .with("context", context));
        }
        let mut tokens = job.prompt.iter().chain(&job.given);
        if let Some(token) = tokens.find(|t| **t as usize >= self.config().vocab) {
            return Err(Error::input("a prompt has a token that the model does not know")
                .with("token", token)
                .with("vocabulary", self.config().vocab));
        }
        job.sampling.check()
    }

    /// Ends the actors and their threads.
    ///
    /// # Errors
    /// The cause, if the rank failed.
    pub fn finish(mut self) -> Result<Figures> {
        let Some(rank) = self.rank.take() else { return Ok(self.figures) };
        rank.tell(Directive::Finish, &self.alarm);
        let mut result = Ok(());
        loop {
            match self.events.recv_timeout(PATIENCE) {
                Ok((_, RankEvent::Ended(error))) => {
                    result = error.map_or(result, Err);
                    break;
                }
                Ok((_, event)) => self.heed(event)?,
                Err(_) => return Err(gone()),
            }
        }
        let joined = rank.join();
        result.and(joined)?;
        self.timeline.write(self.source.path())?;
        let Self { cache, habits, index, figures, .. } = self;
        // The slots make room for the index.
        drop(cache);
        habits.lock().unwrap_or_else(PoisonError::into_inner).keep(index.as_deref());
        Ok(figures)
    }
}

fn gone() -> Error {
    Error::bug("the actors of a generator have gone")
}

fn credits() -> Credits {
    // The executor's queue is as deep as a layer's misses: what has arrived runs without a pause.
    Credits::uniform(8).with(Lane::Compute, 4).with(Lane::Control, 1 << 20)
}
