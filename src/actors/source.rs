//! The source: loads the sequences of a pass on a reader thread and hands them to the executor.

use super::compute::{Books, Desk};
use super::message::{Finished, Run};
use super::stage::{BatchSource, Incoming, Outcome, Stage};
use super::worker::Order;
use crate::base::{Error, Result};
use crate::graph::planner::Task;
use crate::observable;
use crate::storage::lease::Lease;
use actix::{Actor, Context, Handler};
use crossbeam_channel::Sender;

/// The reader thread's body.
pub struct Reader {
    source: Box<dyn BatchSource>,
    executor: Sender<Order>,
}

impl Reader {
    pub fn new(source: Box<dyn BatchSource>, executor: Sender<Order>) -> Self {
        Self { source, executor }
    }
}

impl Stage for Reader {
    fn run(&mut self, task: Task, _: &mut Lease) -> Result<Outcome> {
        let batch = self.source.batch(task.step, task.pass)?;
        // An executor that has gone told why itself.
        drop(self.executor.send(Order::Deliver(task, Incoming::Batch(batch))));
        Ok(Outcome::default())
    }

    fn deliver(&mut self, _: Task, _: Incoming) -> Result<()> {
        Err(Error::bug("nothing is delivered to the reader"))
    }
}

/// See the module.
#[derive(Debug)]
pub struct Source {
    desk: Desk,
    batches: u64,
}

impl Source {
    pub fn new(desk: Desk) -> Self {
        Self { desk: Desk { name: "source", ..desk }, batches: 0 }
    }

    fn state(&self) -> Books {
        Books { done: self.batches, ..Books::default() }
    }
}

impl Actor for Source {
    type Context = Context<Self>;
}

impl Handler<Run> for Source {
    type Result = ();

    fn handle(&mut self, run: Run, _: &mut Self::Context) {
        self.desk.hand_over(run);
    }
}

impl Handler<Finished> for Source {
    type Result = ();

    fn handle(&mut self, finished: Finished, _: &mut Self::Context) {
        self.batches += 1;
        self.desk.pass_on(finished);
    }
}

observable!(Source, "source");
