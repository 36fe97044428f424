//! Operands in tile order.

use super::TILE_BYTES;
use super::lanes::{load_rows, store_tile, transpose, zip};
use std::arch::x86_64::*;

/// B tile of xᵀ from rows of x: 16 rows `[n]` of 32 values along the depth become 16 pairs `[k]` of 16
/// columns `[n]`. `at`: the block's first value; `row_bytes` from row to row; rows from `valid` on
/// are zero.
///
/// # Safety
/// `valid` rows of 64 bytes are readable, and `tile` is a packed tile.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub unsafe fn columns(at: *const u8, row_bytes: usize, valid: usize, tile: *mut u8) {
    // SAFETY: by the caller's promise.
    unsafe { store_tile(tile, &transpose(load_rows(at, row_bytes, valid))) };
}

/// A tile from rows: a copy, with rows from `valid` on zero.
///
/// # Safety
/// As [`columns`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub unsafe fn rows(at: *const u8, row_bytes: usize, valid: usize, tile: *mut u8) {
    // SAFETY: by the caller's promise.
    unsafe { store_tile(tile, &load_rows(at, row_bytes, valid)) };
}

/// From 32 rows `[n]` of 16 values `[h]`: the pairs (row 2r, row 2r + 1) of a B tile, in registers.
///
/// # Safety
/// `valid` rows of 32 bytes are readable.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn row_pairs(at: *const u8, row_bytes: usize, valid: usize) -> [__m512i; 16] {
    let mut pairs = [_mm512_setzero_si512(); 16];
    for (r, pair) in pairs.iter_mut().enumerate() {
        let row = |n: usize| {
            if n >= valid {
                return _mm256_setzero_si256();
            }
            // SAFETY: by the caller's promise.
            unsafe { _mm256_loadu_si256(at.wrapping_add(n * row_bytes).cast()) }
        };
        let both = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(row(2 * r)), row(2 * r + 1));
        *pair = zip(both);
    }
    pairs
}

/// B tile from 32 rows `[n]` of 16 values `[h]`; depth is n.
///
/// # Safety
/// `valid` rows of 32 bytes are readable, and `tile` is a packed tile.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub unsafe fn pairs(at: *const u8, row_bytes: usize, valid: usize, tile: *mut u8) {
    // SAFETY: by the caller's promise.
    unsafe { store_tile(tile, &row_pairs(at, row_bytes, valid)) };
}

/// A tile of the transpose from 32 rows `[n]` of 16 values `[h]`: 16 rows `[h]` of 32 values `[n]`.
///
/// # Safety
/// As [`pairs`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub unsafe fn transposed(at: *const u8, row_bytes: usize, valid: usize, tile: *mut u8) {
    // SAFETY: by the caller's promise.
    unsafe { store_tile(tile, &transpose(row_pairs(at, row_bytes, valid))) };
}

/// Pairs whose rows are fetched ahead of the one being packed.
const AHEAD: usize = 4;

/// B tiles of `blocks` neighbouring panels of 32 columns, from `pairs` (a multiple of 16) pairs of
/// weight rows: `row(p)` names where the first panel's columns start in the two rows of pair p.
/// Panels lie `panel_bytes` apart; in each, tile 2 k + b holds pairs 16 k .. 16 k + 16. Columns are
/// left in the order that unpacking gives: column j of tile b is column [`column()`]`(b, j)`.
///
/// Panels are packed together because rows lie far apart: what is read of a row at once should
/// fill whole lines of memory, one after the other.
///
/// # Safety
/// Both rows of every pair are readable for 64 bytes a block; `panel` has room for `pairs / 8`
/// tiles a block.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub unsafe fn weight_pairs(
    pairs: usize,
    blocks: usize,
    row: impl Fn(usize) -> [*const u8; 2],
    panel: *mut u8,
    panel_bytes: usize,
) {
    for p in 0..pairs {
        let [even, odd] = row(p);
        let next = row((p + AHEAD).min(pairs - 1));
        let tile = panel.wrapping_add(2 * TILE_BYTES * (p / 16) + 64 * (p % 16));
        for block in 0..blocks {
            // SAFETY: by the caller's promise; prefetching takes any address.
            unsafe {
                _mm_prefetch::<_MM_HINT_T0>(next[0].wrapping_add(64 * block).cast());
                _mm_prefetch::<_MM_HINT_T0>(next[1].wrapping_add(64 * block).cast());
                let even = _mm512_loadu_si512(even.wrapping_add(64 * block).cast());
                let odd = _mm512_loadu_si512(odd.wrapping_add(64 * block).cast());
                let low = _mm512_unpacklo_epi16(even, odd);
                let high = _mm512_unpackhi_epi16(even, odd);
                let at = tile.wrapping_add(panel_bytes * block);
                _mm512_store_si512(at.cast(), low);
                _mm512_store_si512(at.wrapping_add(TILE_BYTES).cast(), high);
            }
        }
    }
}

/// Panels that are packed together: as many as fit beside other things in the second-level cache.
pub fn panels_at_once(panel_bytes: usize) -> usize {
    const ROOM: usize = 1 << 20;
    (ROOM / panel_bytes).clamp(1, 8)
}

/// The column of 32 that column `j` of tile `b` of [`weight_pairs`] holds.
#[inline(always)]
pub const fn column(b: usize, j: usize) -> usize {
    8 * (j / 4) + j % 4 + 4 * b
}
