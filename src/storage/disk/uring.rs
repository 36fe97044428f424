//! The engine for Linux's io_uring: one thread, one ring, registered files and buffers.
//!
//! Law: as in [`super`]: one answer for every request, most urgent first. The ring is refilled
//! before checksums are computed, so the device never waits for the processor.

use super::queue::{Chunk, Ended, Parts, Queue, Target};
use super::{DataFile, Engine, IoOp, IoRequest, Registered, transfer_error, truncated_error};
use crate::base::{Error, Result};
use io_uring::{IoUring, opcode, squeue, types};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

/// The ring's name for the wake-up read; chunks are named by their place in the slab.
const WAKE: u64 = u64::MAX;
/// The kernel takes at most 1 GiB a registered buffer.
const REGISTERED_MAX: usize = 1 << 30;

struct Shared {
    queue: Mutex<Queue>,
    stopping: AtomicBool,
    /// Set while the io thread sleeps in the ring or is about to: submitters then wake it.
    asleep: AtomicBool,
    wake: OwnedFd,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        if self.asleep.swap(false, Ordering::SeqCst) {
            let one = 1u64;
            // SAFETY: an eventfd takes exactly the eight bytes of `one`, which outlives the call.
            // It cannot fail in a way that matters: a full counter has woken the thread already.
            let _ = unsafe { libc::write(self.wake.as_raw_fd(), (&raw const one).cast(), 8) };
        }
    }
}

pub(super) struct Uring {
    shared: Arc<Shared>,
    files: Vec<DataFile>,
    thread: Option<JoinHandle<()>>,
}

impl Uring {
    /// Sets up the ring and its thread; gives the reason if the memory was not registered.
    ///
    /// # Errors
    /// The parts come back, for another engine, with the reason.
    pub fn start(
        parts: Parts,
        depth: usize,
        registered: Option<Registered>,
    ) -> Result<(Self, Option<String>), (Parts, io::Error)> {
        let built = Ring::build(&parts, depth, registered);
        let (ring, wake, note) = match built {
            Ok(built) => built,
            Err(e) => return Err((parts, e)),
        };
        let shared = Arc::new(Shared {
            queue: Mutex::new(Queue::new(parts.chunk)),
            stopping: AtomicBool::new(false),
            asleep: AtomicBool::new(false),
            wake,
        });
        let files = parts.files.clone();
        let (hand_over, theirs) = crossbeam_channel::bounded::<(Ring, Parts)>(1);
        let thread_shared = Arc::clone(&shared);
        let spawned = std::thread::Builder::new().name("semoe-io".to_owned()).spawn(move || {
            if let Ok((ring, parts)) = theirs.recv() {
                Worker::new(ring, parts, depth, thread_shared).run();
            }
        });
        let thread = match spawned {
            Ok(thread) => thread,
            Err(e) => return Err((parts, e)),
        };
        // The thread waits for exactly this; were it gone, the next submission would say so.
        match hand_over.send((ring, parts)) {
            Ok(()) => Ok((Self { shared, files, thread: Some(thread) }, note)),
            Err(back) => Err((back.0.1, io::Error::other("the io thread ended at its start"))),
        }
    }
}

impl Engine for Uring {
    fn submit(&self, request: IoRequest) -> Result<()> {
        if self.shared.stopping.load(Ordering::SeqCst) {
            return Err(Error::bug("a transfer was asked of an io service that has stopped"));
        }
        let target = Target::of(&self.files, &request);
        self.shared.lock().push(request, target);
        self.shared.wake();
        Ok(())
    }

    fn promote(&self, tag: u64) {
        self.shared.lock().promote(tag);
        // An idle request may have waited for the device to have less to do.
        self.shared.wake();
    }

    fn give_up(&self, tag: u64) {
        self.shared.lock().give_up(tag);
        self.shared.wake();
    }

    fn stop(&mut self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        self.shared.wake();
        if let Some(thread) = self.thread.take() {
            // A thread that panicked has told its cause on stderr; nothing is left to do here.
            let _ = thread.join();
        }
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The ring with what is registered in it.
struct Ring {
    ring: IoUring,
    /// Address ranges of the registered buffers, by buffer index.
    buffers: Vec<(usize, usize)>,
}

impl Ring {
    fn build(
        parts: &Parts,
        depth: usize,
        registered: Option<Registered>,
    ) -> io::Result<(Self, OwnedFd, Option<String>)> {
        // Room for every chunk (a short one goes back under its own name) and the wake-up read.
        let ring = IoUring::new((depth + 1).next_power_of_two() as u32)?;
        let fds: Vec<i32> = parts.handles.iter().map(|handle| handle.as_raw_fd()).collect();
        ring.submitter().register_files(&fds)?;
        // SAFETY: a plain system call; its result is checked before it becomes an owner.
        let wake = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
        if wake < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `wake` is a descriptor just made that nobody else owns.
        let wake = unsafe { OwnedFd::from_raw_fd(wake) };
        let mut ring = Self { ring, buffers: Vec::new() };
        let note = registered.and_then(|memory| ring.register(memory).err()).map(|e| {
            let limit = match e.raw_os_error() {
                Some(libc::ENOMEM | libc::EPERM) => " (raise RLIMIT_MEMLOCK to have them)",
                _ => "",
            };
            format!("buffers are not registered: {e}{limit}")
        });
        Ok((ring, wake, note))
    }

    fn register(&mut self, memory: Registered) -> io::Result<()> {
        let starts = (0..memory.len).step_by(REGISTERED_MAX);
        let ranges: Vec<(usize, usize)> = starts
            .map(|at| (memory.ptr as usize + at, REGISTERED_MAX.min(memory.len - at)))
            .collect();
        let vectors: Vec<libc::iovec> = ranges
            .iter()
            .map(|(at, len)| libc::iovec { iov_base: *at as *mut libc::c_void, iov_len: *len })
            .collect();
        // SAFETY: `IoService::start`'s caller keeps the memory mapped until the service has shut
        // down, and the ring goes before that.
        unsafe { self.ring.submitter().register_buffers(&vectors) }?;
        self.buffers = ranges;
        Ok(())
    }

    fn entry(&self, chunk: &Chunk, name: u64) -> squeue::Entry {
        let fd = types::Fixed(chunk.file as u32);
        let (ptr, len) = (chunk.ptr, chunk.len as u32);
        let start = ptr as usize;
        let inside = |(at, size): &(usize, usize)| start >= *at && start + chunk.len <= at + size;
        let buffer = self.buffers.iter().position(inside).map(|index| index as u16);
        let entry = match (chunk.op, buffer) {
            (IoOp::Read, Some(index)) => {
                opcode::ReadFixed::new(fd, ptr, len, index).offset(chunk.offset).build()
            }
            (IoOp::Read, None) => opcode::Read::new(fd, ptr, len).offset(chunk.offset).build(),
            (IoOp::Write, Some(index)) => {
                opcode::WriteFixed::new(fd, ptr, len, index).offset(chunk.offset).build()
            }
            (IoOp::Write, None) => opcode::Write::new(fd, ptr, len).offset(chunk.offset).build(),
        };
        entry.user_data(name)
    }
}

/// A chunk with the device.
#[derive(Debug, Clone, Copy)]
struct Flight {
    chunk: Chunk,
    /// Bytes that have moved in earlier, short transfers.
    moved: usize,
}

impl Flight {
    /// What is left to move.
    fn rest(&self) -> Chunk {
        Chunk {
            offset: self.chunk.offset + self.moved as u64,
            ptr: self.chunk.ptr.wrapping_add(self.moved),
            len: self.chunk.len - self.moved,
            ..self.chunk
        }
    }
}

/// The io thread.
struct Worker {
    ring: Ring,
    parts: Parts,
    shared: Arc<Shared>,
    depth: usize,
    flights: Vec<Option<Flight>>,
    vacant: Vec<usize>,
    /// Where the wake-up read puts the counter. Boxed: the kernel holds its address.
    counter: Box<u64>,
    wake_armed: bool,
    busy_since: Instant,
}

impl Worker {
    fn new(ring: Ring, parts: Parts, depth: usize, shared: Arc<Shared>) -> Self {
        Self {
            ring,
            parts,
            shared,
            depth,
            flights: vec![None; depth],
            vacant: (0..depth).rev().collect(),
            counter: Box::new(0),
            wake_armed: false,
            busy_since: Instant::now(),
        }
    }

    fn in_flight(&self) -> usize {
        self.depth - self.vacant.len()
    }

    fn run(mut self) {
        let mut landed = Vec::new();
        loop {
            self.answer_given_up();
            self.refill();
            if self.in_flight() == 0 && self.shared.stopping.load(Ordering::SeqCst) {
                let queue = self.shared.lock();
                if queue.is_empty() {
                    return;
                }
                continue;
            }
            if let Err(e) = self.sleep() {
                return self.abandon(&e);
            }
            self.reap(&mut landed);
            if landed.is_empty() {
                continue;
            }
            // The device gets its next chunks before this thread computes checksums.
            self.refill();
            let submitted = self.submit(0);
            for (chunk, result) in landed.drain(..) {
                self.land(&chunk, result);
            }
            if let Err(e) = submitted {
                return self.abandon(&e);
            }
        }
    }

    /// Waits until a chunk lands or a submitter wakes us.
    fn sleep(&mut self) -> io::Result<()> {
        self.arm_wake();
        self.shared.asleep.store(true, Ordering::SeqCst);
        let room = !self.vacant.is_empty();
        // Whoever came before `asleep` was set did not wake us, so look once more.
        let queue = self.shared.lock();
        let more = room && queue.has_next() || queue.has_given_up();
        drop(queue);
        let idle_stop = self.in_flight() == 0 && self.shared.stopping.load(Ordering::SeqCst);
        let want = usize::from(!more && !idle_stop);
        let submitted = self.submit(want);
        self.shared.asleep.store(false, Ordering::SeqCst);
        submitted
    }

    /// Keeps one read of the eventfd in the ring: it lands when a submitter wakes us.
    fn arm_wake(&mut self) {
        if self.wake_armed {
            return;
        }
        let fd = types::Fd(self.shared.wake.as_raw_fd());
        let into: *mut u64 = &mut *self.counter;
        let entry = opcode::Read::new(fd, into.cast(), 8).build().user_data(WAKE);
        self.wake_armed = self.push(&entry);
    }

    fn push(&mut self, entry: &squeue::Entry) -> bool {
        // SAFETY: chunks' buffers live until their requests are answered, the counter lives as
        // long as the ring, and files and buffers are registered in this ring.
        unsafe { self.ring.ring.submission().push(entry) }.is_ok()
    }

    /// Gives the ring as many chunks as it may have.
    fn refill(&mut self) {
        let was_idle = self.in_flight() == 0;
        let shared = Arc::clone(&self.shared);
        let mut queue = shared.lock();
        while let Some(slot) = self.vacant.last().copied() {
            let Some(chunk) = queue.next() else { break };
            self.vacant.pop();
            self.flights[slot] = Some(Flight { chunk, moved: 0 });
            let entry = self.ring.entry(&chunk, slot as u64);
            // There is room: the ring holds one entry more than there are flights.
            self.push(&entry);
        }
        if was_idle && self.in_flight() > 0 {
            self.busy_since = Instant::now();
        }
    }

    /// Hands the entries to the kernel and waits for `want` of them to land.
    fn submit(&mut self, want: usize) -> io::Result<()> {
        loop {
            let Err(e) = self.ring.ring.submit_and_wait(want) else { return Ok(()) };
            match e.raw_os_error() {
                Some(libc::EINTR) => {}
                // The kernel is short of memory, or has landed chunks for us to take first.
                Some(libc::EAGAIN | libc::EBUSY) => {
                    if !self.ring.ring.completion().is_empty() {
                        return Ok(());
                    }
                    std::thread::yield_now();
                }
                _ => return Err(e),
            }
        }
    }

    /// The ring itself failed: every request is answered with the cause, and none is taken more.
    fn abandon(mut self, e: &io::Error) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        let mut answers: Vec<Ended> = Vec::new();
        let mut queue = self.shared.lock();
        let flights = self.flights.drain(..).flatten();
        let mut lost: Vec<Chunk> = flights.map(|flight| flight.chunk).collect();
        while let Some(chunk) = lost.pop().or_else(|| queue.next()) {
            let error =
                Error::io("the io ring failed; set the io engine to \"pool\"", e.kind().into());
            answers.extend(queue.finish(&chunk, Err(error)));
        }
        answers.extend(std::iter::from_fn(|| queue.next_given_up()));
        drop(queue);
        for ended in answers {
            self.parts.answer(ended);
        }
    }

    /// Takes what has landed; short transfers go back into the ring.
    fn reap(&mut self, landed: &mut Vec<(Chunk, Result<()>)>) {
        let ended: Vec<(u64, i32)> =
            self.ring.ring.completion().map(|entry| (entry.user_data(), entry.result())).collect();
        for (name, result) in ended {
            if name == WAKE {
                self.wake_armed = false;
                continue;
            }
            let slot = name as usize;
            let Some(mut flight) = self.flights[slot].take() else { continue };
            let chunk = flight.chunk;
            let rest = flight.rest();
            let file = &self.parts.files[chunk.file];
            let outcome = match result {
                0 => Err(truncated_error(file, rest.offset)),
                moved if moved > 0 => {
                    flight.moved += moved as usize;
                    if flight.moved < chunk.enough {
                        self.again(slot, flight);
                        continue;
                    }
                    self.parts.meter.moved(chunk.op, chunk.enough as u64);
                    Ok(())
                }
                code if code == -libc::EINTR || code == -libc::EAGAIN => {
                    self.again(slot, flight);
                    continue;
                }
                code => {
                    let e = io::Error::from_raw_os_error(-code);
                    Err(transfer_error(chunk.op, file, rest.offset, rest.len as u64, e))
                }
            };
            self.vacant.push(slot);
            landed.push((chunk, outcome));
        }
        if !landed.is_empty() {
            // Closed and reopened at every landing, so that the figure is current while busy.
            let now = Instant::now();
            let busy = now.duration_since(self.busy_since).as_nanos() as u64;
            self.parts.meter.busy_nanos.fetch_add(busy, Ordering::Relaxed);
            self.busy_since = now;
        }
    }

    fn again(&mut self, slot: usize, flight: Flight) {
        let entry = self.ring.entry(&flight.rest(), slot as u64);
        self.flights[slot] = Some(flight);
        self.push(&entry);
    }

    fn answer_given_up(&self) {
        loop {
            // The lock must not be held while the answer is given.
            let ended = self.shared.lock().next_given_up();
            let Some(ended) = ended else { return };
            self.parts.answer(ended);
        }
    }

    fn land(&self, chunk: &Chunk, result: Result<()>) {
        // SAFETY: the chunk's transfer has ended, and its request is answered below at earliest.
        let result = result.map(|()| unsafe { chunk.crc() });
        let ended = self.shared.lock().finish(chunk, result);
        if let Some(ended) = ended {
            self.parts.answer(ended);
        }
    }
}
