//! The communicator: carries out collectives on a thread of its own.
//!
//! The executor stages what it sends with the task that will send it; the engine issues the
//! tasks in one order on every rank; what arrives is moved to the executor before the task
//! counts as done. So an exchange runs while experts compute, and nobody waits inside a task.

use super::compute::{Books, Desk};
use super::message::{Finished, Run};
use super::stage::{Incoming, Outcome, Outgoing, Stage};
use super::worker::Order;
use crate::base::{Error, Result};
use crate::comm::Collective;
use crate::graph::planner::{Fact, Task, Work};
use crate::observable;
use crate::storage::lease::Lease;
use actix::{Actor, Context, Handler};
use crossbeam_channel::{Receiver, Sender};
use std::collections::HashMap;
use std::time::Duration;
use tch::Tensor;

/// Where the executor puts what it sends.
pub type Staging = Sender<(Task, Outgoing)>;

/// The comm thread's body.
pub struct Exchange {
    collective: Box<dyn Collective>,
    staged: Receiver<(Task, Outgoing)>,
    waiting: HashMap<Task, Outgoing>,
    executor: Sender<Order>,
    /// How long the executor may take to stage its data.
    patience: Duration,
}

impl Exchange {
    pub fn new(
        collective: Box<dyn Collective>,
        staged: Receiver<(Task, Outgoing)>,
        executor: Sender<Order>,
        patience: Duration,
    ) -> Self {
        Self { collective, staged, waiting: HashMap::new(), executor, patience }
    }

    /// What the executor staged for `task`. The engine may issue a task while the executor is
    /// still packing for it. An executor that failed stages nothing, and it waits for this
    /// thread's orders to end: hence the patience.
    fn staged_for(&mut self, task: Task) -> Result<Outgoing> {
        loop {
            if let Some(outgoing) = self.waiting.remove(&task) {
                return Ok(outgoing);
            }
            let (task, outgoing) = self.staged.recv_timeout(self.patience).map_err(|_| {
                Error::bug("the executor did not stage its data").with("task", task.work)
            })?;
            self.waiting.insert(task, outgoing);
        }
    }

    /// `[peer][tensor]` to everyone, `[source][tensor]` from everyone.
    fn all_to_all(&mut self, outgoing: Vec<Vec<Tensor>>) -> Result<Vec<Vec<Tensor>>> {
        let kinds = outgoing.first().map_or(0, Vec::len);
        let ranks = outgoing.len();
        let mut columns: Vec<Vec<Tensor>> = (0..kinds).map(|_| Vec::with_capacity(ranks)).collect();
        for to_peer in outgoing {
            for (column, tensor) in columns.iter_mut().zip(to_peer) {
                column.push(tensor);
            }
        }
        // All columns are in flight together.
        let handles = columns
            .into_iter()
            .map(|column| self.collective.all_to_all_v(column))
            .collect::<Result<Vec<_>>>()?;
        let mut incoming: Vec<Vec<Tensor>> = (0..ranks).map(|_| Vec::new()).collect();
        for handle in handles {
            for (from, tensor) in incoming.iter_mut().zip(handle.wait()?) {
                from.push(tensor);
            }
        }
        Ok(incoming)
    }
}

/// Tokens that the local experts got: the first tensor of a dispatch is its counts.
fn tokens_of(task: Task, incoming: &Incoming) -> Result<Option<Fact>> {
    let (Work::Dispatch { layer, mb }, Incoming::AllToAll(from)) = (task.work, incoming) else {
        return Ok(None);
    };
    let mut counts: Vec<u32> = Vec::new();
    for tensors in from {
        let Some(header) = tensors.first() else { continue };
        let local = Vec::<i64>::try_from(header)?;
        counts.resize(local.len(), 0);
        for (sum, n) in counts.iter_mut().zip(local) {
            *sum += n as u32;
        }
    }
    Ok(Some(Fact::Tokens { layer, mb, counts }))
}

impl Stage for Exchange {
    fn run(&mut self, task: Task, _: &mut Lease) -> Result<Outcome> {
        let outgoing = self.staged_for(task)?;
        let incoming = match outgoing {
            Outgoing::AllToAll(tensors) => Incoming::AllToAll(self.all_to_all(tensors)?),
            Outgoing::AllGather(tensor) => {
                Incoming::AllGather(self.collective.all_gather(tensor)?.wait()?)
            }
            Outgoing::AllReduce(tensor) => {
                Incoming::AllReduce(self.collective.all_reduce_sum(tensor)?)
            }
        };
        let fact = tokens_of(task, &incoming)?;
        drop(self.executor.send(Order::Deliver(task, incoming)));
        Ok(Outcome { fact, ..Outcome::default() })
    }

    fn deliver(&mut self, _: Task, _: Incoming) -> Result<()> {
        Err(Error::bug("nothing is delivered to the communicator"))
    }
}

/// See the module.
#[derive(Debug)]
pub struct Communicator {
    desk: Desk,
    books: Books,
}

impl Communicator {
    pub fn new(desk: Desk) -> Self {
        Self { desk: Desk { name: "communicator", ..desk }, books: Books::default() }
    }

    fn state(&self) -> Books {
        self.books
    }
}

impl Actor for Communicator {
    type Context = Context<Self>;
}

impl Handler<Run> for Communicator {
    type Result = ();

    fn handle(&mut self, run: Run, _: &mut Self::Context) {
        self.books.issued += 1;
        self.desk.hand_over(run);
    }
}

impl Handler<Finished> for Communicator {
    type Result = ();

    fn handle(&mut self, finished: Finished, _: &mut Self::Context) {
        self.books.digest(&finished);
        self.desk.pass_on(finished);
    }
}

observable!(Communicator, "communicator");
