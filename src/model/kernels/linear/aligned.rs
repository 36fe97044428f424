//! Memory that begins on 64 bytes, a cache line and a vector: what lies across two is read twice.

use crate::base::Result;
use crate::base::pages::{HUGE_PAGE, Pages};
use crate::model::kernels::view::{Plain, cast_mut};
use std::marker::PhantomData;

/// Memory that begins on 64 bytes.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// Bytes that begin on 64 bytes, zero at first; many of them in huge pages.
pub struct AlignedBytes {
    memory: Memory,
    len: usize,
}

enum Memory {
    Heap(Vec<Line>),
    Mapped(Pages),
}

impl AlignedBytes {
    pub fn zeroed(len: usize) -> Self {
        let mapped = (len as u64 >= HUGE_PAGE).then(|| Pages::zeroed(len as u64, true));
        let memory = match mapped {
            Some(Ok(mut pages)) => {
                // All of it is there from the start: memory that a plan counts does not grow later.
                pages.fill(0);
                Memory::Mapped(pages)
            }
            // The heap has its own way to say that there is no memory.
            _ => Memory::Heap(vec![Line([0; 64]); len.div_ceil(64)]),
        };
        Self { memory, len }
    }

    pub fn copy_of(bytes: &[u8]) -> Self {
        let mut copy = Self::zeroed(bytes.len());
        copy.copy_from_slice(bytes);
        copy
    }
}

impl std::ops::Deref for AlignedBytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match &self.memory {
            Memory::Heap(lines) => &lines.as_flattened_bytes()[..self.len],
            Memory::Mapped(pages) => pages,
        }
    }
}

impl std::ops::DerefMut for AlignedBytes {
    fn deref_mut(&mut self) -> &mut [u8] {
        match &mut self.memory {
            Memory::Heap(lines) => &mut lines.as_flattened_bytes_mut()[..self.len],
            Memory::Mapped(pages) => pages,
        }
    }
}

impl std::fmt::Debug for AlignedBytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AlignedBytes({})", self.len)
    }
}

/// Lines as the bytes that they are.
trait Flatten {
    fn as_flattened_bytes(&self) -> &[u8];
    fn as_flattened_bytes_mut(&mut self) -> &mut [u8];
}

impl Flatten for [Line] {
    fn as_flattened_bytes(&self) -> &[u8] {
        // SAFETY: a `Line` is 64 bytes without padding, and any bytes are valid.
        unsafe { std::slice::from_raw_parts(self.as_ptr().cast(), size_of_val(self)) }
    }
    fn as_flattened_bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.as_mut_ptr().cast(), size_of_val(self)) }
    }
}

/// Values that begin on 64 bytes: memory that grows and never shrinks; much of it in huge pages.
#[derive(Debug)]
pub struct Aligned<T> {
    bytes: AlignedBytes,
    values: PhantomData<T>,
}

impl<T> Default for Aligned<T> {
    fn default() -> Self {
        Self { bytes: AlignedBytes::zeroed(0), values: PhantomData }
    }
}

impl<T: Plain> Aligned<T> {
    /// The first `len` values: those that were left there, or all zeros where it had to grow.
    ///
    /// # Errors
    /// None in fact: bytes may be any values.
    pub fn sized(&mut self, len: usize) -> Result<&mut [T]> {
        let bytes = len * size_of::<T>();
        if self.bytes.len() < bytes {
            // The old memory goes first: both together are in no plan.
            self.bytes = AlignedBytes::zeroed(0);
            self.bytes = AlignedBytes::zeroed(bytes);
        }
        cast_mut(&mut self.bytes[..bytes])
    }

    pub fn as_ptr(&self) -> *const T {
        self.bytes.as_ptr().cast()
    }
}
