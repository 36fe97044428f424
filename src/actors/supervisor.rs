//! The supervisor: keeps the first failure of a rank, halts the scheduler, and ends the rank
//! when nothing is outstanding any more, or after a patience if something hangs.

use super::link::{Alarm, RankEvent, send};
use super::message::Failure;
use super::scheduler::{Halt, Scheduler};
use crate::base::{Error, ErrorKind};
use crate::observable;
use actix::{Actor, ActorContext, Addr, AsyncContext, Context, Handler, Message, System};
use serde::Serialize;
use std::time::Duration;

/// Nothing is outstanding on the scheduler, and nothing will be.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Drained;

/// See the module.
#[derive(Debug)]
pub struct Supervisor {
    scheduler: Option<Addr<Scheduler>>,
    alarm: Alarm,
    /// How long outstanding work may take to end after a failure.
    patience: Duration,
    failure: Option<Failure>,
    failures: u64,
}

/// Introduces the scheduler.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Watch(pub Addr<Scheduler>);

impl Supervisor {
    pub fn new(alarm: Alarm, patience: Duration) -> Self {
        Self { scheduler: None, alarm, patience, failure: None, failures: 0 }
    }

    fn state(&self) -> impl Serialize + use<> {
        let failed = self.failure.as_ref().map(|failure| failure.error.to_string());
        serde_json::json!({ "failures": self.failures, "first": failed })
    }

    fn end(&mut self, ctx: &mut Context<Self>) {
        let error = self.failure.take().map(|failure| {
            let error = failure.error.with("actor", failure.actor);
            match failure.task {
                Some(task) => error.with("step", task.step).with("node", task.work),
                None => error,
            }
        });
        self.alarm.tell(RankEvent::Ended(error));
        ctx.stop();
        System::current().stop();
    }
}

impl Actor for Supervisor {
    type Context = Context<Self>;
}

impl Handler<Watch> for Supervisor {
    type Result = ();

    fn handle(&mut self, Watch(scheduler): Watch, _: &mut Self::Context) {
        self.scheduler = Some(scheduler);
    }
}

impl Handler<Failure> for Supervisor {
    type Result = ();

    fn handle(&mut self, failure: Failure, ctx: &mut Self::Context) {
        self.failures += 1;
        if let Some(scheduler) = &self.scheduler {
            send(scheduler, Halt { node: failure.node }, &self.alarm);
        }
        if self.failure.is_some() {
            return;
        }
        self.failure = Some(failure);
        ctx.run_later(self.patience, |supervisor, ctx| {
            tracing::error!("work outstanding after a failure did not end; the rank ends anyway");
            supervisor.end(ctx);
        });
    }
}

impl Handler<Drained> for Supervisor {
    type Result = ();

    fn handle(&mut self, _: Drained, ctx: &mut Self::Context) {
        self.end(ctx);
    }
}

observable!(Supervisor, "supervisor");

/// The error of a run over several ranks: the cause rather than its echo on the peers.
pub fn first_cause(errors: Vec<(usize, Error)>) -> Option<Error> {
    let echo = |error: &Error| error.kind() == ErrorKind::Peer;
    let mut errors = errors;
    errors.sort_by_key(|(rank, error)| (echo(error), *rank));
    errors.into_iter().next().map(|(rank, error)| error.with("rank", rank))
}
