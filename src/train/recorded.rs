//! Metrics before commits: a step is committed once its line, and every one before it, is durable.
//!
//! Law 7: a resume goes on after its last commit and cuts the metrics back to it, so a commit
//! that overtook its metrics would leave a gap for ever.

use crate::base::{Error, ErrorKind, Result, Step};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

#[derive(Debug)]
struct Shared {
    path: PathBuf,
    file: File,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    last: Step,
    given_up: bool,
}

/// How far the metrics have come: told by who writes them, waited for by who commits.
#[derive(Debug, Clone)]
pub struct Recorded(Arc<Shared>);

impl Recorded {
    /// Of the metrics file at `path`, whose last line is that of step `last`.
    pub fn new(path: &Path, file: File, last: Step) -> Self {
        let state = Mutex::new(State { last, given_up: false });
        Self(Arc::new(Shared { path: path.to_owned(), file, state, changed: Condvar::new() }))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The line of `step` is written.
    pub fn reach(&self, step: Step) {
        self.lock().last = step;
        self.0.changed.notify_all();
    }

    /// No more lines will be written: what waits for one fails.
    pub fn give_up(&self) {
        self.lock().given_up = true;
        self.0.changed.notify_all();
    }

    /// Waits for the line of `step` and makes it durable.
    ///
    /// # Errors
    /// Interrupted when it will not be written, Io when it cannot be made durable.
    pub fn wait(&self, step: Step) -> Result<()> {
        let waits = |state: &mut State| state.last < step && !state.given_up;
        let waited = self.0.changed.wait_while(self.lock(), waits);
        if waited.unwrap_or_else(PoisonError::into_inner).last < step {
            return Err(Error::new(
                ErrorKind::Interrupted,
                "a step is not committed because its metrics could not be written",
            )
            .with("step", step));
        }
        self.0
            .file
            .sync_data()
            .map_err(|e| Error::io(format!("syncing metrics {}", self.0.path.display()), e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commit_waits_for_its_line_or_for_the_end() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let recorded = Recorded::new(file.path(), file.reopen().unwrap(), 3);
        recorded.wait(3).unwrap();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| recorded.wait(5));
            recorded.reach(4);
            recorded.reach(5);
            waiting.join().unwrap().unwrap();
            let waiting = scope.spawn(|| recorded.wait(6));
            recorded.give_up();
            assert_eq!(waiting.join().unwrap().unwrap_err().kind(), ErrorKind::Interrupted);
        });
        recorded.wait(5).unwrap();
    }
}
