//! The laws of the system, one file each.

mod law1_residency;
mod law2_dirty;
mod tiers_world;
