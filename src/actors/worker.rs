//! Worker threads: they run a stage, one task after another, and tell when each is done.
//!
//! A worker is reached over a crossbeam channel, which spins shortly before it parks, so a
//! thread that is kept busy is never woken through the kernel. A panic in a stage is caught and
//! becomes the error of its task.

use super::message::{Finished, Run};
use super::stage::{Incoming, MakeStage, Outcome, Stage};
use crate::base::clock::{Clock, RealClock};
use crate::base::{Error, Result};
use crate::graph::planner::Task;
use crate::model::kernels::parallel::set_threads;
use crate::storage::lease::Lease;
use crossbeam_channel::{Receiver, Sender, unbounded};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::JoinHandle;

/// What a worker is told.
#[derive(Debug)]
pub enum Order {
    Run(Box<Run>),
    /// What a collective or the source brought for a task that will be run later.
    Deliver(Task, Incoming),
}

/// Takes what a worker has finished.
pub type OnFinished = Box<dyn Fn(Finished) + Send>;

/// A thread that runs a stage. Ends when the last sender is dropped.
#[derive(Debug)]
pub struct Worker {
    pub orders: Sender<Order>,
    pub thread: JoinHandle<()>,
}

/// Starts a worker; `make` builds the stage on its thread. The channel is bounded by the
/// credits of the lanes that feed it.
pub fn start(
    name: String,
    clock: RealClock,
    make: MakeStage,
    on_finished: OnFinished,
) -> Result<Worker> {
    let (orders, inbox) = unbounded();
    let thread = std::thread::Builder::new()
        .name(name.clone())
        .spawn(move || run(&inbox, clock, make, &on_finished))
        .map_err(|e| Error::io(format!("cannot start thread {name}"), e))?;
    Ok(Worker { orders, thread })
}

fn run(inbox: &Receiver<Order>, clock: RealClock, make: MakeStage, on_finished: &OnFinished) {
    // A stage that cannot be made fails the first task it is given. One that computes in parallel
    // asks for its threads; the others must not have libtorch start a pool for them.
    let mut stage = guarded(|| {
        set_threads(1)?;
        make()
    });
    let mut undelivered = None;
    for order in inbox {
        match order {
            Order::Deliver(task, incoming) => {
                if let Ok(stage) = &mut stage {
                    let delivered = guarded(|| stage.deliver(task, incoming));
                    undelivered = undelivered.or(delivered.err());
                }
            }
            Order::Run(run) => {
                let Run { node, task, mut lease } = *run;
                let start = clock.now();
                let result = match (undelivered.take(), &mut stage) {
                    (Some(error), _) => Err(error),
                    (None, Ok(stage)) => guarded(|| run_task(stage.as_mut(), task, &mut lease)),
                    (None, Err(error)) => Err(std::mem::replace(
                        error,
                        Error::bug("the stage of this worker could not be made"),
                    )),
                };
                let end = clock.now();
                on_finished(Finished { node, task, result, lease, start, end });
            }
        }
    }
}

fn run_task(stage: &mut dyn Stage, task: Task, lease: &mut Lease) -> Result<Outcome> {
    let outcome = stage.run(task, lease)?;
    // A block that the stage changes in name alone must not go back with a checksum of whatever it
    // is now.
    lease.verify()?;
    Ok(outcome)
}

/// Runs `body`, turning a panic into an error.
pub fn guarded<T>(body: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|panic| {
        let text = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("no message");
        Err(Error::bug(format!("a worker panicked: {text}")))
    })
}
