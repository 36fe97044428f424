//! What the user asks of the io service, and what was put in place.
//!
//! Law: a choice that was made explicitly is kept or refused, never replaced in silence.

use crate::base::{Error, Result};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fmt;

/// How requests reach the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum EngineChoice {
    /// io_uring where it is permitted, else the pool.
    #[default]
    Auto,
    Uring,
    /// Threads that call pread and pwrite.
    Pool,
}

/// Whether the page cache is bypassed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum DirectChoice {
    /// O_DIRECT where the file system has it.
    #[default]
    Auto,
    On,
    Off,
}

/// What is asked of the io service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IoOptions {
    pub engine: EngineChoice,
    pub direct: DirectChoice,
    /// Chunks with the device at a time (io_uring).
    pub depth: usize,
    /// Bytes of one chunk; a multiple of 4096.
    pub chunk: u64,
    /// Threads of the pool.
    pub threads: usize,
    /// Whether the arena is registered with the kernel.
    pub register: bool,
}

impl Default for IoOptions {
    fn default() -> Self {
        Self {
            engine: EngineChoice::Auto,
            direct: DirectChoice::Auto,
            depth: 16,
            chunk: 1 << 20,
            threads: 8,
            register: true,
        }
    }
}

impl IoOptions {
    /// # Errors
    /// `Config` for a depth, a chunk or a thread count that cannot work.
    pub fn validate(&self) -> Result<()> {
        if !(1..=4096).contains(&self.depth) {
            return Err(Error::config("the io depth must be 1 to 4096").with("depth", self.depth));
        }
        let chunk_fits = (4096..=(1 << 30)).contains(&self.chunk);
        if !chunk_fits || !self.chunk.is_multiple_of(super::BLOCK_ALIGN) {
            return Err(Error::config(
                "the io chunk must be a multiple of 4 KiB, from 4 KiB to 1 GiB",
            )
            .with("chunk", self.chunk));
        }
        if !(1..=256).contains(&self.threads) {
            return Err(Error::config("the io pool must have 1 to 256 threads")
                .with("threads", self.threads));
        }
        Ok(())
    }
}

/// What was put in place, with the reason for everything that is not as asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct IoEffective {
    /// `uring`, `pool`, or the name of a twin.
    pub engine: &'static str,
    pub direct: bool,
    /// Whether the arena is registered with the kernel.
    pub registered: bool,
    /// Transfers with the device at a time.
    pub depth: usize,
    pub chunk: u64,
    pub notes: Vec<String>,
}

impl IoEffective {
    pub(super) fn from_options(options: &IoOptions) -> Self {
        Self {
            engine: "none",
            direct: false,
            registered: false,
            depth: options.depth,
            chunk: options.chunk,
            notes: Vec::new(),
        }
    }
}

impl IoEffective {
    /// For a configuration that insists on registered buffers.
    ///
    /// # Errors
    /// `Config` with the reason if they are plain.
    pub fn require_registered(&self) -> Result<()> {
        if self.registered {
            return Ok(());
        }
        Err(Error::config(
            "registered buffers cannot be had: set register to \"auto\", or raise RLIMIT_MEMLOCK",
        )
        .with("effective", self))
    }
}

impl fmt::Display for IoEffective {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let direct = if self.direct { "O_DIRECT" } else { "page cache" };
        let buffers = if self.registered { "registered" } else { "plain" };
        let Self { engine, depth, chunk, .. } = self;
        let kib = chunk >> 10;
        write!(f, "{engine}, {direct}, {buffers} buffers, depth {depth} of {kib} KiB")?;
        for note in &self.notes {
            write!(f, "; {note}")?;
        }
        Ok(())
    }
}
