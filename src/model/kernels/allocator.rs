//! Memory of libtorch's tensors and the kernels' scratch: large blocks are mapped once and used again.
//!
//! From the C library each large tensor would be mapped, faulted in and unmapped (the page faults
//! cost a third of a training step), or, where the heap keeps what is freed, leave gaps that the
//! next one does not fit. Here a freed block waits for a tensor of about its size, and what waits
//! is bounded by what was ever in use at once.

use super::parallel::native_status;
use crate::base::Result;
use std::alloc::Layout;
use std::ffi::{c_int, c_void};
use std::ptr;
use std::sync::{Mutex, PoisonError};

unsafe extern "C" {
    fn semoe_set_allocator(
        allocate: extern "C" fn(usize) -> *mut c_void,
        release: extern "C" fn(*mut c_void),
    ) -> c_int;
}

/// Tensors of at least so many bytes come from the pool, smaller ones from the heap.
const LARGE: usize = 16 << 10;

/// Bytes before a tensor's own: how long its mapping is, 0 for one on the heap. As long as the
/// alignment that libtorch counts on.
const HEADER: usize = 64;

/// Blocks of at least so many bytes ask for huge pages.
const HUGE: usize = 4 << 20;

/// How much of what was ever in use at once may wait besides: one part in so many.
const KEPT: usize = 32;

/// A mapping that no tensor uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Block {
    at: usize,
    bytes: usize,
}

/// What waits, and how much is in use. Pure: mapping is done by the caller.
#[derive(Debug, Default)]
struct Pool {
    /// From the longest unused to the last freed.
    free: Vec<Block>,
    free_bytes: usize,
    live: usize,
    most: usize,
}

impl Pool {
    const fn new() -> Self {
        Self { free: Vec::new(), free_bytes: 0, live: 0, most: 0 }
    }

    /// A block of at least `bytes` that waits: the smallest, at most half as long again.
    fn take(&mut self, bytes: usize) -> Option<Block> {
        let fits = |block: &Block| block.bytes >= bytes && block.bytes <= bytes + bytes / 2;
        let found = (0..self.free.len()).rev().filter(|i| fits(&self.free[*i]));
        let found = found.min_by_key(|i| self.free[*i].bytes)?;
        let block = self.free.remove(found);
        self.free_bytes -= block.bytes;
        self.enter(block.bytes);
        Some(block)
    }

    /// Counts a block as in use.
    fn enter(&mut self, bytes: usize) {
        self.live += bytes;
        self.most = self.most.max(self.live);
    }

    fn give(&mut self, block: Block) {
        self.live -= block.bytes;
        self.free_bytes += block.bytes;
        self.free.push(block);
    }

    /// The block to unmap next, while more waits than may.
    fn surplus(&mut self) -> Option<Block> {
        if self.free.is_empty() || self.live + self.free_bytes <= self.most + self.most / KEPT {
            return None;
        }
        let block = self.free.remove(0);
        self.free_bytes -= block.bytes;
        Some(block)
    }
}

static POOL: Mutex<Pool> = Mutex::new(Pool::new());

fn pool<T>(work: impl FnOnce(&mut Pool) -> T) -> T {
    work(&mut POOL.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Sizes of blocks: eight between one power of two and the next, so that tensors of nearly the
/// same size use the same block.
fn class(bytes: usize) -> usize {
    let step = (bytes.next_power_of_two() / 16).max(4096);
    bytes.next_multiple_of(step)
}

fn map(bytes: usize) -> *mut c_void {
    // SAFETY: an anonymous mapping at an address of the system's choice touches nothing else.
    let at = unsafe {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        libc::mmap(ptr::null_mut(), bytes, access, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0)
    };
    if at == libc::MAP_FAILED {
        return ptr::null_mut();
    }
    #[cfg(target_os = "linux")]
    if bytes >= HUGE {
        // SAFETY: advice about the mapping just made; where it is refused, pages stay small.
        unsafe { libc::madvise(at, bytes, libc::MADV_HUGEPAGE) };
    }
    at
}

fn unmap(block: Block) {
    // SAFETY: the block came from `map` with this length, and no tensor uses it.
    unsafe { libc::munmap(block.at as *mut c_void, block.bytes) };
}

/// Memory for a tensor of `bytes`, aligned to 64; null where there is none.
extern "C" fn allocate(bytes: usize) -> *mut c_void {
    let Some(whole) = bytes.checked_add(HEADER) else { return ptr::null_mut() };
    let (at, mapped) = if whole < LARGE {
        let mut at = ptr::null_mut();
        // SAFETY: `at` is a place for the address; the alignment is a power of two.
        if unsafe { libc::posix_memalign(&raw mut at, HEADER, whole) } != 0 {
            return ptr::null_mut();
        }
        (at, 0)
    } else {
        let bytes = class(whole);
        match pool(|pool| pool.take(bytes)) {
            Some(block) => (block.at as *mut c_void, block.bytes),
            None => {
                // Counted before what waits is weighed, so that room is made for it.
                pool(|pool| pool.enter(bytes));
                while let Some(block) = pool(Pool::surplus) {
                    unmap(block);
                }
                (map(bytes), bytes)
            }
        }
    };
    if at.is_null() {
        pool(|pool| pool.live -= mapped);
        return at;
    }
    // SAFETY: the memory is at least a header and `bytes` long, and aligned to 64.
    unsafe {
        at.cast::<usize>().write(mapped);
        at.byte_add(HEADER)
    }
}

extern "C" fn release(data: *mut c_void) {
    if data.is_null() {
        return;
    }
    // SAFETY: `data` came from `allocate`, which wrote the header before it.
    let (at, mapped) = unsafe {
        let at = data.byte_sub(HEADER);
        (at, at.cast::<usize>().read())
    };
    if mapped == 0 {
        // SAFETY: a length of 0 says that `posix_memalign` gave this address.
        unsafe { libc::free(at) };
        return;
    }
    pool(|pool| pool.give(Block { at: at as usize, bytes: mapped }));
    while let Some(block) = pool(Pool::surplus) {
        unmap(block);
    }
}

/// Scratch memory of a kernel: aligned to 64 bytes, undefined until written, from the same pool.
pub struct Scratch {
    at: *mut u8,
    bytes: usize,
}

// SAFETY: the memory is owned, and what it holds is plain bytes.
unsafe impl Send for Scratch {}
// SAFETY: as above; whoever shares it divides it.
unsafe impl Sync for Scratch {}

impl Scratch {
    pub fn new(bytes: usize) -> Self {
        let at = allocate(bytes).cast::<u8>();
        if at.is_null() {
            std::alloc::handle_alloc_error(
                Layout::from_size_align(bytes, 1).unwrap_or(Layout::new::<u8>()),
            );
        }
        Self { at, bytes }
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The first byte.
    #[inline(always)]
    pub fn at(&self) -> *mut u8 {
        self.at
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        release(self.at.cast());
    }
}

/// Gives libtorch's tensors this allocator, and tells glibc's to return what is freed. Call it
/// before the first tensor: it counts those that are made after it.
///
/// One heap serves all threads: tensors are made on one thread and freed on another, and a heap
/// of each thread's own would keep what the others could use.
///
/// # Errors
/// [`crate::base::ErrorKind::Torch`] when libtorch refuses the allocator.
pub fn tune_allocator() -> Result<()> {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: mallopt only sets parameters of the allocator; it may be called at any time.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 256 << 10);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 4 << 20);
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
    // SAFETY: both functions stay for as long as the process does.
    native_status(unsafe { semoe_set_allocator(allocate, release) })
}

/// Returns what waits for tensors, and what the heap keeps, to the system: after a phase that held
/// more than the next one will.
pub fn trim_allocator() {
    let waiting = pool(|pool| {
        pool.most = pool.live;
        pool.free_bytes = 0;
        std::mem::take(&mut pool.free)
    });
    waiting.into_iter().for_each(unmap);
    trim_heap();
}

/// Returns the pages of the heap that hold nothing to the system, those between live allocations
/// too: so that what is allocated at chance moments does not add up over a long run.
pub fn trim_heap() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: only pages without live allocations are given back.
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tch::{Device, Kind, Tensor};

    #[test]
    fn a_class_wastes_less_than_an_eighth_or_a_page() {
        for bytes in (LARGE..LARGE * 40).step_by(777) {
            let class = class(bytes);
            assert!(class >= bytes && class < bytes + (bytes / 8).max(4096), "{bytes}");
            assert!(class.is_multiple_of(4096), "{bytes}");
        }
    }

    #[test]
    fn tensors_are_aligned_zeroed_and_resized() {
        tune_allocator().unwrap();
        for n in [0, 1, 1000, 50_000, 3_000_000] {
            let mut t = Tensor::full([n], 7, (Kind::Float, Device::Cpu));
            assert_eq!(t.data_ptr() as usize % HEADER, 0);
            drop(t.copy());
            let zeros = Tensor::zeros([n], (Kind::Float, Device::Cpu));
            assert_eq!(zeros.abs().sum(Kind::Float).double_value(&[]), 0.0);
            let _ = t.resize_([2 * n + 1]);
            let same = t.narrow(0, 0, n).eq(7).all();
            assert!(bool::try_from(same).unwrap());
        }
    }

    proptest! {
        #[test]
        fn what_waits_is_bounded_and_nothing_is_lost(sizes in prop::collection::vec(
            (LARGE..64 * LARGE, 0usize..8), 1..200)
        ) {
            let (mut pool, mut next) = (Pool::new(), 0);
            let (mut live, mut mapped): (Vec<Block>, usize) = (Vec::new(), 0);
            for (bytes, keep) in sizes {
                let bytes = class(bytes);
                let block = pool.take(bytes).unwrap_or_else(|| {
                    pool.enter(bytes);
                    while let Some(gone) = pool.surplus() {
                        mapped -= gone.bytes;
                    }
                    next += 1;
                    mapped += bytes;
                    Block { at: next, bytes }
                });
                prop_assert!(block.bytes >= bytes && !live.contains(&block));
                live.push(block);
                while live.len() > keep {
                    pool.give(live.remove(0));
                    while let Some(gone) = pool.surplus() {
                        mapped -= gone.bytes;
                    }
                }
                prop_assert_eq!(mapped, pool.live + pool.free_bytes);
                prop_assert_eq!(pool.live, live.iter().map(|block| block.bytes).sum::<usize>());
                prop_assert!(mapped <= pool.most + pool.most / KEPT);
            }
        }
    }
}
