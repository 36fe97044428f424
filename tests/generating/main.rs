//! Generating from checkpoints that do not fit: what a budget may change, and what it may not.

mod bad_input;
mod common;
mod references;
mod streaming;
