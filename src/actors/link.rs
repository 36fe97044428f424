//! The one place that sends between actors.
//!
//! A mailbox is sized from the lanes' credits, so a full one is a bug: it is reported as a
//! failure of the rank instead of being waited for. A closed mailbox means that the rank is
//! shutting down, when messages have no reader any more.

use crate::base::{Error, ErrorKind};
use actix::dev::ToEnvelope;
use actix::prelude::SendError;
use actix::{Actor, Addr, Handler, Message};
use crossbeam_channel::Sender;

/// What a rank tells the trainer that started it.
#[derive(Debug)]
pub enum RankEvent {
    /// A pass ended.
    Pass(Box<super::sink::PassReport>),
    /// A commit is durable.
    Committed { step: u64, seconds: f64 },
    /// The rank ended: with the first error that happened in it, if any.
    Ended(Option<Error>),
}

/// How failures that no actor can handle reach the trainer.
#[derive(Debug, Clone)]
pub struct Alarm {
    events: Sender<(usize, RankEvent)>,
    rank: usize,
}

impl Alarm {
    pub fn new(rank: usize, events: Sender<(usize, RankEvent)>) -> Self {
        Self { events, rank }
    }

    /// Tells the trainer; one that has gone needs no news.
    pub fn tell(&self, event: RankEvent) {
        drop(self.events.send((self.rank, event)));
    }
}

/// Sends `message` to an actor; see the module's law about full mailboxes.
pub fn send<A, M>(to: &Addr<A>, message: M, alarm: &Alarm)
where
    A: Actor + Handler<M>,
    A::Context: ToEnvelope<A, M>,
    M: Message + Send + 'static,
    M::Result: Send,
{
    if let Err(SendError::Full(_)) = to.try_send(message) {
        let error = Error::new(ErrorKind::Bug, "a mailbox is full, which credits should prevent")
            .with("actor", std::any::type_name::<A>())
            .with("message", std::any::type_name::<M>());
        alarm.tell(RankEvent::Ended(Some(error)));
    }
}

/// Sends to an actor that only some ranks have. A planner that plans work for one that is missing
/// is a bug.
pub fn send_to<A, M>(to: Option<&Addr<A>>, message: M, alarm: &Alarm)
where
    A: Actor + Handler<M>,
    A::Context: ToEnvelope<A, M>,
    M: Message + Send + 'static,
    M::Result: Send,
{
    match to {
        Some(to) => send(to, message, alarm),
        None => {
            let error = Error::bug("a rank has no such actor")
                .with("actor", std::any::type_name::<A>())
                .with("message", std::any::type_name::<M>());
            alarm.tell(RankEvent::Ended(Some(error)));
        }
    }
}
