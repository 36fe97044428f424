//! Inference: checkpoints opened where they lie, and text out of them.

pub mod opening;
