//! Twins of the io service without a disk: one that does nothing, one that fails on demand.
//!
//! Law: as in [`super`]: one answer for every request. They answer on the caller's thread, so a
//! test with them is deterministic.

use super::{
    BLOCK_ALIGN, DataFile, Engine, IoDone, IoEffective, IoOp, IoOptions, IoRequest, IoService,
    Meter, OnDone, transfer_error,
};
use crate::base::{Error, Result, checksum};
use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// What goes wrong with a transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The device reports an error (EIO).
    Broken,
    /// A write meets a full disk (ENOSPC).
    Full,
    /// One bit of what was read is wrong; the checksum shows it.
    BitFlip,
    /// The answer comes after this many further requests, or at shutdown.
    Late(u64),
}

/// Decides the fault of the n-th request (from 0).
pub type FaultPlan = Box<dyn Fn(u64, &IoRequest) -> Option<Fault> + Send + Sync>;

/// A plan that fails about `per_mille` of 1,000 requests, the same ones for the same seed.
pub fn seeded(seed: u64, per_mille: u64, fault: Fault) -> FaultPlan {
    Box::new(move |nth, _| (scramble(seed ^ scramble(nth)) % 1000 < per_mille).then_some(fault))
}

/// SplitMix64's finaliser: a well-mixed function of its argument.
pub(crate) fn scramble(n: u64) -> u64 {
    let z = n.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl IoService {
    /// A service that moves nothing and answers at once, with checksum 0.
    pub fn noop(files: Vec<DataFile>, on_done: OnDone) -> Self {
        let meter = Arc::new(Meter::default());
        let engine = Noop { on_done, meter: Arc::clone(&meter) };
        twin("noop", Box::new(engine), files, meter)
    }

    /// A service over bytes in memory that fails where `plan` says.
    pub fn faulty(files: Vec<DataFile>, plan: FaultPlan, on_done: OnDone) -> Self {
        let meter = Arc::new(Meter::default());
        let state = Mutex::new(State::default());
        let engine =
            Faulty { files: files.clone(), plan, on_done, meter: Arc::clone(&meter), state };
        twin("faulty", Box::new(engine), files, meter)
    }
}

impl IoService {
    /// This service, whose reads fail where `plan` says [`Fault::Broken`]; the failures are told
    /// to `on_done`, which should be the service's own.
    #[must_use]
    pub fn failing(mut self, plan: FaultPlan, on_done: OnDone) -> Self {
        let inner = std::mem::replace(&mut self.engine, Box::new(Gone));
        let engine = Failing {
            inner,
            files: self.files.clone(),
            plan,
            on_done,
            requests: AtomicU64::new(0),
        };
        self.engine = Box::new(engine);
        self
    }
}

/// Stands where an engine was taken out.
struct Gone;

impl Engine for Gone {
    fn submit(&self, _: IoRequest) -> Result<()> {
        Err(Error::bug("a transfer was asked of an io service that has no engine"))
    }

    fn promote(&self, _tag: u64) {}

    fn give_up(&self, _tag: u64) {}

    fn stop(&mut self) {}
}

/// A real engine of which some reads fail.
struct Failing {
    inner: Box<dyn Engine>,
    files: Vec<DataFile>,
    plan: FaultPlan,
    on_done: OnDone,
    requests: AtomicU64,
}

impl Engine for Failing {
    fn submit(&self, request: IoRequest) -> Result<()> {
        let nth = self.requests.fetch_add(1, Ordering::Relaxed);
        let fault = (self.plan)(nth, &request);
        let extent = request.extent;
        let file = self.files.iter().find(|file| file.id == extent.file);
        let (Some(Fault::Broken), IoOp::Read, Some(file)) = (fault, request.op, file) else {
            return self.inner.submit(request);
        };
        let e = io::Error::from_raw_os_error(libc::EIO);
        let error = transfer_error(request.op, file, extent.offset, extent.len, e);
        (self.on_done)(answer(&request, Err(error), Instant::now()));
        Ok(())
    }

    fn promote(&self, tag: u64) {
        self.inner.promote(tag);
    }

    fn give_up(&self, tag: u64) {
        self.inner.give_up(tag);
    }

    fn stop(&mut self) {
        self.inner.stop();
    }
}

fn twin(
    name: &'static str,
    engine: Box<dyn Engine>,
    files: Vec<DataFile>,
    meter: Arc<Meter>,
) -> IoService {
    let mut effective = IoEffective::from_options(&IoOptions::default());
    effective.engine = name;
    effective.depth = 1;
    IoService { engine, files, effective, meter }
}

fn answer(request: &IoRequest, result: Result<u32>, started: Instant) -> IoDone {
    let bytes = if result.is_ok() { request.extent.len } else { 0 };
    let finished = Instant::now();
    let (tag, op) = (request.tag, request.op);
    IoDone { tag, op, bytes, idle: 0, result, given_up: false, started, finished }
}

struct Noop {
    on_done: OnDone,
    meter: Arc<Meter>,
}

impl Engine for Noop {
    fn submit(&self, request: IoRequest) -> Result<()> {
        self.meter.moved(request.op, request.extent.len);
        self.meter.requests.fetch_add(1, Ordering::Relaxed);
        (self.on_done)(answer(&request, Ok(0), Instant::now()));
        Ok(())
    }

    fn promote(&self, _tag: u64) {}

    fn give_up(&self, _tag: u64) {}

    fn stop(&mut self) {}
}

#[derive(Default)]
struct State {
    requests: u64,
    /// Pages of 4096 bytes that were written; others read as zeros.
    pages: HashMap<(u16, u64), Vec<u8>>,
    /// Answers held back, with the count of requests that releases each.
    late: Vec<(u64, IoDone)>,
}

struct Faulty {
    files: Vec<DataFile>,
    plan: FaultPlan,
    on_done: OnDone,
    meter: Arc<Meter>,
    state: Mutex<State>,
}

impl Faulty {
    fn carry_out(
        &self,
        request: &IoRequest,
        fault: Option<Fault>,
        state: &mut State,
    ) -> Result<u32> {
        let extent = request.extent;
        let failure = match fault {
            Some(Fault::Broken) => Some(io::Error::from_raw_os_error(libc::EIO)),
            Some(Fault::Full) if request.op == IoOp::Write => {
                Some(io::Error::from_raw_os_error(libc::ENOSPC))
            }
            _ => None,
        };
        if let Some(e) = failure
            && let Some(file) = self.files.iter().find(|file| file.id == extent.file)
        {
            return Err(transfer_error(request.op, file, extent.offset, extent.len, e));
        }
        // SAFETY: the buffer's maker promised exclusive use until the answer, and submit checked
        // that it is as long as the extent.
        let bytes = unsafe { std::slice::from_raw_parts_mut(request.buf.ptr, extent.len as usize) };
        let first = extent.offset / BLOCK_ALIGN;
        for (nth, page) in bytes.chunks_mut(BLOCK_ALIGN as usize).enumerate() {
            let key = (extent.file.0, first + nth as u64);
            match (request.op, state.pages.get(&key)) {
                (IoOp::Write, _) => {
                    state.pages.insert(key, page.to_vec());
                }
                (IoOp::Read, Some(stored)) => page.copy_from_slice(&stored[..page.len()]),
                (IoOp::Read, None) => page.fill(0),
            }
        }
        if fault == Some(Fault::BitFlip) && request.op == IoOp::Read {
            let at = scramble(state.requests) as usize % bytes.len();
            bytes[at] ^= 1;
        }
        self.meter.moved(request.op, extent.len);
        Ok(if request.check { checksum::crc32c(bytes) } else { 0 })
    }

    fn tell(&self, done: IoDone) {
        self.meter.requests.fetch_add(1, Ordering::Relaxed);
        (self.on_done)(done);
    }
}

impl Engine for Faulty {
    fn submit(&self, request: IoRequest) -> Result<()> {
        let started = Instant::now();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let nth = state.requests;
        state.requests += 1;
        let fault = (self.plan)(nth, &request);
        let result = self.carry_out(&request, fault, &mut state);
        let done = answer(&request, result, started);
        let mut due = Vec::new();
        match fault {
            Some(Fault::Late(by)) => state.late.push((nth + by, done)),
            _ => due.push(done),
        }
        let held = std::mem::take(&mut state.late);
        let (ripe, rest) = held.into_iter().partition(|(at, _)| *at <= nth);
        state.late = rest;
        due.extend(ripe.into_iter().map(|(_, done): (u64, IoDone)| done));
        drop(state);
        due.into_iter().for_each(|done| self.tell(done));
        Ok(())
    }

    fn promote(&self, _tag: u64) {}

    fn give_up(&self, _tag: u64) {}

    fn stop(&mut self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let held = std::mem::take(&mut state.late);
        drop(state);
        held.into_iter().for_each(|(_, done)| self.tell(done));
    }
}
