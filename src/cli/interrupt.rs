//! Ctrl-C ends the answer, not the program: it sets the answer's stop flags. A second one, while
//! nothing has come of the first, ends the program as it always does.

use crate::base::{Error, Result};
use signal_hook::SigId;
use signal_hook::consts::SIGINT;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// While it lives, Ctrl-C sets the flags.
#[derive(Debug)]
pub struct Interrupt {
    registered: Vec<SigId>,
    hit: Arc<AtomicBool>,
}

impl Interrupt {
    /// Whether Ctrl-C was pressed.
    pub fn was_hit(&self) -> bool {
        self.hit.load(Ordering::Relaxed)
    }
}

impl Drop for Interrupt {
    fn drop(&mut self) {
        for id in self.registered.drain(..) {
            signal_hook::low_level::unregister(id);
        }
    }
}

/// Lets Ctrl-C set `stops`.
///
/// # Errors
/// `Io` if the system refuses the handler.
pub fn flags(stops: Vec<Arc<AtomicBool>>) -> Result<Interrupt> {
    let refused = |e| Error::io("cannot listen for Ctrl-C", e);
    let hit = Arc::new(AtomicBool::new(false));
    let mut interrupt = Interrupt { registered: Vec::new(), hit: Arc::clone(&hit) };
    // Registered first, so it acts on the second press: by then the flag is set.
    let second = signal_hook::flag::register_conditional_default(SIGINT, Arc::clone(&hit));
    interrupt.registered.push(second.map_err(refused)?);
    for flag in stops.into_iter().chain([hit]) {
        interrupt.registered.push(signal_hook::flag::register(SIGINT, flag).map_err(refused)?);
    }
    Ok(interrupt)
}
