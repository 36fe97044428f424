//! How idle compute threads wait: asleep, not in a loop.
//!
//! libgomp, whose threads libtorch computes with, lets a thread without work spin for milliseconds.
//! Here other threads can use that core (updates, checksums, another process): 5 steps of a small
//! run on two busy cores took 48 s with spinning threads and 4 s with sleeping ones.

use std::env;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// What decides it, if the user did not.
const SETTINGS: [&str; 2] = ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT"];

/// Starts this program anew with threads that sleep, unless the environment says how they wait:
/// libgomp reads that when it is loaded, which was before `main`.
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
    let error = command.args(arguments).env(SETTINGS[0], "passive").exec();
    tracing::warn!("idle threads spin: the program could not start itself anew: {error}");
}
