//! The limits that a user sets hold: memory, threads, disk, and the least budget.

mod budget;
mod cached;
mod cgroup;
mod disk;
mod generator;
mod memory_within_ledger;
mod program;
mod threads;
