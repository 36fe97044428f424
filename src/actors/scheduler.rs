//! The scheduler: feeds facts to the planner and events to the engine, and carries out what the
//! engine commands. It decides nothing itself.

use super::communicator::Communicator;
use super::compute::{DenseActor, ExpertActor, GateActor, Job, OptimizerActor};
use super::link::{Alarm, send, send_to};
use super::message::{
    Acquire, CommitRun, Directive, Failure, Foresee, Granted, News, NodeDone, Release, Run,
};
use super::prefetcher::Prefetcher;
use super::script::Script;
use super::sink::{PassEnded, Sink};
use super::source::Source;
use super::spans::Spans;
use super::stage::PassNumbers;
use super::supervisor::{Drained, Supervisor};
use crate::base::clock::{Clock, RealClock};
use crate::base::{Error, Result};
use crate::graph::planner::{Need, Pass, Plan, Planned, Planner, Use, Work};
use crate::graph::{Accounting, Cause, Command, Engine, Event, Lane, NodeId};
use crate::observable;
use crate::storage::hierarchy::Outcome as BlockOutcome;
use crate::storage::lease::Lease;
use actix::{Actor, Addr, Context, Handler, Message};
use std::collections::{HashMap, VecDeque};

/// Addresses of the actors that run nodes; those of training alone may be missing.
#[derive(Debug, Clone)]
pub struct Crew {
    pub source: Option<Addr<Source>>,
    pub dense: Addr<DenseActor>,
    pub gate: Addr<GateActor>,
    pub expert: Addr<ExpertActor>,
    pub optimizer: Option<Addr<OptimizerActor>>,
    pub communicator: Option<Addr<Communicator>>,
    pub prefetcher: Addr<Prefetcher>,
    pub sink: Addr<Sink>,
    pub supervisor: Addr<Supervisor>,
}

/// A node that runs.
#[derive(Debug)]
struct Issued {
    lane: Lane,
    cause: Cause,
    needs: Vec<Need>,
}

/// See the module.
pub struct Scheduler {
    engine: Engine<Planned>,
    planner: Box<dyn Planner>,
    accounting: Accounting,
    clock: RealClock,
    script: Box<dyn Script>,
    alarm: Alarm,
    crew: Option<Crew>,
    granted: HashMap<NodeId, Lease>,
    issued: HashMap<NodeId, Issued>,
    /// The step of the last commit that was begun: what changes later belongs to a later one.
    commit_step: u64,
    /// Directives that wait for the current pass to end.
    waiting: VecDeque<Directive>,
    in_pass: bool,
    finishing: bool,
    failed: bool,
    snapshot: Option<Vec<u8>>,
    keep: VecDeque<Option<String>>,
    spans: Spans,
}

/// Introduces the crew; sent once, before anything else.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Start(pub Crew);

/// Issue nothing more: sent by the supervisor after a failure.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Halt {
    /// The node that failed, if it was one that had been issued or asked for blocks.
    pub node: Option<NodeId>,
}

impl Scheduler {
    pub fn new(
        engine: Engine<Planned>,
        planner: Box<dyn Planner>,
        clock: RealClock,
        script: Box<dyn Script>,
        alarm: Alarm,
        committed: u64,
        spans: Spans,
    ) -> Self {
        Self {
            engine,
            planner,
            accounting: Accounting::new(clock.now()),
            clock,
            script,
            alarm,
            crew: None,
            granted: HashMap::new(),
            issued: HashMap::new(),
            commit_step: committed,
            waiting: VecDeque::new(),
            in_pass: false,
            finishing: false,
            failed: false,
            snapshot: None,
            keep: VecDeque::new(),
            spans,
        }
    }

    fn state(&self) -> impl serde::Serialize + use<> {
        self.engine.state()
    }

    /// Feeds one event, then carries out commands until none are left.
    fn feed(&mut self, event: Event<Planned>) {
        if let Err(error) = self.try_feed(event) {
            self.fail(error);
        }
    }

    fn fail(&mut self, error: Error) {
        self.failed = true;
        if let Some(crew) = &self.crew {
            let failure = Failure { actor: "scheduler", node: None, task: None, error };
            send(&crew.supervisor, failure, &self.alarm);
        }
    }

    fn try_feed(&mut self, event: Event<Planned>) -> Result<()> {
        let mut commands = Vec::new();
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            self.engine.on(self.clock.now(), event, &mut commands)?;
            for command in commands.drain(..) {
                match command {
                    Command::Acquire(node) => self.acquire(node),
                    Command::Issue(node, planned, lane, cause) => {
                        if planned.task.work == Work::Join {
                            events.push_back(Event::Done(node));
                            continue;
                        }
                        self.accounting.issued(node, lane, cause);
                        self.issue(node, planned, lane, cause);
                    }
                    Command::Drained => {
                        if let Some(crew) = &self.crew {
                            send(&crew.supervisor, Drained, &self.alarm);
                        }
                    }
                }
            }
        }
        Ok(())
    }

    fn acquire(&self, node: NodeId) {
        let (Some(crew), Some(planned)) = (&self.crew, self.engine.kind(node)) else { return };
        let priority = self.engine.priority(node).unwrap_or_default();
        let acquire = Acquire { node, priority, needs: planned.needs.clone() };
        send(&crew.prefetcher, acquire, &self.alarm);
    }

    fn issue(&mut self, node: NodeId, planned: Planned, lane: Lane, cause: Cause) {
        let Some(crew) = &self.crew else { return };
        let lease = self.granted.remove(&node).unwrap_or_default();
        let task = planned.task;
        self.issued.insert(node, Issued { lane, cause, needs: planned.needs });
        let run = Run { node, task, lease };
        let alarm = &self.alarm;
        match (task.work.job(), task.work) {
            (Some(Job::Gate), _) => send(&crew.gate, run, alarm),
            (Some(Job::Dense), _) => send(&crew.dense, run, alarm),
            (Some(Job::Expert), _) => send(&crew.expert, run, alarm),
            (Some(Job::Optimizer), _) => send_to(crew.optimizer.as_ref(), run, alarm),
            (None, Work::Batch) => send_to(crew.source.as_ref(), run, alarm),
            (None, Work::Commit) => {
                let meta = self.snapshot.take().unwrap_or_default();
                let keep = self.keep.pop_front().flatten();
                send(&crew.prefetcher, CommitRun { node, task, meta, keep }, alarm);
            }
            (None, _) => send_to(crew.communicator.as_ref(), run, alarm),
        }
    }

    fn add(&mut self, plan: Plan) {
        if let Some(crew) = &self.crew
            && !plan.ahead.is_empty()
        {
            send(&crew.prefetcher, Foresee { ahead: plan.ahead }, &self.alarm);
        }
        if !plan.nodes.is_empty() {
            self.feed(Event::Add(plan.nodes));
        }
    }

    fn release(&mut self, done: &NodeDone, needs: Vec<Need>) {
        let Some(crew) = &self.crew else { return };
        let outcomes = needs
            .into_iter()
            .map(|need| {
                let outcome = match need.access {
                    Use::Read => BlockOutcome::Clean,
                    Use::Update | Use::Create => BlockOutcome::Dirty,
                    Use::Consume => BlockOutcome::Discard,
                };
                (need.block, outcome)
            })
            .collect();
        let applied = match done.task.work {
            Work::Update { number, .. } => number,
            Work::CatchUp { to, .. } => to,
            _ => 0,
        };
        // A replay in an evaluation after the commit of its step belongs to the next commit.
        let version = match done.task.pass {
            Pass::Train => done.task.step,
            Pass::Forward(_) => done.task.step.max(self.commit_step + 1),
        };
        let (node, crc) = (done.node, done.outcome.crc);
        let release = Release { node, outcomes, applied, version, crc };
        send(&crew.prefetcher, release, &self.alarm);
    }

    fn end_pass(&mut self, done: &mut NodeDone) {
        self.in_pass = false;
        let numbers: Box<PassNumbers> = done.outcome.numbers.take().unwrap_or_default();
        let ended = PassEnded {
            task: done.task,
            numbers,
            accounting: self.accounting.report(),
            at: done.end,
        };
        if let Some(crew) = &self.crew {
            send(&crew.sink, ended, &self.alarm);
        }
    }

    /// Begins what comes next, if nothing is in the way.
    fn advance(&mut self) {
        while !self.in_pass && !self.failed {
            let Some(directive) = self.waiting.pop_front().or_else(|| self.script.next()) else {
                break;
            };
            let mut plan = Plan::default();
            match directive {
                Directive::Pass { step, pass } => {
                    self.in_pass = true;
                    self.spans.begin_step(step);
                    self.planner.begin(step, pass, &mut plan);
                }
                Directive::CatchUp => {
                    self.planner.catch_up_all(&mut plan);
                }
                Directive::Commit { keep } => {
                    self.keep.push_back(keep);
                    self.commit_step = self.planner.step();
                    self.planner.commit(&mut plan);
                }
                Directive::Wake => {}
                Directive::Finish => {
                    self.finishing = true;
                    break;
                }
            }
            self.add(plan);
        }
        self.maybe_finish();
    }

    fn maybe_finish(&mut self) {
        if self.finishing
            && !self.failed
            && self.engine.is_idle()
            && let Some(crew) = &self.crew
        {
            self.finishing = false;
            send(&crew.supervisor, Drained, &self.alarm);
        }
    }
}

impl Actor for Scheduler {
    type Context = Context<Self>;
}

impl Handler<Start> for Scheduler {
    type Result = ();

    fn handle(&mut self, Start(crew): Start, _: &mut Self::Context) {
        self.crew = Some(crew);
        self.advance();
    }
}

impl Handler<Directive> for Scheduler {
    type Result = ();

    fn handle(&mut self, directive: Directive, _: &mut Self::Context) {
        self.waiting.push_back(directive);
        self.advance();
    }
}

impl Handler<Granted> for Scheduler {
    type Result = ();

    fn handle(&mut self, granted: Granted, _: &mut Self::Context) {
        self.granted.insert(granted.node, granted.lease);
        self.feed(Event::Granted(granted.node));
    }
}

impl Handler<NodeDone> for Scheduler {
    type Result = ();

    fn handle(&mut self, mut done: NodeDone, _: &mut Self::Context) {
        let now = self.clock.now();
        if let Some(Issued { lane, cause, needs }) = self.issued.remove(&done.node) {
            if !needs.is_empty() {
                self.release(&done, needs);
            }
            self.spans.node(done.node, lane, done.task, &cause, (done.start, done.end));
            if lane == Lane::Compute {
                self.accounting.busy(done.node, done.start, done.end);
            }
        }
        self.accounting.done(now, done.node);
        if let Some(snapshot) = done.outcome.snapshot.take() {
            self.snapshot = Some(snapshot);
        }
        self.feed(Event::Done(done.node));
        if self.failed {
            return;
        }
        let fact = done.fact();
        let mut plan = Plan::default();
        self.planner.on_done(done.task, &fact, &mut plan);
        self.add(plan);
        if self.planner.ends_step(done.task, &fact) {
            self.end_pass(&mut done);
            self.advance();
        } else {
            self.maybe_finish();
        }
    }
}

impl Handler<News> for Scheduler {
    type Result = ();

    fn handle(&mut self, news: News, _: &mut Self::Context) {
        if self.failed {
            return;
        }
        let mut plan = Plan::default();
        self.planner.on_news(news.task, &news.fact, &mut plan);
        self.add(plan);
    }
}

impl Handler<Halt> for Scheduler {
    type Result = ();

    fn handle(&mut self, halt: Halt, _: &mut Self::Context) {
        self.failed = true;
        match halt.node {
            Some(node) => self.feed(Event::Failed(node)),
            None => self.feed(Event::Stop),
        }
    }
}

observable!(Scheduler, "scheduler");
