//! What waits for the device: requests in order of urgency, cut into chunks.
//!
//! Pure: no threads, no files. Law: chunks of a more urgent request are given out before those
//! of any other that is not yet with the device, and a request ends when its last chunk does, or the
//! last that it had when it was given up. An idle request has chunks only while the device has little
//! to do, small and few, so that a demand that comes then hardly waits for them.

use super::{DataFile, IDLE, IoDone, IoOp, IoRequest, Lift, Meter, OnDone};
use crate::base::Error;
use crate::base::checksum::{self, Joiner};
use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

/// Chunks with the device below which an idle request may add one: enough to keep it working.
const IDLE_DEPTH: usize = 4;
/// The longest chunk of an idle request, in bytes.
const IDLE_CHUNK: u64 = 256 << 10;

/// What every engine is made of.
pub(super) struct Parts {
    pub files: Vec<DataFile>,
    pub handles: Vec<Arc<File>>,
    pub chunk: u64,
    pub meter: Arc<Meter>,
    pub on_done: OnDone,
}

impl Parts {
    /// Moves what was read to where it belongs, and answers the request.
    pub fn answer(&self, ended: Ended) {
        if let Some((at, lift)) = ended.lift {
            let (from, to) = (at.wrapping_add(lift.from), at.wrapping_add(lift.to));
            // SAFETY: both ranges lie in the request's buffer (checked when it was accepted),
            // whose maker keeps it to this service until the answer below.
            unsafe { std::ptr::copy(from, to, lift.len) };
        }
        self.meter.requests.fetch_add(1, Ordering::Relaxed);
        (self.on_done)(ended.done);
    }
}

/// A file among the service's files, and where its bytes end.
#[derive(Debug, Clone, Copy)]
pub(super) struct Target {
    index: usize,
    end: u64,
}

impl Target {
    /// The file that a request means; requests were validated before.
    pub fn of(files: &[DataFile], request: &IoRequest) -> Self {
        let index = files.iter().position(|file| file.id == request.extent.file);
        let index = index.unwrap_or_default();
        Self { index, end: files.get(index).map_or(u64::MAX, DataFile::end) }
    }
}

/// A request whose transfers have all ended.
pub(super) struct Ended {
    pub done: IoDone,
    lift: Option<(*mut u8, Lift)>,
}

/// A part of a request that goes to the device at once.
#[derive(Debug, Clone, Copy)]
pub(super) struct Chunk {
    /// The request's key in the queue.
    pub request: u64,
    /// Its place among the request's chunks.
    pub index: usize,
    /// Its file's place among the service's files.
    pub file: usize,
    pub op: IoOp,
    pub offset: u64,
    pub ptr: *mut u8,
    pub len: usize,
    /// Bytes that must move; fewer than `len` only at the end of a file of others.
    pub enough: usize,
    /// Whether the bytes' checksum is wanted.
    pub check: bool,
    /// Whether nobody waited for it when it was given out.
    pub idle: bool,
}

// SAFETY: the pointer comes from an `IoBuf`, whose maker promised exclusive use until the request
// is answered, whatever thread serves it.
unsafe impl Send for Chunk {}

impl Chunk {
    /// CRC32C of the chunk's bytes; 0 where none is wanted.
    ///
    /// # Safety
    /// The chunk's transfer has ended and its request has not been answered.
    pub unsafe fn crc(&self) -> u32 {
        if !self.check {
            return 0;
        }
        // SAFETY: the request's `IoBuf` covers the range, and its maker keeps it valid and
        // unwritten until the answer.
        checksum::crc32c(unsafe { std::slice::from_raw_parts(self.ptr, self.len) })
    }
}

#[derive(Debug)]
struct Active {
    request: IoRequest,
    file: Target,
    /// Bytes given out so far.
    given: u64,
    /// Chunks with the device.
    under_way: usize,
    /// Checksum and length of each chunk; combined when all are there.
    crcs: Vec<(u32, usize)>,
    moved: u64,
    /// Of these, while nobody waited.
    idle: u64,
    error: Option<Error>,
    given_up: bool,
    started: Option<Instant>,
}

/// The waiting and running requests.
#[derive(Debug)]
pub(super) struct Queue {
    chunk: u64,
    joiner: Joiner,
    next_key: u64,
    active: HashMap<u64, Active>,
    /// (urgency, order of arrival) of requests that have chunks left to give out.
    waiting: BTreeSet<(u64, u64)>,
    /// Chunks with the device.
    under_way: usize,
    /// Requests that were given up with nothing under way, to be answered.
    given_up: Vec<u64>,
}

impl Queue {
    pub fn new(chunk: u64) -> Self {
        Self {
            chunk,
            joiner: Joiner::default(),
            next_key: 0,
            active: HashMap::new(),
            waiting: BTreeSet::new(),
            under_way: 0,
            given_up: Vec::new(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.active.is_empty()
    }

    /// Whether [`Queue::next`] has a chunk to give.
    pub fn has_next(&self) -> bool {
        let first = self.waiting.first();
        first.is_some_and(|(urgency, _)| *urgency < IDLE || self.under_way < IDLE_DEPTH)
    }

    pub fn push(&mut self, request: IoRequest, file: Target) {
        let key = self.next_key;
        self.next_key += 1;
        self.waiting.insert((request.urgency, key));
        let active = Active {
            request,
            file,
            given: 0,
            under_way: 0,
            crcs: Vec::new(),
            moved: 0,
            idle: 0,
            error: None,
            given_up: false,
            started: None,
        };
        self.active.insert(key, active);
    }

    /// Gives out no more of waiting requests with this tag: they end with what is under way.
    pub fn give_up(&mut self, tag: u64) {
        for (key, active) in &mut self.active {
            if active.request.tag == tag && self.waiting.remove(&(active.request.urgency, *key)) {
                active.given = active.request.extent.len;
                active.given_up = true;
                if active.under_way == 0 {
                    self.given_up.push(*key);
                }
            }
        }
    }

    pub fn has_given_up(&self) -> bool {
        !self.given_up.is_empty()
    }

    /// The answer to a request that was given up when nothing of it was under way.
    pub fn next_given_up(&mut self) -> Option<Ended> {
        let key = self.given_up.pop()?;
        self.end(key)
    }

    /// Gives every waiting request with this tag urgency 0.
    pub fn promote(&mut self, tag: u64) {
        for (key, active) in &mut self.active {
            if active.request.tag == tag && self.waiting.remove(&(active.request.urgency, *key)) {
                active.request.urgency = 0;
                self.waiting.insert((0, *key));
            }
        }
    }

    /// The next chunk for the device.
    pub fn next(&mut self) -> Option<Chunk> {
        if !self.has_next() {
            return None;
        }
        let (urgency, key) = *self.waiting.first()?;
        let active = self.active.get_mut(&key)?;
        let extent = active.request.extent;
        let most = if urgency == IDLE { self.chunk.min(IDLE_CHUNK) } else { self.chunk };
        let len = most.min(extent.len - active.given) as usize;
        let offset = extent.offset + active.given;
        let chunk = Chunk {
            request: key,
            index: active.crcs.len(),
            file: active.file.index,
            op: active.request.op,
            offset,
            ptr: active.request.buf.ptr.wrapping_add(active.given as usize),
            len,
            enough: len.min(active.file.end.saturating_sub(offset) as usize),
            check: active.request.check,
            idle: urgency == IDLE,
        };
        active.crcs.push((0, len));
        active.given += len as u64;
        active.under_way += 1;
        self.under_way += 1;
        active.started.get_or_insert_with(Instant::now);
        if active.given == extent.len {
            self.waiting.remove(&(urgency, key));
        }
        Some(chunk)
    }

    /// Notes the end of a chunk, and gives the answer if it was the request's last one.
    pub fn finish(&mut self, chunk: &Chunk, result: Result<u32, Error>) -> Option<Ended> {
        let active = self.active.get_mut(&chunk.request)?;
        active.under_way -= 1;
        self.under_way -= 1;
        match result {
            Ok(crc) => {
                active.crcs[chunk.index].0 = crc;
                active.moved += chunk.enough as u64;
                active.idle += if chunk.idle { chunk.enough as u64 } else { 0 };
            }
            Err(error) => {
                // What was not given out stays where it is; the first cause is told.
                self.waiting.remove(&(active.request.urgency, chunk.request));
                active.given = active.request.extent.len;
                active.error.get_or_insert(error);
            }
        }
        if active.under_way > 0 || active.given < active.request.extent.len {
            return None;
        }
        self.end(chunk.request)
    }

    fn end(&mut self, key: u64) -> Option<Ended> {
        let active = self.active.remove(&key)?;
        let now = Instant::now();
        let result = match active.error {
            Some(error) => Err(error),
            None if active.given_up || !active.request.check => Ok(0),
            None => Ok(self.joiner.join(active.crcs)),
        };
        let moves = |lift: &Lift| lift.from != lift.to;
        let whole = result.is_ok() && !active.given_up;
        let lift = active.request.lift.filter(|lift| moves(lift) && whole);
        let done = IoDone {
            tag: active.request.tag,
            op: active.request.op,
            bytes: active.moved,
            idle: active.idle,
            result,
            given_up: active.given_up,
            started: active.started.unwrap_or(now),
            finished: now,
        };
        Some(Ended { done, lift: lift.map(|lift| (active.request.buf.ptr, lift)) })
    }
}
