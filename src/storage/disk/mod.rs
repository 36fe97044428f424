//! Reading and writing extents of data files, deep-queued, most urgent first.
//!
//! Law: every request that is accepted is answered exactly once, with the CRC32C of the bytes
//! that moved where it is asked for, or with an error that names file and offset.
//!
//! ```text
//! submit(request) ─► Queue (urgency, chunks) ─► engine (io_uring | pread/pwrite pool | twin)
//!                                                  │ one CRC32C per chunk, combined
//! on_done(IoDone) ◄────────────────────────────────┘
//! ```

pub mod direct;
pub mod faulty;
pub mod options;
mod pool;
mod queue;
mod uring;

pub use options::{DirectChoice, EngineChoice, IoEffective, IoOptions};

use crate::base::units::round_up;
use crate::base::{Error, ErrorKind, Result};
use serde::Serialize;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Offsets and lengths of our own files are multiples of this; O_DIRECT needs it.
pub const BLOCK_ALIGN: u64 = 4096;
/// The urgency of what is transferred only while the device would rest.
pub const IDLE: u64 = u64::MAX;

/// A data file of a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct FileId(pub u16);

/// A data file as the io service opens it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataFile {
    pub id: FileId,
    pub path: PathBuf,
    /// Bytes that may be addressed.
    pub len: u64,
    /// A file of somebody else's: never written, its length and offsets are what they are.
    pub read_only: bool,
}

impl DataFile {
    /// Where the bytes that a read must bring end. A read of a file of others, whose end may be
    /// unaligned, is rounded up past it and comes back short.
    fn end(&self) -> u64 {
        if self.read_only { self.len } else { u64::MAX }
    }

    /// Where the last extent may end.
    fn addressable(&self) -> u64 {
        if self.read_only { round_up(self.len, BLOCK_ALIGN) } else { self.len }
    }
}

/// A byte range of a data file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub struct Extent {
    pub file: FileId,
    pub offset: u64,
    pub len: u64,
}

/// The direction of a transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum IoOp {
    Read,
    Write,
}

/// The memory of a transfer: an address and a length in bytes.
#[derive(Debug, Clone, Copy)]
pub struct IoBuf {
    ptr: *mut u8,
    len: usize,
}

// SAFETY: an address is not an access; `IoBuf::new` makes its caller promise exclusive use for as
// long as a request with this buffer is under way.
unsafe impl Send for IoBuf {}

impl IoBuf {
    /// Names `len` bytes at `ptr`; with O_DIRECT both are multiples of 4096.
    ///
    /// # Safety
    /// Until every request made with this buffer is answered, the range stays allocated, nobody
    /// else writes to it, and for a read nobody else looks at it.
    pub unsafe fn new(ptr: *mut u8, len: usize) -> Self {
        Self { ptr, len }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn address(&self) -> usize {
        self.ptr as usize
    }
}

/// A transfer to be made.
#[derive(Debug)]
pub struct IoRequest {
    /// The caller's name for it, given back in [`IoDone`].
    pub tag: u64,
    pub op: IoOp,
    pub extent: Extent,
    /// At least as long as the extent; its first `extent.len` bytes are used.
    pub buf: IoBuf,
    /// Lower goes first: demand 0, what is foreseen above it, guesses [`IDLE`].
    pub urgency: u64,
    /// Whether the bytes' checksum is wanted. It is not where there is none to compare with, or
    /// where the bytes' user computes it while they are in the processor's cache.
    pub check: bool,
    /// For reads of files of others: what is wanted of the bytes read, and where in the buffer it
    /// belongs.
    pub lift: Option<Lift>,
}

/// Bytes of a buffer that move from one place in it to another once they were read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lift {
    pub from: usize,
    pub to: usize,
    pub len: usize,
}

/// A transfer that ended.
#[derive(Debug)]
pub struct IoDone {
    pub tag: u64,
    pub op: IoOp,
    /// Bytes that moved.
    pub bytes: u64,
    /// Of these, as long as the request was [`IDLE`].
    pub idle: u64,
    /// CRC32C (Castagnoli) of the whole extent's bytes; 0 where it was not asked for.
    pub result: Result<u32>,
    /// Whether it ended before all of it had moved because it was given up; then the result is
    /// well unless something failed before.
    pub given_up: bool,
    /// When its first chunk was given to the device.
    pub started: Instant,
    pub finished: Instant,
}

/// Called on an io thread with every finished transfer; it must not block.
pub type OnDone = Arc<dyn Fn(IoDone) + Send + Sync>;

/// Totals since the service started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct IoCounters {
    pub bytes_read: u64,
    pub bytes_written: u64,
    /// Requests that ended.
    pub requests: u64,
    /// Nanoseconds in which at least one chunk was with the device.
    pub busy_nanos: u64,
}

/// The counters as the engines keep them.
#[derive(Debug, Default)]
struct Meter {
    bytes_read: AtomicU64,
    bytes_written: AtomicU64,
    requests: AtomicU64,
    busy_nanos: AtomicU64,
}

impl Meter {
    fn moved(&self, op: IoOp, bytes: u64) {
        let counter = match op {
            IoOp::Read => &self.bytes_read,
            IoOp::Write => &self.bytes_written,
        };
        counter.fetch_add(bytes, Ordering::Relaxed);
    }

    fn read(&self) -> IoCounters {
        IoCounters {
            bytes_read: self.bytes_read.load(Ordering::Relaxed),
            bytes_written: self.bytes_written.load(Ordering::Relaxed),
            requests: self.requests.load(Ordering::Relaxed),
            busy_nanos: self.busy_nanos.load(Ordering::Relaxed),
        }
    }
}

/// What carries requests out: io_uring, a thread pool, or a twin without a disk.
trait Engine: Send + Sync {
    fn submit(&self, request: IoRequest) -> Result<()>;
    /// Gives a waiting request urgency 0; nothing if it is under way or done.
    fn promote(&self, tag: u64);
    /// Ends a waiting request with what is under way; nothing if all of it is.
    fn give_up(&self, tag: u64);
    /// Answers what was accepted, then ends the threads.
    fn stop(&mut self);
}

/// Moves extents between data files and memory.
pub struct IoService {
    engine: Box<dyn Engine>,
    files: Vec<DataFile>,
    effective: IoEffective,
    meter: Arc<Meter>,
}

impl std::fmt::Debug for IoService {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IoService").field("effective", &self.effective).finish_non_exhaustive()
    }
}

/// A range of memory that is registered with the kernel once (the arena).
#[derive(Debug, Clone, Copy)]
struct Registered {
    ptr: *mut u8,
    len: usize,
}

// SAFETY: an address is not an access; the kernel touches the range only for requests.
unsafe impl Send for Registered {}

impl IoService {
    /// Opens `files` and starts the io thread(s).
    ///
    /// `registered` is memory (address, bytes) that stays mapped until the service has shut down:
    /// the arena. Buffers inside it need no page pinning per transfer.
    ///
    /// # Errors
    /// `Config` where an explicit choice cannot be had; `Io` where a file cannot be opened. An
    /// `auto` choice falls back instead, and [`IoService::effective`] says why.
    pub fn start(
        options: &IoOptions,
        files: Vec<DataFile>,
        registered: Option<(*mut u8, usize)>,
        on_done: OnDone,
    ) -> Result<Self> {
        options.validate()?;
        let (handles, direct, direct_why) = direct::open_all(&files, options.direct)?;
        let mut effective = IoEffective::from_options(options);
        effective.direct = direct;
        effective.notes.extend(direct_why);
        let meter = Arc::new(Meter::default());
        let parts = queue::Parts {
            files: files.clone(),
            handles,
            chunk: options.chunk,
            meter: Arc::clone(&meter),
            on_done,
        };
        let parts = match options.engine {
            EngineChoice::Pool => parts,
            choice => {
                let registered = registered
                    .filter(|_| options.register)
                    .map(|(ptr, len)| Registered { ptr, len });
                match uring::Uring::start(parts, options.depth, registered) {
                    Ok((engine, note)) => {
                        effective.engine = "uring";
                        effective.registered = registered.is_some() && note.is_none();
                        effective.notes.extend(note);
                        return Ok(Self { engine: Box::new(engine), files, effective, meter });
                    }
                    Err((parts, why)) if choice == EngineChoice::Auto => {
                        let note = format!("io_uring cannot be had ({why}): using a thread pool");
                        effective.notes.push(note);
                        parts
                    }
                    Err((_, why)) => {
                        return Err(Error::config(
                            "io_uring cannot be had: set the io engine to \"auto\" or \"pool\"",
                        )
                        .from_source(why));
                    }
                }
            }
        };
        effective.engine = "pool";
        effective.depth = options.threads;
        let engine = pool::Pool::start(parts, options.threads)?;
        Ok(Self { engine: Box::new(engine), files, effective, meter })
    }

    /// Accepts a transfer; its end is told to `on_done`.
    ///
    /// # Errors
    /// `Bug` for an extent outside its file, a buffer that is too short, or a misaligned one.
    pub fn submit(&self, request: IoRequest) -> Result<()> {
        self.validate(&request)?;
        self.engine.submit(request)
    }

    /// Makes a waiting request as urgent as a demand: its user has come sooner than foreseen.
    ///
    /// # Errors
    /// None at present; a request that has ended in the meantime is no error.
    pub fn promote(&self, tag: u64) -> Result<()> {
        self.engine.promote(tag);
        Ok(())
    }

    /// Transfers no more of a waiting request: nobody needs it. It is answered all the same.
    pub fn give_up(&self, tag: u64) {
        self.engine.give_up(tag);
    }

    /// What was put in place, and why where it differs from what was asked.
    pub fn effective(&self) -> &IoEffective {
        &self.effective
    }

    pub fn counters(&self) -> IoCounters {
        self.meter.read()
    }

    /// Answers what was accepted and ends the threads.
    pub fn shutdown(mut self) {
        self.engine.stop();
    }

    fn validate(&self, request: &IoRequest) -> Result<()> {
        let Extent { file, offset, len } = request.extent;
        let refuse = |why: &str| {
            Err(Error::bug(why.to_owned())
                .with("file", file.0)
                .with("offset", offset)
                .with("len", len)
                .with("buffer", request.buf.len()))
        };
        let Some(data) = self.files.iter().find(|data| data.id == file) else {
            return refuse("a transfer names a file that the io service does not have");
        };
        if len == 0 || offset.checked_add(len).is_none_or(|end| end > data.addressable()) {
            return refuse("a transfer lies outside its file");
        }
        if len > request.buf.len() as u64 {
            return refuse("a transfer's buffer is shorter than its extent");
        }
        if data.read_only && request.op == IoOp::Write {
            return refuse("a transfer would write to a file of somebody else's");
        }
        let fits = |lift: Lift| lift.from.max(lift.to).saturating_add(lift.len) as u64 <= len;
        if request.lift.is_some_and(|lift| !fits(lift) || request.op == IoOp::Write) {
            return refuse("a transfer moves bytes that it does not read");
        }
        let aligned = |n: u64| n.is_multiple_of(BLOCK_ALIGN);
        let address = request.buf.address() as u64;
        if self.effective.direct && !(aligned(offset) && aligned(len) && aligned(address)) {
            return refuse("a transfer with O_DIRECT must be aligned to 4096 bytes");
        }
        Ok(())
    }
}

impl Drop for IoService {
    fn drop(&mut self) {
        self.engine.stop();
    }
}

/// The error of a failed transfer.
fn transfer_error(op: IoOp, file: &DataFile, offset: u64, len: u64, e: std::io::Error) -> Error {
    let path = file.path.display();
    let doing = match op {
        IoOp::Read => format!("cannot read {path}"),
        IoOp::Write => format!("cannot write {path}"),
    };
    Error::io(doing, e).with("offset", offset).with("len", len)
}

/// The error of a read that met the end of its file.
fn truncated_error(file: &DataFile, offset: u64) -> Error {
    Error::new(
        ErrorKind::Corrupt,
        format!(
            "{} is shorter than it should be: it was truncated; restore it from a copy",
            file.path.display()
        ),
    )
    .with("offset", offset)
    .with("expected_len", file.len)
}

#[cfg(test)]
mod tests;
