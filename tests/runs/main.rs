//! Whole runs, as a user starts them, and what they promise.

mod bad_input;
mod common;
mod fixtures;
mod idle_experts;
mod offloaded_equals_in_memory;
mod signals;
