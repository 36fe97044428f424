//! A place that the threads of one region write to, each at indices of its own.

/// A pointer that the threads of a region write through, each to places of its own.
#[derive(Clone, Copy)]
pub struct Shared<T>(*mut T);

// SAFETY: see the type; every user writes disjoint elements from different threads.
unsafe impl<T: Send> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shared<T> {}

impl<T> Shared<T> {
    pub fn new(slice: &mut [T]) -> Self {
        Self(slice.as_mut_ptr())
    }

    #[inline(always)]
    pub fn at(&self, index: usize) -> *mut T {
        self.0.wrapping_add(index)
    }
}
