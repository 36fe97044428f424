//! Scratch memory of the kernels: aligned, uninitialised, shared between the threads of a region.

use super::TILE_BYTES;
use crate::model::kernels::allocator::Scratch;

/// An aligned allocation of whole tiles. Contents are undefined until written.
pub struct Tiles(Scratch);

impl Tiles {
    /// Room for `tiles` tiles of 1 KiB.
    pub fn new(tiles: usize) -> Self {
        Self(Scratch::new(tiles.max(1) * TILE_BYTES))
    }

    /// The address of tile `index`.
    #[inline(always)]
    pub fn tile(&self, index: usize) -> *mut u8 {
        debug_assert!((index + 1) * TILE_BYTES <= self.0.bytes());
        self.0.at().wrapping_add(index * TILE_BYTES)
    }
}
