//! Every actor can tell its state as a serialisable value.

use actix::{Message, MessageResponse};
use serde_json::Value;

/// Asks an actor for its state.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "State")]
pub struct Observe;

/// An actor's name and state.
#[derive(Debug, Clone, MessageResponse)]
pub struct State {
    pub actor: &'static str,
    pub state: Value,
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
