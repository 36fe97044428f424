//! Scratch memory of the kernels: aligned, uninitialised, shared between the threads of a region.

use super::TILE_BYTES;
use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};

/// An aligned allocation of whole tiles. Contents are undefined until written.
pub struct Tiles {
    data: *mut u8,
    layout: Layout,
}

// SAFETY: the memory is owned; threads of a region write disjoint tiles of it.
unsafe impl Send for Tiles {}
// SAFETY: as above.
unsafe impl Sync for Tiles {}

impl Tiles {
    /// Room for `tiles` tiles of 1 KiB.
    pub fn new(tiles: usize) -> Self {
        let bytes = tiles.max(1) * TILE_BYTES;
        // The size is far below isize::MAX and the alignment is a power of two.
        let layout = Layout::from_size_align(bytes, 64).unwrap_or(Layout::new::<[u64; 8]>());
        // SAFETY: the layout has a size above zero.
        let data = unsafe { alloc(layout) };
        if data.is_null() || layout.size() < bytes {
            handle_alloc_error(layout);
        }
        Self { data, layout }
    }

    /// The address of tile `index`.
    #[inline(always)]
    pub fn tile(&self, index: usize) -> *mut u8 {
        debug_assert!((index + 1) * TILE_BYTES <= self.layout.size());
        self.data.wrapping_add(index * TILE_BYTES)
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout.
        unsafe { dealloc(self.data, self.layout) }
    }
}
