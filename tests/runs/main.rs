//! Whole runs, as a user starts them, and what they promise.

#[allow(dead_code, reason = "each test program uses a part of it")]
mod common;
mod exported;
mod fixtures;
mod full_disk;
mod ranks_agree;
mod signals;
