//! The actors whose work runs on the executor thread: gate, dense, expert and optimizer.
//!
//! Each hands its nodes to the executor, keeps the books of its own job, and passes what became
//! known on to the scheduler. The optimizer may have a thread of its own instead.

use super::link::{Alarm, send};
use super::message::{Failure, Finished, NodeDone, Run};
use super::scheduler::Scheduler;
use super::supervisor::Supervisor;
use super::worker::Order;
use crate::graph::planner::{Fact, Work};
use crate::observable;
use actix::{Actor, Addr, Context, Handler};
use crossbeam_channel::Sender;
use serde::Serialize;

/// What the compute actors have in common: where nodes go, and where news goes.
#[derive(Debug, Clone)]
pub struct Desk {
    pub name: &'static str,
    pub orders: Sender<Order>,
    /// Where expert updates go instead.
    pub updates: Option<Sender<Order>>,
    pub scheduler: Addr<Scheduler>,
    pub supervisor: Addr<Supervisor>,
    pub alarm: Alarm,
}

impl Desk {
    /// Hands a node to the worker. A worker that has gone reported why when it went.
    pub fn hand_over(&self, run: Run) {
        let is_update = matches!(run.task.work, Work::Update { .. } | Work::CatchUp { .. });
        let own = self.updates.as_ref().filter(|_| is_update);
        drop(own.unwrap_or(&self.orders).send(Order::Run(Box::new(run))));
    }

    /// Tells the scheduler that a node is done, or the supervisor that it failed.
    pub fn pass_on(&self, finished: Finished) {
        let Finished { node, task, result, lease, start, end } = finished;
        match result {
            Ok(outcome) => {
                let done = NodeDone { node, task, outcome, lease, start, end };
                send(&self.scheduler, done, &self.alarm);
            }
            Err(error) => {
                let failure =
                    Failure { actor: self.name, node: Some(node), task: Some(task), error };
                send(&self.supervisor, failure, &self.alarm);
            }
        }
    }
}

/// Counts that every compute actor keeps.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Books {
    pub issued: u64,
    pub done: u64,
    pub busy_seconds: f64,
    /// Tokens routed (gate) or experts' nodes that saw tokens.
    pub tokens: u64,
}

impl Books {
    pub fn digest(&mut self, finished: &Finished) {
        self.done += 1;
        self.busy_seconds += finished.end.saturating_sub(finished.start) as f64 * 1e-9;
        let fact = finished.result.as_ref().ok().and_then(|outcome| outcome.fact.as_ref());
        self.tokens += match fact {
            Some(Fact::Tokens { counts, .. }) => counts.iter().map(|&n| u64::from(n)).sum(),
            Some(Fact::LayerTokens { counts, .. }) => {
                counts.iter().flatten().map(|&n| u64::from(n)).sum()
            }
            _ => 0,
        };
    }
}

macro_rules! compute_actor {
    ($(#[$doc:meta])* $actor:ident, $name:literal) => {
        $(#[$doc])*
        #[derive(Debug)]
        pub struct $actor {
            desk: Desk,
            books: Books,
        }

        impl $actor {
            pub fn new(desk: Desk) -> Self {
                Self { desk: Desk { name: $name, ..desk }, books: Books::default() }
            }

            fn state(&self) -> Books {
                self.books
            }
        }

        impl Actor for $actor {
            type Context = Context<Self>;
        }

        impl Handler<Run> for $actor {
            type Result = ();

            fn handle(&mut self, run: Run, _: &mut Self::Context) {
                self.books.issued += 1;
                self.desk.hand_over(run);
            }
        }

        impl Handler<Finished> for $actor {
            type Result = ();

            fn handle(&mut self, finished: Finished, _: &mut Self::Context) {
                self.books.digest(&finished);
                self.desk.pass_on(finished);
            }
        }

        observable!($actor, $name);
    };
}

compute_actor!(
    /// Chooses experts for tokens, and carries gradients back through the choice.
    GateActor,
    "gate"
);
compute_actor!(
    /// Attention, norms, embedding, head and loss, forward and backward.
    DenseActor,
    "dense"
);
compute_actor!(
    /// Experts, forward and backward.
    ExpertActor,
    "expert"
);
compute_actor!(
    /// Updates parameters; expert updates on the optimizer's thread, if it has one.
    OptimizerActor,
    "optimizer"
);

impl OptimizerActor {
    /// Expert updates go to `orders`; all else stays with the executor.
    #[must_use]
    pub fn with_own(mut self, orders: Sender<Order>) -> Self {
        self.desk.updates = Some(orders);
        self
    }
}

/// Which compute actor a task belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Job {
    Gate,
    Dense,
    Expert,
    Optimizer,
}

impl Work {
    /// The job that this work belongs to; `None` for what the executor does not run.
    pub fn job(&self) -> Option<Job> {
        match self {
            Self::Gate { .. } | Self::Route { .. } | Self::GateGrad { .. } => Some(Job::Gate),
            Self::Dense { .. }
            | Self::Head { .. }
            | Self::Totals
            | Self::DenseGrad { .. }
            | Self::Norm
            | Self::Advance { .. }
            | Self::Snapshot => Some(Job::Dense),
            Self::Expert { .. } | Self::ExpertGrad { .. } => Some(Job::Expert),
            Self::Update { .. }
            | Self::CatchUp { .. }
            | Self::DropGrad { .. }
            | Self::UpdateDense => Some(Job::Optimizer),
            _ => None,
        }
    }
}
