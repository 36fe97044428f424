//! Every actor can tell its state as a serialisable value.

use super::rank::Rank;
use crate::base::{Error, Result};
use actix::dev::ToEnvelope;
use actix::{Actor, Addr, Handler, Message, MessageResponse};
use serde::Serialize;
use serde_json::Value;
use std::time::Duration;

/// Asks an actor for its state.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "State")]
pub struct Observe;

/// An actor's name and state.
#[derive(Debug, Clone, Serialize, MessageResponse)]
pub struct State {
    pub actor: &'static str,
    pub state: Value,
}

/// Asks every actor of a rank, from a thread that is none of its own. An actor that does not
/// answer within `patience`, or has ended, tells that instead.
///
/// # Errors
/// Io if the calling thread cannot wait.
pub fn states(rank: &Rank, patience: Duration) -> Result<Vec<State>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .map_err(|e| Error::io("cannot wait for the actors' states", e))?;
    let crew = &rank.crew;
    let states = async {
        let mut states = vec![
            ask("scheduler", &rank.scheduler, patience).await,
            ask("dense", &crew.dense, patience).await,
            ask("gate", &crew.gate, patience).await,
            ask("expert", &crew.expert, patience).await,
            ask("prefetcher", &crew.prefetcher, patience).await,
            ask("sink", &crew.sink, patience).await,
            ask("supervisor", &crew.supervisor, patience).await,
        ];
        if let Some(source) = &crew.source {
            states.push(ask("source", source, patience).await);
        }
        if let Some(optimizer) = &crew.optimizer {
            states.push(ask("optimizer", optimizer, patience).await);
        }
        if let Some(communicator) = &crew.communicator {
            states.push(ask("communicator", communicator, patience).await);
        }
        states
    };
    Ok(runtime.block_on(states))
}

async fn ask<A>(actor: &'static str, address: &Addr<A>, patience: Duration) -> State
where
    A: Actor + Handler<Observe>,
    A::Context: ToEnvelope<A, Observe>,
{
    match tokio::time::timeout(patience, address.send(Observe)).await {
        Ok(Ok(state)) => state,
        Ok(Err(gone)) => State { actor, state: gone.to_string().into() },
        Err(_) => State { actor, state: "does not answer".into() },
    }
}

/// Implements [`Observe`] for an actor whose `state()` is serialisable.
#[macro_export]
macro_rules! observable {
    ($actor:ty, $name:literal) => {
        impl actix::Handler<$crate::actors::observe::Observe> for $actor {
            type Result = $crate::actors::observe::State;

            fn handle(
                &mut self,
                _: $crate::actors::observe::Observe,
                _: &mut Self::Context,
            ) -> Self::Result {
                let state = serde_json::to_value(self.state()).unwrap_or_default();
                $crate::actors::observe::State { actor: $name, state }
            }
        }
    };
}
