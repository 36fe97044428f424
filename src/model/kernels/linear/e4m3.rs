//! Products of FP8 weights with activations rounded to bf16, where the processor multiplies pairs of bf16 and
//! looks bytes up in a table of 128: bf16 holds every number of e4m3 as it is.
//!
//! One order of sums for every N: within the columns of a tile of scales lane l sums columns 2l and 2l + 1
//! modulo 32, in order; a tile's sums times its scale are added in order; the lanes of a block of
//! [`K_BLOCK`] columns are added in a tree; blocks are added in order.

#![expect(clippy::needless_range_loop, reason = "an index names the same row of several arrays")]

use super::encoding::FP8_TILE;
use super::pairs::{self, FEW, TILE, WIDE, emit};
pub(super) use super::simd::e4m3::has as fits;
use super::simd::e4m3::{BYTES, Table};
use super::simd::pairs::{PAIRED, dot, load, store, zero};
use std::arch::x86_64::{__m512i, _mm512_fmadd_ps, _mm512_set1_ps};
use std::mem::MaybeUninit;

/// Columns of a block, whole tiles: decoded for many rows of x, those of [`WIDE`] rows of W stay in the
/// first-level cache.
const K_BLOCK: usize = 1024;
/// Rows of x at a time, where there are many.
const NARROW: usize = 2;
/// Vectors of a tile.
const VECTORS: usize = FP8_TILE / PAIRED;

/// [`WIDE`] rows of W over a block, decoded: a vector of each, side by side.
#[repr(align(64))]
struct Panel([Vectors; K_BLOCK / PAIRED]);
type Vectors = [[u16; PAIRED]; WIDE];

/// A range of the rows of W, times all rows of x.
pub(super) struct Call {
    /// `w` is e4m3.
    pub pairs: pairs::Call,
    /// f32 [⌈M/128⌉, `scale_stride`], at any alignment.
    pub scales: *const u8,
    pub scale_stride: usize,
}

/// Runs `call`.
///
/// # Safety
/// The processor has the instructions ([`fits`]), the pointers hold what the sizes say, and nobody else
/// writes these outputs.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx512vbmi")]
pub(super) unsafe fn run(call: &Call) {
    let pairs::Call { n, from, to, .. } = call.pairs;
    let table = Table::new();
    // SAFETY: the caller's.
    unsafe {
        if n > FEW {
            let whole = (to - from) / WIDE * WIDE;
            for m in (from..from + whole).step_by(WIDE) {
                many::<WIDE>(call, &table, std::array::from_fn(|r| m + r));
            }
            for m in from + whole..to {
                many::<1>(call, &table, [m]);
            }
            return;
        }
        // Four long streams, as the memory's own look-ahead likes them.
        let part = (to - from) / TILE;
        for m in from..from + part {
            few::<TILE>(call, &table, [m, m + part, m + 2 * part, m + 3 * part]);
        }
        for m in from + TILE * part..to {
            few::<1>(call, &table, [m]);
        }
    }
}

/// R rows of W, decoded as they are multiplied.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx512vbmi")]
unsafe fn few<const R: usize>(call: &Call, table: &Table, rows: [usize; R]) {
    for start in (0..call.pairs.k).step_by(K_BLOCK) {
        // SAFETY: the rows are within W.
        unsafe {
            let w = encoded(call, rows, start);
            match call.pairs.n {
                1 => block::<R, 1, false>(call, table, rows, start, w, 0),
                2 => block::<R, 2, false>(call, table, rows, start, w, 0),
                3 => block::<R, 3, false>(call, table, rows, start, w, 0),
                _ => block::<R, FEW, false>(call, table, rows, start, w, 0),
            }
        }
    }
}

/// R rows of W, decoded once for all rows of x.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx512vbmi")]
unsafe fn many<const R: usize>(call: &Call, table: &Table, rows: [usize; R]) {
    let mut panel = MaybeUninit::<Panel>::uninit();
    // SAFETY: an address is taken and nothing is read.
    let panel = unsafe { (&raw mut (*panel.as_mut_ptr()).0).cast::<Vectors>() };
    for start in (0..call.pairs.k).step_by(K_BLOCK) {
        let len = (call.pairs.k - start).min(K_BLOCK);
        // SAFETY: the rows are within W; the panel has room for a block, whose end is rounded up to a tile.
        unsafe {
            let w = encoded(call, rows, start);
            for r in 0..R {
                for k in (0..len).step_by(FP8_TILE) {
                    let vectors = decode(table, w[r].add(k), (len - k).min(FP8_TILE));
                    for (v, numbers) in vectors.into_iter().enumerate() {
                        store(panel.add(k / PAIRED + v).cast::<[u16; PAIRED]>().add(r), numbers);
                    }
                }
            }
            let (n, decoded) = (call.pairs.n, [panel.cast::<u8>().cast_const(); R]);
            for c in (0..n).step_by(NARROW) {
                match n - c {
                    1 => block::<R, 1, true>(call, table, rows, start, decoded, c),
                    _ => block::<R, NARROW, true>(call, table, rows, start, decoded, c),
                }
            }
        }
    }
}

/// Where each of R rows of W has column `start`.
#[inline]
unsafe fn encoded<const R: usize>(call: &Call, rows: [usize; R], start: usize) -> [*const u8; R] {
    // SAFETY: the caller's.
    rows.map(|row| unsafe { call.pairs.w.add(row * call.pairs.row_bytes + start) })
}

/// The first `len` columns of a tile, zeros above.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx512vbmi")]
unsafe fn decode(table: &Table, w: *const u8, len: usize) -> [__m512i; VECTORS] {
    // SAFETY: the caller's.
    unsafe {
        let [a, b] = table.decode(w, len.min(BYTES));
        let [c, d] = table.decode(w.wrapping_add(BYTES), len.saturating_sub(BYTES));
        [a, b, c, d]
    }
}

/// Outputs of R rows of W and rows `c..c + C` of x, over the block at `start`. `w` has the rows of the block
/// as they lie, or, where DECODED, a [`Panel`] of all of them.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx512vbmi")]
unsafe fn block<const R: usize, const C: usize, const DECODED: bool>(
    call: &Call,
    table: &Table,
    rows: [usize; R],
    start: usize,
    w: [*const u8; R],
    c: usize,
) {
    let len = (call.pairs.k - start).min(K_BLOCK);
    let mut acc = [[zero(); C]; R];
    // SAFETY: the caller's; rows of x have zeros up to a whole vector.
    unsafe {
        let x = call.pairs.x.add(c * call.pairs.x_stride + start);
        for k in (0..len).step_by(FP8_TILE) {
            let columns = (len - k).min(FP8_TILE);
            let vectors = columns.div_ceil(PAIRED);
            for r in 0..R {
                let at = rows[r] / FP8_TILE * call.scale_stride + (start + k) / FP8_TILE;
                let scale = call.scales.add(at * 4).cast::<f32>().read_unaligned();
                let scale = _mm512_set1_ps(scale);
                let weights: [__m512i; VECTORS] = if DECODED {
                    let at = |v: usize| ((k / PAIRED + v) * WIDE + r) * PAIRED * 2;
                    std::array::from_fn(|v| load(w[r].add(at(v))))
                } else {
                    decode(table, w[r].add(k), columns)
                };
                for j in 0..C {
                    let x = x.add(j * call.pairs.x_stride + k);
                    let mut sum = zero();
                    // A whole tile has a fixed number of steps, which are laid out one after the other.
                    if vectors == VECTORS {
                        for v in 0..VECTORS {
                            sum = dot(sum, weights[v], load(x.add(v * PAIRED).cast()));
                        }
                    } else {
                        for v in 0..vectors {
                            sum = dot(sum, weights[v], load(x.add(v * PAIRED).cast()));
                        }
                    }
                    acc[r][j] = _mm512_fmadd_ps(sum, scale, acc[r][j]);
                }
            }
        }
        emit(&call.pairs, rows, c, start == 0, &acc);
    }
}
