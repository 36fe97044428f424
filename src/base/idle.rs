//! How idle compute threads wait: they look for work for a moment, then sleep.
//!
//! libgomp, whose threads libtorch computes with, lets a thread without work spin for milliseconds.
//! Here other threads can use that core (updates, checksums, another process): 5 steps of a small
//! run on two busy cores took 48 s with spinning threads and 4 s with sleeping ones. But a step is
//! thousands of short regions, and to wake a sleeping thread for each costs a tenth of it. So a
//! thread looks for the next region before it sleeps.

use std::env;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// What decides it, if the user did not.
const SETTINGS: [&str; 2] = ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT"];

/// Looks at the place where work appears before a thread sleeps: some 70 µs on
/// the processor where it was chosen; 1,000 and 8,000 did as well there.
const LOOKS: &str = "3000";

/// Starts this program anew with threads that soon sleep, unless the environment says how they
/// wait: libgomp reads that when it is loaded, which was before `main`. So a program that trains
/// calls it first. Under cargo the environment says the same (`.cargo/config.toml`).
///
/// Returns where nothing had to be done, or where the system refuses (it says so in the log).
pub fn sleep_when_idle() {
    if SETTINGS.iter().any(|name| env::var_os(name).is_some()) {
        return;
    }
    let mut arguments = env::args_os();
    let mut command = Command::new("/proc/self/exe");
    if let Some(name) = arguments.next() {
        command.arg0(name);
    }
    let error = command.args(arguments).env(SETTINGS[1], LOOKS).exec();
    tracing::warn!("idle threads spin: the program could not start itself anew: {error}");
}
