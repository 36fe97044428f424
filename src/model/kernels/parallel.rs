//! The threads of libtorch for our own loops, and the process-wide settings of speed.
//!
//! An executor, and an optimizer with several threads of its own, enter parallel regions: each has
//! helpers that stay as long as it does. Threads without helpers call the kernels with
//! [`Threads::Calling`].

use crate::base::{Error, ErrorKind, Result};
use std::ffi::{CStr, c_char, c_int, c_void};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

unsafe extern "C" {
    fn semoe_last_error() -> *const c_char;
    fn semoe_parallel_for(
        n: i64,
        grain: i64,
        body: extern "C" fn(*mut c_void, i64, i64),
        ctx: *mut c_void,
    ) -> c_int;
    fn semoe_set_threads(n: c_int) -> c_int;
}

/// Which threads a kernel runs on. The result never depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Threads {
    /// The calling thread and its helpers, as many as [`set_threads`] said on it.
    #[default]
    Pool,
    /// The calling thread alone.
    Calling,
}

impl Threads {
    /// Those that pay for one pass over so many elements: entering a region costs microseconds.
    pub fn for_elements(elements: usize) -> Self {
        if elements < 1 << 15 { Self::Calling } else { Self::Pool }
    }
}

/// Shares of a loop for each thread: a thread that is held up leaves its later ones to the others.
const SHARES: usize = 8;

struct Region<F> {
    body: F,
    n: usize,
    /// Indices of a share.
    share: usize,
    /// The first index that no thread has taken.
    next: AtomicUsize,
    panicked: AtomicBool,
}

impl<F: Fn(Range<usize>)> Region<F> {
    /// Takes shares until none is left.
    fn work(&self) {
        loop {
            let begin = self.next.fetch_add(self.share, Ordering::Relaxed);
            if begin >= self.n {
                return;
            }
            (self.body)(begin..self.n.min(begin + self.share));
        }
    }
}

extern "C" fn enter<F: Fn(Range<usize>) + Sync>(ctx: *mut c_void, _begin: i64, _end: i64) {
    // SAFETY: `ctx` is the `Region<F>` that `parallel_for` keeps alive until all threads are done.
    let region = unsafe { &*ctx.cast::<Region<F>>() };
    // A panic must not unwind through C++ frames.
    if catch_unwind(AssertUnwindSafe(|| region.work())).is_err() {
        region.panicked.store(true, Ordering::Relaxed);
    }
}

/// Runs `body` over disjoint ranges that cover `0..n`, each of at least `grain` indices but the
/// last, on libtorch's intra-op threads. Which thread takes which range depends on how fast each
/// is (another thread may hold its core for a while), so a body's result must not.
///
/// # Errors
/// [`ErrorKind::Torch`] when libtorch throws; [`ErrorKind::Bug`] when a body panics.
pub fn parallel_for<F: Fn(Range<usize>) + Sync>(n: usize, grain: usize, body: F) -> Result<()> {
    if n == 0 {
        return Ok(());
    }
    let threads = usize::try_from(tch::get_num_threads()).unwrap_or(1).max(1);
    let share = n.div_ceil(threads * SHARES).max(grain).max(1);
    let (next, panicked) = (AtomicUsize::new(0), AtomicBool::new(false));
    let region = Region { body, n, share, next, panicked };
    let ctx = std::ptr::from_ref(&region).cast_mut().cast::<c_void>();
    let workers = threads.min(n.div_ceil(share));
    // SAFETY: `enter::<F>` reads `ctx` as the `Region<F>` it is; the call returns only when all
    // threads are done, so `region` outlives every use.
    let status = unsafe { semoe_parallel_for(workers as i64, 1, enter::<F>, ctx) };
    native_status(status)?;
    if region.panicked.load(Ordering::Relaxed) {
        return Err(Error::bug("a parallel kernel panicked"));
    }
    Ok(())
}

/// Runs `work` once for each item, on the threads that `threads` names.
///
/// # Errors
/// As [`parallel_for`].
pub fn parallel_each<T: Send>(
    threads: Threads,
    items: Vec<T>,
    work: impl Fn(usize, T) + Sync,
) -> Result<()> {
    if threads == Threads::Calling || items.len() < 2 {
        items.into_iter().enumerate().for_each(|(i, item)| work(i, item));
        return Ok(());
    }
    // Each cell is locked once, by the one thread whose range holds it.
    let cells: Vec<Mutex<Option<T>>> = items.into_iter().map(|i| Mutex::new(Some(i))).collect();
    let work = |i: usize| {
        if let Some(item) = cells[i].lock().ok().and_then(|mut cell| cell.take()) {
            work(i, item);
        }
    };
    parallel_for(cells.len(), 1, |range| {
        range.for_each(work);
    })
}

/// Sets how many threads the calling thread's parallel regions use (libtorch's and ours).
///
/// # Errors
/// [`ErrorKind::Torch`] when libtorch refuses the number.
pub fn set_threads(n: usize) -> Result<()> {
    // SAFETY: a plain call with an integer.
    native_status(unsafe { semoe_set_threads(n.max(1) as c_int) })
}

pub(super) fn native_status(status: c_int) -> Result<()> {
    if status == 0 {
        return Ok(());
    }
    // SAFETY: the native side keeps the message of this thread's last error, NUL-terminated.
    let text = unsafe { CStr::from_ptr(semoe_last_error()) }.to_string_lossy().into_owned();
    let first = text.lines().next().unwrap_or("unknown error").to_owned();
    Err(Error::new(ErrorKind::Torch, first))
}

/// For tests: `work` answers the same on one thread and on three.
#[cfg(test)]
pub fn same_on_threads<T: PartialEq + std::fmt::Debug>(work: impl Fn() -> T) {
    let before = tch::get_num_threads();
    let answers = [1, 3].map(|threads| {
        set_threads(threads).unwrap();
        work()
    });
    set_threads(before as usize).unwrap();
    assert_eq!(answers[0], answers[1]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_index_is_visited_once() {
        let hits: Vec<AtomicUsize> = (0..1000).map(|_| AtomicUsize::new(0)).collect();
        parallel_for(hits.len(), 7, |range| {
            for i in range {
                hits[i].fetch_add(1, Ordering::Relaxed);
            }
        })
        .unwrap();
        assert!(hits.iter().all(|h| h.load(Ordering::Relaxed) == 1));
    }

    #[test]
    fn each_item_is_worked_on_once() {
        let mut out = vec![0usize; 37];
        for threads in [Threads::Pool, Threads::Calling] {
            out.fill(0);
            let items: Vec<&mut [usize]> = out.chunks_mut(5).collect();
            parallel_each(threads, items, |i, part| part.fill(i + 1)).unwrap();
            assert!(out.iter().enumerate().all(|(i, v)| *v == i / 5 + 1), "{threads:?}");
        }
    }

    #[test]
    fn a_panic_becomes_an_error() {
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(|_| {}));
        let result = parallel_for(4, 1, |_| panic!("no"));
        std::panic::set_hook(hook);
        assert_eq!(result.unwrap_err().kind(), ErrorKind::Bug);
    }
}
