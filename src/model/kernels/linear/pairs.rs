//! Products of bf16 weights with activations rounded to bf16, where the processor multiplies pairs of
//! them: half the work of decoding to f32, in decoding as much as in prefill.
//!
//! One order of sums for every N: columns are cut into blocks of [`K_BLOCK`]; within a block lane l
//! of an output's accumulator sums columns 2l and 2l + 1 modulo 32, in order; the lanes are added in a
//! tree; blocks are added in order.

#![expect(clippy::needless_range_loop, reason = "an index names the same lane of several arrays")]

use super::simd::pairs::{PAIRED, dot, load, load_part, prefetch, sums, zero};
use std::arch::x86_64::{
    __m128, __m512, _mm_add_ps, _mm_loadu_ps, _mm_storeu_ps, _mm512_setzero_si512,
};

/// Columns of a block.
const K_BLOCK: usize = 4096;
/// Up to this many rows of x the weights' bytes are what takes the time.
pub(super) const FEW: usize = 4;
/// Rows of x that stay in the second-level cache while rows of W pass.
const PANEL: usize = 32;
/// Rows of a tile, of W and of x: sixteen accumulators.
pub(super) const TILE: usize = 4;
/// Of many rows of x: so many of W, which stay in the first-level cache, by so many of x, which pass.
pub(super) const WIDE: usize = 8;
pub(super) const NARROW: usize = 2;

/// A range of the rows of W, times all rows of x. Pointers as the checked matrix has them.
pub(super) struct Call {
    pub w: *const u8,
    pub row_bytes: usize,
    /// bf16 `[N, x_stride]`, zeros up to a whole vector.
    pub x: *const u16,
    pub x_stride: usize,
    pub n: usize,
    pub k: usize,
    pub from: usize,
    pub to: usize,
    /// Element (n, m) is at `out + n · out_stride + m`.
    pub out: *mut f32,
    pub out_stride: usize,
    pub add: bool,
}

/// Runs `call`.
///
/// # Safety
/// The processor has AVX-512 BF16, the pointers hold what the sizes say, and nobody else writes these
/// outputs.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub(super) unsafe fn run(call: &Call) {
    let rows = call.to - call.from;
    // SAFETY: the caller's.
    unsafe {
        if call.n > FEW {
            for panel in (0..call.n).step_by(PANEL) {
                let end = (panel + PANEL).min(call.n);
                let whole = rows / WIDE * WIDE;
                for m in (call.from..call.from + whole).step_by(WIDE) {
                    columns::<WIDE, true>(call, std::array::from_fn(|r| m + r), panel, end);
                }
                for m in call.from + whole..call.to {
                    columns::<1, true>(call, [m], panel, end);
                }
            }
            return;
        }
        // Four streams, each as long as can be: the memory's own look-ahead serves them best.
        let part = rows / TILE;
        for m in call.from..call.from + part {
            columns::<TILE, false>(call, [m, m + part, m + 2 * part, m + 3 * part], 0, call.n);
        }
        for m in call.from + TILE * part..call.to {
            columns::<1, false>(call, [m], 0, call.n);
        }
    }
}

/// Outputs of R rows of W for rows `c..end` of x. Where AHEAD, one row of the next rows of W is asked for
/// while each of the first groups of x passes: rows are too short for the memory's own look-ahead.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn columns<const R: usize, const AHEAD: bool>(
    call: &Call,
    rows: [usize; R],
    c: usize,
    end: usize,
) {
    let most = if R == WIDE { NARROW } else { TILE };
    for (nth, c) in (c..end).step_by(most).enumerate() {
        let next = rows[R - 1] + 1 + nth;
        // SAFETY: the caller's.
        unsafe {
            match most.min(end - c) {
                1 => blocks::<R, 1, AHEAD>(call, rows, c, next),
                2 if nth < R => blocks::<R, 2, AHEAD>(call, rows, c, next),
                2 => blocks::<R, 2, false>(call, rows, c, next),
                3 => blocks::<R, 3, AHEAD>(call, rows, c, next),
                _ => blocks::<R, TILE, AHEAD>(call, rows, c, next),
            }
        }
    }
}

/// Outputs of R rows of W and C rows of x, over all blocks; where AHEAD, row `next` of W is asked for.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn blocks<const R: usize, const C: usize, const AHEAD: bool>(
    call: &Call,
    rows: [usize; R],
    c: usize,
    next: usize,
) {
    let mut start = 0;
    while start < call.k {
        let len = (call.k - start).min(K_BLOCK);
        // SAFETY: the rows and the block are within W and x, the outputs are this thread's.
        unsafe {
            let mut w = [call.w; R];
            for r in 0..R {
                w[r] = call.w.add(rows[r] * call.row_bytes + start * 2);
            }
            // Opaque, so that each row's address stays in a register instead of being added up.
            let w = std::hint::black_box(w);
            let x = call.x.add(c * call.x_stride + start);
            let next = call.w.wrapping_add(next * call.row_bytes + start * 2);
            let acc = tile::<R, C, AHEAD>(w, x, call.x_stride, len, next);
            emit(call, rows, c, start == 0, &acc);
        }
        start += K_BLOCK;
    }
}

/// Adds the lanes of a block's sums to the outputs; the first block's replace what is there unless `add`.
/// [`WIDE`] rows are neighbours.
///
/// # Safety
/// As [`run`]; rows `c..c + C` of x exist.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub(super) unsafe fn emit<const R: usize, const C: usize>(
    call: &Call,
    rows: [usize; R],
    c: usize,
    first: bool,
    acc: &[[__m512; C]; R],
) {
    let replace = first && !call.add;
    for j in 0..C {
        for at in (0..R).step_by(TILE) {
            let mut four = [zero(); TILE];
            for r in at..R.min(at + TILE) {
                four[r - at] = acc[r][j];
            }
            let sums = sums(four);
            // SAFETY: the outputs are this thread's.
            unsafe {
                let out = call.out.add((c + j) * call.out_stride);
                if R == WIDE {
                    // These rows of W are neighbours, and so are their outputs.
                    let out = out.add(rows[at]);
                    let sums = if replace { sums } else { _mm_add_ps(_mm_loadu_ps(out), sums) };
                    _mm_storeu_ps(out, sums);
                    continue;
                }
                let sums = std::mem::transmute::<__m128, [f32; TILE]>(sums);
                for r in at..R.min(at + TILE) {
                    let out = out.add(rows[r]);
                    *out = if replace { sums[r - at] } else { *out + sums[r - at] };
                }
            }
        }
    }
}

/// Lanes of the sums of one block: R rows of W, C rows of x, `len` columns.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn tile<const R: usize, const C: usize, const AHEAD: bool>(
    w: [*const u8; R],
    x: *const u16,
    x_stride: usize,
    len: usize,
    next: *const u8,
) -> [[__m512; C]; R] {
    let mut acc = [[zero(); C]; R];
    let mut weights = [_mm512_setzero_si512(); R];
    let whole = len / PAIRED * PAIRED;
    // SAFETY: the caller's; x has zeros up to a whole vector.
    unsafe {
        let mut k = 0;
        while k < whole {
            if AHEAD {
                prefetch(next.wrapping_add(k * 2));
            }
            for r in 0..R {
                weights[r] = load(w[r].add(k * 2));
            }
            for c in 0..C {
                let x = load(x.add(c * x_stride + k).cast());
                for r in 0..R {
                    acc[r][c] = dot(acc[r][c], weights[r], x);
                }
            }
            k += PAIRED;
        }
        if whole < len {
            for r in 0..R {
                weights[r] = load_part(w[r].add(whole * 2), len - whole);
            }
            for c in 0..C {
                let x = load(x.add(c * x_stride + whole).cast());
                for r in 0..R {
                    acc[r][c] = dot(acc[r][c], weights[r], x);
                }
            }
        }
    }
    acc
}
