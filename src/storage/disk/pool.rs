//! The engine for hosts without io_uring: threads that call pread and pwrite.
//!
//! Law: as in [`super`]: one answer for every request, most urgent first.

use super::queue::{Chunk, Parts, Queue, Target};
use super::{Engine, IoOp, IoRequest, transfer_error, truncated_error};
use crate::base::{Error, Result};
use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

struct Shared {
    parts: Parts,
    state: Mutex<State>,
    wake: Condvar,
}

struct State {
    queue: Queue,
    stopping: bool,
    /// Threads inside a system call, and since when there is at least one.
    running: usize,
    busy_since: Instant,
}

impl Shared {
    /// A panicking callback must not take the other threads' answers with it.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) struct Pool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Pool {
    pub fn start(parts: Parts, threads: usize) -> Result<Self> {
        let queue = Queue::new(parts.chunk);
        let state = State { queue, stopping: false, running: 0, busy_since: Instant::now() };
        let shared = Arc::new(Shared { parts, state: Mutex::new(state), wake: Condvar::new() });
        let mut pool = Self { shared, threads: Vec::new() };
        for index in 0..threads {
            let shared = Arc::clone(&pool.shared);
            let thread = std::thread::Builder::new()
                .name(format!("semoe-io-{index}"))
                .spawn(move || serve(&shared))
                .map_err(|e| Error::io("cannot start an io thread", e))?;
            pool.threads.push(thread);
        }
        Ok(pool)
    }
}

impl Engine for Pool {
    fn submit(&self, request: IoRequest) -> Result<()> {
        let file = Target::of(&self.shared.parts.files, &request);
        let mut state = self.shared.lock();
        if state.stopping {
            return Err(Error::bug("a transfer was asked of an io service that has stopped"));
        }
        state.queue.push(request, file);
        drop(state);
        self.shared.wake.notify_all();
        Ok(())
    }

    fn promote(&self, tag: u64) {
        self.shared.lock().queue.promote(tag);
        self.shared.wake.notify_all();
    }

    fn give_up(&self, tag: u64) {
        self.shared.lock().queue.give_up(tag);
        self.shared.wake.notify_all();
    }

    fn stop(&mut self) {
        self.shared.lock().stopping = true;
        self.shared.wake.notify_all();
        for thread in self.threads.drain(..) {
            // A thread that panicked has told its cause on stderr; nothing is left to do here.
            let _ = thread.join();
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.stop();
    }
}

fn serve(shared: &Shared) {
    let mut state = shared.lock();
    loop {
        if let Some(ended) = state.queue.next_given_up() {
            drop(state);
            shared.parts.answer(ended);
            state = shared.lock();
            continue;
        }
        let Some(chunk) = state.queue.next() else {
            if state.stopping {
                return;
            }
            state = shared.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
            continue;
        };
        if state.running == 0 {
            state.busy_since = Instant::now();
        }
        state.running += 1;
        drop(state);
        let result = transfer(&shared.parts, &chunk);
        if result.is_ok() {
            shared.parts.meter.moved(chunk.op, chunk.enough as u64);
        }
        state = shared.lock();
        state.running -= 1;
        if state.running == 0 {
            let busy = state.busy_since.elapsed().as_nanos() as u64;
            shared.parts.meter.busy_nanos.fetch_add(busy, Ordering::Relaxed);
        }
        if let Some(ended) = state.queue.finish(&chunk, result) {
            drop(state);
            shared.parts.answer(ended);
            state = shared.lock();
        }
    }
}

/// Moves a whole chunk and gives its checksum.
fn transfer(parts: &Parts, chunk: &Chunk) -> Result<u32> {
    let file = &parts.files[chunk.file];
    let fd = parts.handles[chunk.file].as_raw_fd();
    let mut at = 0;
    while at < chunk.enough {
        let offset = chunk.offset + at as u64;
        let ptr = chunk.ptr.wrapping_add(at).cast::<libc::c_void>();
        let left = chunk.len - at;
        // SAFETY: `IoBuf::new`'s caller promised the range until the request is answered, which
        // happens after this chunk has ended.
        let moved = unsafe {
            match chunk.op {
                IoOp::Read => libc::pread(fd, ptr, left, offset as libc::off_t),
                IoOp::Write => libc::pwrite(fd, ptr, left, offset as libc::off_t),
            }
        };
        match usize::try_from(moved) {
            Ok(0) => return Err(truncated_error(file, offset)),
            Ok(moved) => at += moved,
            Err(_) => {
                let e = io::Error::last_os_error();
                if e.kind() != io::ErrorKind::Interrupted {
                    return Err(transfer_error(chunk.op, file, offset, left as u64, e));
                }
            }
        }
    }
    // SAFETY: the transfer has ended and the request is not answered before this returns.
    Ok(unsafe { chunk.crc() })
}
