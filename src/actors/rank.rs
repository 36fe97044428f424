//! One rank: its actors on one arbiter, its worker threads, and their end.
//!
//! The threads of a rank: the arbiter (every decision), the executor, the reader, the io thread,
//! the commit thread; with several ranks the comm thread, with an optimizer of its own that one.
//! All of them end when the arbiter does: dropping the actors closes the channels.

use super::backing::Backing;
use super::cache::Cache;
use super::committing::{CommitFinished, Committing, DenseSlot};
use super::communicator::{Communicator, Exchange, Staging};
use super::compute::{DenseActor, Desk, ExpertActor, GateActor, Job, OptimizerActor};
use super::link::{Alarm, RankEvent, send, send_to};
use super::message::{Directive, Finished, News, Nudge};
use super::meter::Meter;
use super::prefetcher::{AccessTrace, IoFinished, Parts, Prefetcher};
use super::scheduler::{Crew, Scheduler, Start};
use super::script::Script;
use super::sink::Sink;
use super::source::{Reader, Source};
use super::spans::Spans;
use super::stage::{BatchSource, MakeStage, Outgoing};
use super::supervisor::{Supervisor, Watch};
use super::worker::{self, Order, Worker};
use crate::base::clock::{Clock, RealClock};
use crate::base::{Error, Result};
use crate::comm::Collective;
use crate::graph::planner::{Fact, Planned, Planner, Task};
use crate::graph::{Engine, EngineConfig};
use crate::storage::arena::SlotBytes;
use crate::storage::disk::faulty::FaultPlan;
use crate::storage::disk::{DataFile, IoDone, IoOptions, IoService, OnDone};
use actix::{Actor, Addr, AsyncContext, Context, System};
use crossbeam_channel::{Receiver, Sender, unbounded};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::Duration;

/// What an executor's stage is given to reach the rest of its rank.
pub struct Bench {
    /// Where it stages what it sends to other ranks.
    pub staging: Staging,
    /// Whom it tells what becomes known while a node still runs.
    pub herald: Herald,
    /// Where a snapshot puts the dense state; None in a rank that does not train.
    pub dense: Option<DenseSlot>,
}

/// Tells the scheduler news of a node that still runs.
#[derive(Debug, Clone)]
pub struct Herald {
    scheduler: Addr<Scheduler>,
    alarm: Alarm,
}

impl Herald {
    pub fn tell(&self, task: Task, fact: Fact) {
        send(&self.scheduler, News { task, fact }, &self.alarm);
    }
}

/// Makes the executor's stage.
pub type MakeExecutor = Box<dyn FnOnce(Bench) -> MakeStage + Send>;

/// Makes a commit durable; runs on the commit thread.
pub type Commit = Box<dyn FnMut(&Committing) -> Result<()> + Send>;

/// What a rank is made of.
pub struct RankSpec {
    pub rank: usize,
    pub clock: RealClock,
    pub engine: EngineConfig,
    pub planner: Box<dyn Planner>,
    pub script: Box<dyn Script>,
    pub cache: Arc<Cache>,
    pub backing: Backing,
    pub io: Disk,
    pub executor: MakeExecutor,
    /// What a rank has that changes blocks; one that only reads has none of it.
    pub training: Option<Training>,
    /// Messages that any mailbox may hold, from the lanes' credits and the nodes of a step.
    pub mailbox: usize,
    /// How long work under way may take to end after a failure.
    pub patience: Duration,
    pub events: Sender<(usize, RankEvent)>,
    pub spans: Spans,
    pub accesses: Option<AccessTrace>,
}

/// What a rank is made of beyond [`RankSpec`] if it trains.
pub struct Training {
    /// The slot of the dense state.
    pub dense: DenseSlot,
    /// A stage for updates on a thread of its own; without one the executor runs them.
    pub optimizer: Option<MakeStage>,
    pub source: Box<dyn BatchSource>,
    pub collective: Option<Box<dyn Collective>>,
    pub commit: Commit,
    /// The last step that was committed.
    pub committed: u64,
}

/// The io thread of a rank, started before its actors so that what is in effect can be shown.
pub struct Disk {
    service: IoService,
    on_done: OnDone,
    prefetcher: Arc<OnceLock<Addr<Prefetcher>>>,
}

impl Disk {
    /// Starts the io thread on `files`, with `slots` registered if that is permitted.
    pub fn start(
        options: &IoOptions,
        files: Vec<DataFile>,
        slots: SlotBytes,
        alarm: Alarm,
    ) -> Result<Self> {
        let prefetcher: Arc<OnceLock<Addr<Prefetcher>>> = Arc::default();
        let reader = Arc::clone(&prefetcher);
        let on_done: OnDone = Arc::new(move |done: IoDone| {
            if let Some(prefetcher) = reader.get() {
                send(prefetcher, IoFinished(done), &alarm);
            }
        });
        let service =
            IoService::start(options, files, Some((slots.ptr, slots.len)), Arc::clone(&on_done))?;
        Ok(Self { service, on_done, prefetcher })
    }

    /// The same disk, of which the reads that `plan` names fail: for tests of what follows.
    #[must_use]
    pub fn failing(self, plan: FaultPlan) -> Self {
        let Self { service, on_done, prefetcher } = self;
        Self { service: service.failing(plan, Arc::clone(&on_done)), on_done, prefetcher }
    }

    pub fn service(&self) -> &IoService {
        &self.service
    }
}

/// A rank that runs.
pub struct Rank {
    pub scheduler: Addr<Scheduler>,
    pub crew: Crew,
    thread: Option<JoinHandle<()>>,
    workers: Vec<JoinHandle<()>>,
}

impl Rank {
    pub fn tell(&self, directive: Directive, alarm: &Alarm) {
        send(&self.scheduler, directive, alarm);
    }

    /// Waits for every thread of the rank; it must have been asked to finish or have failed.
    pub fn join(mut self) -> Result<()> {
        let threads = self.thread.take().into_iter().chain(std::mem::take(&mut self.workers));
        drop(self.scheduler);
        drop(self.crew);
        let mut result = Ok(());
        for thread in threads {
            if thread.join().is_err() {
                result = Err(Error::bug("a thread of a rank panicked"));
            }
        }
        result
    }
}

/// Starts a rank's threads and actors. It begins with its script at once.
pub fn start(spec: RankSpec) -> Result<Rank> {
    let rank = spec.rank;
    let (ready, started) = unbounded();
    let thread = std::thread::Builder::new()
        .name(format!("rank{rank}-actors"))
        .spawn(move || {
            let system = System::new();
            let made = system.block_on(async move { assemble(spec) });
            let ok = made.is_ok();
            drop(ready.send(made));
            if ok && let Err(error) = system.run() {
                tracing::error!(%error, "the arbiter of a rank failed");
            }
        })
        .map_err(|e| Error::io("cannot start the thread of a rank", e))?;
    let (scheduler, crew, workers) =
        started.recv().map_err(|_| Error::bug("the arbiter of a rank did not start"))??;
    Ok(Rank { scheduler, crew, thread: Some(thread), workers })
}

/// Starts an actor whose mailbox holds `capacity` messages.
fn actor<A: Actor<Context = Context<A>>>(
    capacity: usize,
    make: impl FnOnce(Addr<A>) -> A,
) -> Addr<A> {
    A::create(|ctx| {
        ctx.set_mailbox_capacity(capacity);
        make(ctx.address())
    })
}

type Assembled = (Addr<Scheduler>, Crew, Vec<JoinHandle<()>>);

fn assemble(spec: RankSpec) -> Result<Assembled> {
    let (rank, clock, capacity) = (spec.rank, spec.clock, spec.mailbox);
    let alarm = Alarm::new(rank, spec.events);
    let meter = Arc::new(Meter::new(Arc::clone(&spec.cache)));
    let supervisor = actor(capacity, |_| Supervisor::new(alarm.clone(), spec.patience));
    let engine: Engine<Planned> = Engine::new(spec.engine)?;
    let committed = spec.training.as_ref().map_or(0, |training| training.committed);
    let scheduler = actor(capacity, |_| {
        let spans = spec.spans.clone();
        Scheduler::new(engine, spec.planner, clock, spec.script, alarm.clone(), committed, spans)
    });
    send(&supervisor, Watch(scheduler.clone()), &alarm);

    let mut workers = Vec::new();
    let (staging, staged): (Staging, Receiver<(Task, Outgoing)>) = unbounded();
    let posts: Arc<OnceLock<Posts>> = Arc::default();
    let mut hire = |name: &str, make: MakeStage, to: Option<Post>| -> Result<Sender<Order>> {
        let (posts, alarm) = (Arc::clone(&posts), alarm.clone());
        let on_finished = Box::new(move |finished: Finished| {
            if let Some(posts) = posts.get() {
                posts.deliver(to, finished, &alarm);
            }
        });
        let Worker { orders, thread } =
            worker::start(format!("rank{rank}-{name}"), clock, make, on_finished)?;
        workers.push(thread);
        Ok(orders)
    };
    let herald = Herald { scheduler: scheduler.clone(), alarm: alarm.clone() };
    let dense = spec.training.as_ref().map(|training| training.dense);
    let executor = hire("executor", (spec.executor)(Bench { staging, herald, dense }), None)?;
    let mut trained = None;
    if let Some(training) = spec.training {
        let Training { dense, optimizer, source, collective, commit, .. } = training;
        let updates = match optimizer {
            Some(make) => hire("optimizer", make, None)?,
            None => executor.clone(),
        };
        let reader = Reader::new(source, executor.clone());
        let reader = hire("reader", Box::new(move || Ok(Box::new(reader))), Some(Post::Source))?;
        let exchange = match collective {
            Some(collective) => {
                let executor = executor.clone();
                let exchange = Exchange::new(collective, staged, executor, spec.patience);
                let make: MakeStage = Box::new(move || Ok(Box::new(exchange)));
                Some(hire("comm", make, Some(Post::Communicator))?)
            }
            None => None,
        };
        trained = Some((dense, commit, updates, reader, exchange));
    }

    let desk = |name: &'static str, orders: &Sender<Order>| Desk {
        name,
        orders: orders.clone(),
        updates: None,
        scheduler: scheduler.clone(),
        supervisor: supervisor.clone(),
        alarm: alarm.clone(),
    };
    let dense = actor(capacity, |_| DenseActor::new(desk("dense", &executor)));
    let gate = actor(capacity, |_| GateActor::new(desk("gate", &executor)));
    let expert = actor(capacity, |_| ExpertActor::new(desk("expert", &executor)));
    let (mut source, mut optimizer, mut communicator) = (None, None, None);
    let (mut commits, mut committer) = (None, None);
    if let Some((dense, commit, updates, reader, exchange)) = trained {
        source = Some(actor(capacity, |_| Source::new(desk("source", &reader))));
        optimizer = Some(actor(capacity, |_| {
            OptimizerActor::new(desk("optimizer", &executor)).with_own(updates)
        }));
        communicator = exchange
            .map(|orders| actor(capacity, |_| Communicator::new(desk("communicator", &orders))));
        let (outbox, inbox) = unbounded();
        commits = Some((dense, outbox));
        committer = Some((commit, inbox));
    }

    let prefetcher = actor(capacity, |_| {
        Prefetcher::new(Parts {
            cache: Arc::clone(&spec.cache),
            backing: spec.backing,
            io: spec.io.service,
            commits,
            meter: Arc::clone(&meter),
            scheduler: scheduler.clone(),
            supervisor: supervisor.clone(),
            alarm: alarm.clone(),
            clock,
            spans: spec.spans.clone(),
            accesses: spec.accesses,
        })
    });
    drop(spec.io.prefetcher.set(prefetcher.clone()));
    let (nudged, nudge_alarm) = (prefetcher.downgrade(), alarm.clone());
    spec.cache.on_moves(move || {
        if let Some(prefetcher) = nudged.upgrade() {
            send(&prefetcher, Nudge, &nudge_alarm);
        }
    });
    if let Some((commit, inbox)) = committer {
        let prefetcher = prefetcher.clone();
        workers.push(start_committer(rank, commit, inbox, prefetcher, alarm.clone())?);
    }

    let sink = actor(capacity, |_| Sink::new(meter, alarm.clone(), clock.now()));
    drop(posts.set(Posts {
        source: source.clone(),
        dense: dense.clone(),
        gate: gate.clone(),
        expert: expert.clone(),
        optimizer: optimizer.clone(),
        communicator: communicator.clone(),
    }));
    let crew =
        Crew { source, dense, gate, expert, optimizer, communicator, prefetcher, sink, supervisor };
    send(&scheduler, Start(crew.clone()), &alarm);
    Ok((scheduler, crew, workers))
}

/// To whom a worker's results go when the task does not tell.
#[derive(Debug, Clone, Copy)]
enum Post {
    Source,
    Communicator,
}

/// Who takes what the workers finish.
#[derive(Debug)]
struct Posts {
    source: Option<Addr<Source>>,
    dense: Addr<DenseActor>,
    gate: Addr<GateActor>,
    expert: Addr<ExpertActor>,
    optimizer: Option<Addr<OptimizerActor>>,
    communicator: Option<Addr<Communicator>>,
}

impl Posts {
    fn deliver(&self, to: Option<Post>, finished: Finished, alarm: &Alarm) {
        match (to, finished.task.work.job()) {
            (Some(Post::Source), _) => send_to(self.source.as_ref(), finished, alarm),
            (Some(Post::Communicator), _) => {
                send_to(self.communicator.as_ref(), finished, alarm);
            }
            (None, Some(Job::Gate)) => send(&self.gate, finished, alarm),
            (None, Some(Job::Expert)) => send(&self.expert, finished, alarm),
            (None, Some(Job::Optimizer)) => send_to(self.optimizer.as_ref(), finished, alarm),
            (None, Some(Job::Dense) | None) => send(&self.dense, finished, alarm),
        }
    }
}

fn start_committer(
    rank: usize,
    mut commit: Commit,
    inbox: Receiver<Committing>,
    prefetcher: Addr<Prefetcher>,
    alarm: Alarm,
) -> Result<JoinHandle<()>> {
    let name = format!("rank{rank}-commit");
    std::thread::Builder::new()
        .name(name.clone())
        .spawn(move || {
            for committing in inbox {
                let step = committing.step();
                let _span = tracing::info_span!("make durable", lane = "commit", step).entered();
                let result = worker::guarded(|| commit(&committing));
                send(&prefetcher, CommitFinished { commit: committing, result }, &alarm);
            }
        })
        .map_err(|e| Error::io(format!("cannot start thread {name}"), e))
}
