//! Training: the data, the planner of a step, and the trainer that wires them to actors.

pub mod chat;
pub mod curve;
pub mod data;
pub mod folder;
pub mod metrics;
pub mod progress;
pub mod schedule;
pub mod tokenizer;
