//! The laws of the system, one file each.

mod law1_residency;
mod law2_dirty;
mod law8_no_deadlock;
mod ranks_memory;
mod ranks_planner;
mod ranks_world;
mod tiers_chance;
mod tiers_world;
