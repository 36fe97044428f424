//! The laws of the system, one file each; of law 5 the whole runs are in `tests/runs`.

#[allow(dead_code, reason = "each test program uses a part of it")]
#[path = "../runs/common.rs"]
mod common;
mod file_calls;
mod file_disk;
mod law1_residency;
mod law2_dirty;
mod law3_dispatch;
mod law4_same_losses;
mod law6_idle_experts;
mod law7_power_cut;
mod law7_power_cut_of_files;
mod law8_no_deadlock;
mod law9_bad_input;
mod power_run;
mod ranks_memory;
mod ranks_planner;
mod ranks_world;
mod tiers_chance;
mod tiers_hints;
mod tiers_world;
