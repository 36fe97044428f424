//! Training: the data, the planner of a step, and the trainer that wires them to actors.

pub mod account;
pub mod agreement;
pub mod blocks;
mod book;
pub mod crew;
pub mod curve;
pub mod data;
pub mod feed;
pub mod folder;
pub mod launch;
pub mod metrics;
pub mod model_of;
pub mod opened;
pub mod pipeline;
pub mod placement;
pub mod plan;
pub mod prepare;
pub mod progress;
pub mod recorded;
pub mod schedule;
pub mod script;
pub mod session;
pub mod stage;
pub mod summary;
pub mod trainer;
pub mod verify;
