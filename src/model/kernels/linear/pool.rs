//! Threads that wait for the next product: they spin for a moment, then sleep.
//!
//! A decoded token enters hundreds of parallel regions of some 100 µs each, so a region must begin
//! in about a microsecond while work is hot, and cost nothing while the disk is waited for.
//! One caller at a time; it is one of the threads. Law 4: which thread takes which task is
//! left to chance, so a task's result must not depend on it.

use crate::base::{Error, ErrorKind, Result};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a thread looks for the next region before it sleeps: longer than the gap between two
/// products of a token, shorter than a read from the disk.
const SPIN: Duration = Duration::from_micros(40);

/// Called with the thread's index and the task's.
type Body<'a> = dyn Fn(usize, usize) + Sync + 'a;

/// One region, on the caller's stack for as long as a task of it is unfinished.
struct Job {
    body: *const Body<'static>,
    tasks: usize,
}

/// What the threads share. `left` counts tasks that nobody has taken: who takes one (by exchange)
/// knows that the region is alive until he reports it in `unfinished`, and only then reads `job`.
#[derive(Default)]
struct Shared {
    left: AtomicUsize,
    unfinished: AtomicUsize,
    job: AtomicPtr<Job>,
    panicked: AtomicBool,
    stop: AtomicBool,
    asleep: Vec<AtomicBool>,
}

impl Shared {
    /// Takes and runs tasks until none is left.
    fn work(&self, thread: usize) {
        let mut left = self.left.load(Ordering::Acquire);
        while left > 0 {
            let taken =
                self.left.compare_exchange(left, left - 1, Ordering::AcqRel, Ordering::Acquire);
            if let Err(now) = taken {
                left = now;
                continue;
            }
            // SAFETY: a task was taken and is not reported yet, so `run` has not returned, and
            // the job that it published before `left` is alive.
            let job = unsafe { &*self.job.load(Ordering::Acquire) };
            // SAFETY: as above: the body outlives the region.
            let body = unsafe { &*job.body };
            let task = job.tasks - left;
            if catch_unwind(AssertUnwindSafe(|| body(thread, task))).is_err() {
                self.panicked.store(true, Ordering::Relaxed);
            }
            self.unfinished.fetch_sub(1, Ordering::AcqRel);
            left = self.left.load(Ordering::Acquire);
        }
    }

    fn has_work(&self) -> bool {
        self.left.load(Ordering::SeqCst) > 0 || self.stop.load(Ordering::SeqCst)
    }

    /// The life of thread `thread`.
    fn live(&self, thread: usize) {
        let asleep = &self.asleep[thread - 1];
        while !self.stop.load(Ordering::Acquire) {
            self.work(thread);
            if spin_until(|| self.has_work()) {
                continue;
            }
            asleep.store(true, Ordering::SeqCst);
            while !self.has_work() {
                std::thread::park();
            }
            asleep.store(false, Ordering::SeqCst);
        }
    }
}

/// Whether `ready` came true within [`SPIN`].
fn spin_until(ready: impl Fn() -> bool) -> bool {
    let start = Instant::now();
    loop {
        for _ in 0..64 {
            if ready() {
                return true;
            }
            std::hint::spin_loop();
        }
        if start.elapsed() > SPIN {
            return false;
        }
    }
}

/// The threads of one caller.
pub struct Pool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Pool {
    /// A pool of `threads` threads, the caller's included.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] for no thread at all; [`ErrorKind::Io`] when the system refuses one.
    pub fn new(threads: usize) -> Result<Self> {
        if threads == 0 {
            return Err(Error::config("compute needs at least one thread"));
        }
        let asleep = (1..threads).map(|_| AtomicBool::new(false)).collect();
        let shared = Arc::new(Shared { asleep, ..Shared::default() });
        let mut pool = Self { shared, threads: Vec::new() };
        for thread in 1..threads {
            let shared = Arc::clone(&pool.shared);
            let builder = std::thread::Builder::new().name(format!("linear-{thread}"));
            let handle = builder
                .spawn(move || shared.live(thread))
                .map_err(|e| Error::io("starting a compute thread", e))?;
            pool.threads.push(handle);
        }
        Ok(pool)
    }

    /// Threads, the caller's included.
    pub fn threads(&self) -> usize {
        self.threads.len() + 1
    }

    /// Runs `body(thread, task)` for every task in `0..tasks`, taken in this order. Returns when
    /// all are done.
    ///
    /// # Errors
    /// [`ErrorKind::Bug`] when a body panicked.
    pub fn run(&mut self, tasks: usize, body: &Body<'_>) -> Result<()> {
        if self.threads.is_empty() || tasks <= 1 {
            (0..tasks).for_each(|task| body(0, task));
            return Ok(());
        }
        let shared = &*self.shared;
        // SAFETY: the lifetime is forgotten for the time of this call only: it returns when every
        // task has been reported, and who has taken no task does not look at the job.
        let body: *const Body<'static> = unsafe { std::mem::transmute(std::ptr::from_ref(body)) };
        let mut job = Job { body, tasks };
        shared.job.store(&raw mut job, Ordering::Release);
        shared.unfinished.store(tasks, Ordering::Release);
        shared.left.store(tasks, Ordering::SeqCst);
        for (asleep, handle) in shared.asleep.iter().zip(&self.threads).take(tasks - 1) {
            if asleep.load(Ordering::SeqCst) {
                handle.thread().unpark();
            }
        }
        shared.work(0);
        while !spin_until(|| shared.unfinished.load(Ordering::Acquire) == 0) {
            std::thread::yield_now();
        }
        if shared.panicked.swap(false, Ordering::Relaxed) {
            return Err(Error::new(ErrorKind::Bug, "a product's kernel panicked"));
        }
        Ok(())
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for handle in self.threads.drain(..) {
            handle.thread().unpark();
            // A thread ends by `stop` alone: bodies' panics are caught.
            let _ = handle.join();
        }
    }
}

/// A slice that the threads of a region write, each to places of its own.
pub struct Disjoint<'a, T> {
    data: *mut T,
    len: usize,
    lifetime: std::marker::PhantomData<&'a mut [T]>,
}

// SAFETY: every user writes places of its own (see `range`).
unsafe impl<T: Send> Sync for Disjoint<'_, T> {}

impl<'a, T> Disjoint<'a, T> {
    pub fn new(slice: &'a mut [T]) -> Self {
        Self { data: slice.as_mut_ptr(), len: slice.len(), lifetime: std::marker::PhantomData }
    }

    /// The same slice: what holds for two threads holds for two handles.
    pub(super) fn again(&self) -> Disjoint<'_, T> {
        Disjoint { ..*self }
    }

    /// The address of element `index`.
    #[inline(always)]
    pub(super) fn at(&self, index: usize) -> *mut T {
        self.data.wrapping_add(index)
    }

    /// `len` elements from `start`, clipped to the slice.
    ///
    /// # Safety
    /// No two threads of a region hold overlapping ranges.
    #[expect(clippy::mut_from_ref, reason = "the caller keeps ranges apart, see below")]
    #[inline(always)]
    pub unsafe fn range(&self, start: usize, len: usize) -> &mut [T] {
        let start = start.min(self.len);
        let len = len.min(self.len - start);
        // SAFETY: inside the slice, which is borrowed for 'a; the caller keeps ranges apart.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(start), len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU32;

    #[test]
    fn every_task_runs_once() {
        for threads in [1, 2, 5] {
            let mut pool = Pool::new(threads).unwrap();
            assert_eq!(pool.threads(), threads);
            for tasks in [0, 1, 2, 3, 64, 1000] {
                let runs: Vec<AtomicU32> = (0..tasks).map(|_| AtomicU32::new(0)).collect();
                pool.run(tasks, &|thread, task| {
                    assert!(thread < threads);
                    runs[task].fetch_add(1, Ordering::Relaxed);
                })
                .unwrap();
                assert!(runs.iter().all(|n| n.load(Ordering::Relaxed) == 1));
            }
        }
        assert!(Pool::new(0).is_err());
    }

    #[test]
    fn a_sleeping_thread_is_woken() {
        let mut pool = Pool::new(2).unwrap();
        for _ in 0..5 {
            while !pool.shared.asleep[0].load(Ordering::SeqCst) {
                std::thread::yield_now();
            }
            // Both tasks wait for each other: one thread alone would never finish.
            let barrier = std::sync::Barrier::new(2);
            pool.run(2, &|_, _| {
                barrier.wait();
            })
            .unwrap();
        }
    }

    #[test]
    fn a_panic_is_an_error_and_the_pool_lives_on() {
        let mut pool = Pool::new(3).unwrap();
        let failed = pool.run(8, &|_, task| assert!(task != 5, "on purpose"));
        assert_eq!(failed.unwrap_err().kind(), ErrorKind::Bug);
        pool.run(8, &|_, _| ()).unwrap();
    }
}
