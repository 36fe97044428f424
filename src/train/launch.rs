//! Starting the ranks of a pipeline on stores that are ready.

use super::agreement::{Agreement, commit};
use super::pipeline::Pipeline;
use super::placement::{Load, Placement, WINDOW};
use super::recorded::Recorded;
use super::stage::update::{Meta, Rates, Updater};
use super::stage::{StageSpec, TrainStage, UpdateStage};
use super::{blocks::Blocks, model_of};
use crate::actors::backing::Backing;
use crate::actors::cache::Cache;
use crate::actors::committing::DenseSlot;
use crate::actors::link::{Alarm, RankEvent};
use crate::actors::message::Directive;
use crate::actors::observe;
use crate::actors::prefetcher::AccessTrace;
use crate::actors::rank::{self, Bench, Disk, MakeExecutor, Rank, RankSpec, Training};
use crate::actors::script::Script;
use crate::actors::spans::Spans;
use crate::actors::stage::{BatchSource, MakeStage, Stage};
use crate::actors::supervisor::first_cause;
use crate::base::clock::RealClock;
use crate::base::units::round_up;
use crate::base::{BlockId, Error, Part, Result};
use crate::comm::{self, Collective};
use crate::config::{
    Activations, Config, Idle, NonFinite, Place, ScheduleKind, StorageEngine, Toggle,
};
use crate::graph::planner::train::{TrainPlanner, TrainShape};
use crate::graph::{Credits, EngineConfig, Lane, Schedule};
use crate::model::config::{ModelConfig, Precision};
use crate::model::dense::DenseModel;
use crate::model::kernels::parallel::Threads;
use crate::model::params::DenseParams;
use crate::storage::arena::Arena;
use crate::storage::disk::{DirectChoice, EngineChoice, IoEffective, IoOptions};
use crate::storage::hierarchy::{Hierarchy, SlotClass, SlotId};
use crate::storage::policy::{PolicyConfig, PolicyKind};
use crate::storage::store::Store;
use crate::trace::{Recorder, RecorderOptions};
use crossbeam_channel::{Receiver, Sender, unbounded};
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// A run whose stores are open and whose figures are known.
pub struct Ready {
    pub model: ModelConfig,
    pub load: Load,
    pub placement: Placement,
    /// One a rank.
    pub stores: Vec<Arc<Store>>,
    /// What the last commit kept.
    pub meta: Meta,
    /// Where the first rank's block accesses are recorded, and up to which step.
    pub accesses: Option<AccessTrace>,
    /// The metrics that a commit waits for.
    pub recorded: Option<Recorded>,
}

impl Ready {
    pub fn new(load: Load, placement: Placement, stores: Vec<Arc<Store>>, meta: Meta) -> Self {
        let model = load.config.clone();
        Self { model, load, placement, stores, meta, accesses: None, recorded: None }
    }

    pub fn precision(&self) -> Precision {
        self.load.shape.precision
    }

    pub fn experts_of(&self, rank: usize) -> Range<usize> {
        let each = self.model.experts / self.load.ranks;
        rank * each..(rank + 1) * each
    }

    fn dense_bytes(&self) -> u64 {
        round_up(DenseParams::state_bytes_of(&self.model), 4096)
    }

    /// Reader and writer of a rank's blocks, outside a run.
    pub fn blocks(&self, rank: usize, config: &Config) -> Result<Blocks> {
        Blocks::open(
            Arc::clone(&self.stores[rank]),
            &io_options(config),
            self.load.shape,
            &self.placement.classes(),
            self.dense_bytes(),
        )
    }

    /// Optimizer updates that each local expert contains, `[layer][local expert]`.
    fn applied(&self, rank: usize) -> Result<Vec<Vec<u64>>> {
        (0..self.model.layers)
            .map(|layer| {
                self.experts_of(rank)
                    .map(|expert| {
                        let block = BlockId::weights(layer, expert);
                        let located = self.stores[rank].locate(block)?;
                        located.map(|found| found.applied).ok_or_else(|| {
                            Error::corrupt("the store lacks an expert of the model")
                                .with("block", block)
                        })
                    })
                    .collect()
            })
            .collect()
    }
}

/// The ranks of a run, and what they tell.
pub struct Ranks {
    ranks: Vec<Rank>,
    alarms: Vec<Alarm>,
    events: Receiver<(usize, RankEvent)>,
    pub io: Vec<IoEffective>,
    pub recorder: Recorder,
    ended: usize,
    errors: Vec<(usize, Error)>,
}

impl Ranks {
    /// Tells every rank.
    pub fn tell(&self, directive: &Directive) {
        for (rank, alarm) in self.ranks.iter().zip(&self.alarms) {
            rank.tell(directive.clone(), alarm);
        }
    }

    /// The next event of any rank; `None` when all have ended, or `patience` has passed.
    pub fn next(&mut self, patience: Duration) -> Option<(usize, RankEvent)> {
        while self.ended < self.ranks.len() {
            match self.events.recv_timeout(patience).ok()? {
                (rank, RankEvent::Ended(error)) => {
                    self.ended += 1;
                    self.errors.extend(error.map(|error| (rank, error)));
                }
                event => return Some(event),
            }
        }
        None
    }

    pub fn have_ended(&self) -> bool {
        self.ended >= self.ranks.len()
    }

    /// The first cause, if a rank failed.
    pub fn failed(&self) -> bool {
        !self.errors.is_empty()
    }

    /// The states of all actors, `[rank][actor]`; those that hang say so after `patience`.
    ///
    /// # Errors
    /// As [`observe::states`].
    pub fn states(&self, patience: Duration) -> Result<Vec<Vec<observe::State>>> {
        self.ranks.iter().map(|rank| observe::states(rank, patience)).collect()
    }

    /// Waits for every thread.
    ///
    /// # Errors
    /// The first cause, if a rank failed.
    pub fn join(mut self) -> Result<()> {
        while self.next(Duration::from_secs(3600)).is_some() {}
        let mut result = match first_cause(std::mem::take(&mut self.errors)) {
            Some(error) => Err(error),
            None => Ok(()),
        };
        for rank in self.ranks {
            let joined = rank.join();
            if result.is_ok() {
                result = joined;
            }
        }
        result
    }
}

/// Starts every rank of a run. `script` and `source` are asked for once a rank.
pub fn start(
    pipeline: &Pipeline,
    ready: &Ready,
    mut script: impl FnMut(usize) -> Box<dyn Script>,
    mut source: impl FnMut(usize) -> Result<Box<dyn BatchSource>>,
) -> Result<Ranks> {
    let config = &pipeline.config;
    let ranks = ready.load.ranks;
    let origin = Instant::now();
    let recorder = Recorder::new(
        RecorderOptions {
            enabled: config.trace.enabled,
            max_events: config.trace.max_events,
            steps: config.trace.steps,
        },
        origin,
    );
    let (sender, events) = unbounded();
    let mut collectives: Vec<Option<Box<dyn Collective>>> = vec![];
    if ranks > 1 {
        let options = comm::LocalOptions {
            timeout: config.actors.communicator.timeout.0,
            ahead: 64 * ready.load.micro_batches.max(1),
        };
        for collective in comm::local::group(ranks, options)? {
            collectives.push(Some(Box::new(collective)));
        }
    }
    let agreement = Agreement::new(ranks, config.actors.communicator.timeout.0);
    let mut started = Vec::with_capacity(ranks);
    let mut alarms = Vec::with_capacity(ranks);
    let mut io = Vec::with_capacity(ranks);
    for rank in 0..ranks {
        let alarm = Alarm::new(rank, sender.clone());
        let parts = RankParts {
            rank,
            script: script(rank),
            source: source(rank)?,
            collective: collectives.get_mut(rank).and_then(Option::take),
            spans: Spans::new(recorder.for_rank(rank as u16)),
            clock: RealClock::since(origin),
            events: sender.clone(),
            alarm: alarm.clone(),
            agreement: agreement.clone(),
        };
        let spec = rank_spec(pipeline, ready, parts)?;
        io.push(spec.io.service().effective().clone());
        started.push(rank::start(spec)?);
        alarms.push(alarm);
    }
    Ok(Ranks { ranks: started, alarms, events, io, recorder, ended: 0, errors: Vec::new() })
}

/// What differs between the ranks of a run.
struct RankParts {
    rank: usize,
    script: Box<dyn Script>,
    source: Box<dyn BatchSource>,
    collective: Option<Box<dyn Collective>>,
    spans: Spans,
    clock: RealClock,
    events: Sender<(usize, RankEvent)>,
    alarm: Alarm,
    agreement: Agreement,
}

fn rank_spec(pipeline: &Pipeline, ready: &Ready, parts: RankParts) -> Result<RankSpec> {
    let (config, rank) = (&pipeline.config, parts.rank);
    let store = Arc::clone(&ready.stores[rank]);
    let mut classes = ready.placement.classes();
    let dense_bytes = ready.dense_bytes();
    let mut hierarchy = hierarchy(pipeline, &classes)?;
    hierarchy.limit_speculation(config.actors.prefetcher.credits as u32);
    classes.push(SlotClass { part: Part::Dense, slot_bytes: dense_bytes, slots: 1 });
    let arena = Arena::new(&classes)?;
    let dense = DenseSlot(arena.slot(SlotId { part: Part::Dense, index: 0 })?);
    let io = Disk::start(&io_options(config), store.files(), arena.whole(), parts.alarm)?;

    let own_thread = config.actors.optimizer.place == Place::Thread;
    let shape = TrainShape {
        layers: ready.model.layers,
        local_experts: ready.experts_of(rank),
        micro_batches: ready.load.micro_batches,
        ranks: ready.load.ranks,
        clipped: ready.load.clipped,
        capacity: pipeline.make_gate(&ready.model)?.capacity_factor().is_some(),
        lookahead: match config.graph.schedule {
            ScheduleKind::Overlapped => config.actors.prefetcher.lookahead,
            ScheduleKind::Sequential => 0,
        },
        exact_idle: config.actors.optimizer.idle == Idle::Exact,
        spread: ready.placement.spread(),
        grad_slots: ready.placement.slots.grads as usize,
        window: WINDOW,
        optimizer_lane: if own_thread { Lane::Optim } else { Lane::Compute },
    };
    let applied = ready.applied(rank)?;
    let planner = TrainPlanner::new(shape, pipeline.make_predictor(), ready.meta.updates, applied);

    let updater = Updater {
        optimizer: pipeline.make_optimizer(),
        shape: ready.load.shape,
        rates: Arc::new(Mutex::new(Rates::new(ready.meta.rates.clone()))),
        threads: match own_thread && config.actors.optimizer.threads == 1 {
            true => Threads::Calling,
            false => Threads::Pool,
        },
        streams: ready.placement.slots.states < ready.placement.blocks,
        joiner: Arc::default(),
    };
    let optimizer: Option<MakeStage> = own_thread.then(|| {
        let (updater, threads) = (updater.clone(), config.actors.optimizer.threads);
        let make: MakeStage = Box::new(move || Ok(Box::new(UpdateStage::new(updater, threads)?)));
        make
    });
    let executor = make_executor(pipeline, ready, rank, updater)?;
    let nodes = ready.model.layers * ready.model.experts * 4;
    Ok(RankSpec {
        rank,
        clock: parts.clock,
        engine: engine_config(config),
        planner: Box::new(planner),
        script: parts.script,
        cache: Cache::new(hierarchy, arena),
        backing: Backing::Store(Arc::clone(&store)),
        io,
        executor,
        training: Some(Training {
            dense,
            optimizer,
            source: parts.source,
            collective: parts.collective,
            commit: commit(store, parts.agreement, ready.recorded.clone()),
            committed: ready.meta.step,
        }),
        mailbox: nodes + 4096,
        patience: config.actors.communicator.timeout.0 + Duration::from_secs(30),
        events: parts.events,
        spans: parts.spans,
        accesses: ready.accesses.clone().filter(|_| rank == 0),
    })
}

fn engine_config(config: &Config) -> EngineConfig {
    let actors = &config.actors;
    let credits = Credits::uniform(8)
        .with(Lane::Compute, actors.expert.credits as u32)
        .with(Lane::Comm, actors.communicator.credits as u32)
        .with(Lane::Optim, actors.optimizer.credits as u32)
        .with(Lane::Control, 1 << 20);
    let schedule = match config.graph.schedule {
        ScheduleKind::Overlapped => Schedule::Overlapped,
        ScheduleKind::Sequential => Schedule::Sequential,
    };
    EngineConfig { credits, schedule }
}

fn hierarchy(pipeline: &Pipeline, classes: &[SlotClass]) -> Result<Hierarchy> {
    if let Some(make) = &pipeline.policy {
        return Hierarchy::with_policies(classes, |_| make());
    }
    let storage = &pipeline.config.storage;
    let policy = PolicyConfig {
        kind: match storage.policy {
            crate::config::PolicyKind::Planned => PolicyKind::Planned,
            crate::config::PolicyKind::SeMoe => PolicyKind::SeMoe,
            crate::config::PolicyKind::Lru => PolicyKind::Lru,
            crate::config::PolicyKind::Lfu => PolicyKind::Lfu,
            crate::config::PolicyKind::Adaptive => PolicyKind::Adaptive,
        },
        threshold: storage.threshold,
        beta: storage.beta,
        every: storage.decay_every,
    };
    Hierarchy::new(classes, &policy)
}

/// Loads the dense state of the last commit and makes the executor's stage of it.
fn make_executor(
    pipeline: &Pipeline,
    ready: &Ready,
    rank: usize,
    updater: Updater,
) -> Result<MakeExecutor> {
    let config = &pipeline.config;
    let mut params = DenseParams::zeros(&ready.model, ready.precision())?;
    let mut blocks = ready.blocks(rank, config)?;
    let state = blocks.read_dense(params.state_bytes())?;
    blocks.finish();
    params.read_state(&state)?;
    let (model, precision, meta) = (ready.model.clone(), ready.precision(), ready.meta.clone());
    let mut gate = pipeline.make_gate(&ready.model)?;
    gate.restore(&meta.gate)?;
    let schedule = model_of::schedule(config);
    let threads = ready.load.threads;
    let (ranks, local_experts) = (ready.load.ranks, ready.experts_of(rank));
    let micro_batches = ready.load.micro_batches;
    let keep_dense = config.actors.dense.activations == Activations::Keep;
    let keep_experts = config.actors.expert.activations == Activations::Keep;
    let (aux_coef, z_coef) = (config.actors.gate.aux_coef, config.actors.gate.z_coef);
    let aux_scope = model_of::aux_scope(config);
    let (clip, seed) = (config.train.clip, config.train.seed);
    let skip_nonfinite = config.train.nonfinite == NonFinite::Skip;
    Ok(Box::new(move |bench: Bench| -> MakeStage {
        Box::new(move || {
            let model = DenseModel::new(model, precision, params)?;
            let stage: Box<dyn Stage> = Box::new(TrainStage::new(StageSpec {
                model,
                gate,
                updater,
                schedule: Box::new(move |step| schedule.lr(step)),
                rank,
                ranks,
                local_experts,
                micro_batches,
                seed,
                threads,
                keep_dense,
                keep_experts,
                aux_coef,
                aux_scope,
                z_coef,
                clip,
                skip_nonfinite,
                updates: meta.updates,
                step: meta.step,
                staging: bench.staging,
                dense: bench.dense,
            })?);
            Ok(stage)
        })
    }))
}

/// The io options of a configuration.
pub fn io_options(config: &Config) -> IoOptions {
    let storage = &config.storage;
    IoOptions {
        engine: match storage.engine {
            StorageEngine::Auto => EngineChoice::Auto,
            StorageEngine::Uring => EngineChoice::Uring,
            StorageEngine::Pool => EngineChoice::Pool,
        },
        direct: match storage.direct {
            Toggle::Auto => DirectChoice::Auto,
            Toggle::On => DirectChoice::On,
            Toggle::Off => DirectChoice::Off,
        },
        depth: storage.depth,
        chunk: storage.chunk.0,
        threads: storage.io_threads,
        register: storage.register != Toggle::Off,
    }
}
