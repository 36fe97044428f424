//! The timeline of a generator's last passes, for whoever asked for one.

use super::options::Options;
use crate::base::Result;
use crate::base::file::write_whole;
use crate::trace::{Recorder, RecorderOptions, chrome, picture};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Passes that are kept, and of these the ones that a picture shows.
const PASSES: u64 = 64;
const PICTURED: u64 = 4;
const SPANS: usize = 40_000;

/// What is recorded, and where it goes in the end.
#[derive(Debug)]
pub struct Keeper {
    recorder: Recorder,
    file: Option<PathBuf>,
}

impl Keeper {
    /// As `options` ask; time is zero at `origin`.
    pub fn new(options: &Options, origin: Instant) -> Self {
        let recorder = Recorder::new(recorded(options), origin);
        Self { recorder, file: options.timeline.clone() }
    }

    pub fn recorder(&self) -> &Recorder {
        &self.recorder
    }

    /// Writes the last passes: a picture if the file is called .svg, else all their spans as Chrome's trace.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, model: &Path) -> Result<()> {
        let Some(file) = &self.file else { return Ok(()) };
        let timeline = self.recorder.timeline();
        if file.extension().is_some_and(|extension| extension == "svg") {
            let title = model.file_name().unwrap_or_default().to_string_lossy();
            return write_whole(file, picture::draw(&title, &timeline, PICTURED)?.as_bytes());
        }
        chrome::write(&timeline, file)
    }
}

/// How much is recorded.
pub fn recorded(options: &Options) -> RecorderOptions {
    match options.timeline {
        Some(_) => RecorderOptions { enabled: true, max_events: SPANS, steps: PASSES },
        None => RecorderOptions::off(),
    }
}
