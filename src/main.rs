//! The `semoe` command.

fn main() {}
