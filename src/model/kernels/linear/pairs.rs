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

/// Columns of a block: four rows of W and of x are in the first-level cache, half a row apart.
const K_BLOCK: usize = 4096;
/// Up to this many rows of x the weights' bytes are what takes the time.
const FEW: usize = 4;
/// Rows of x that stay in the second-level cache while rows of W pass.
const PANEL: usize = 32;
/// Rows of a tile, of W and of x: sixteen accumulators.
const TILE: usize = 4;
const WIDE: usize = 8;
const NARROW: usize = 2;

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
    mut c: usize,
    end: usize,
) {
    let mut next = rows[R - 1] + 1;
    while c < end {
        let ahead = (AHEAD && next <= rows[R - 1] + R).then_some(next);
        next += 1;
        // SAFETY: the caller's.
        unsafe {
            if R == WIDE {
                match (end - c, ahead) {
                    (1, _) => blocks::<R, 1, AHEAD>(call, rows, c, next),
                    (_, Some(next)) => blocks::<R, NARROW, AHEAD>(call, rows, c, next),
                    (_, None) => blocks::<R, NARROW, false>(call, rows, c, next),
                }
                c += NARROW;
                continue;
            }
            match (end - c, ahead) {
                (1, _) => blocks::<R, 1, AHEAD>(call, rows, c, next),
                (2, _) => blocks::<R, 2, AHEAD>(call, rows, c, next),
                (3, _) => blocks::<R, 3, AHEAD>(call, rows, c, next),
                (_, Some(next)) => blocks::<R, TILE, AHEAD>(call, rows, c, next),
                (_, None) => blocks::<R, TILE, false>(call, rows, c, next),
            }
        }
        c += TILE;
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
            for j in 0..C {
                for first in (0..R).step_by(TILE) {
                    let mut four = [zero(); TILE];
                    for r in first..R.min(first + TILE) {
                        four[r - first] = acc[r][j];
                    }
                    let sums = sums(four);
                    let (m, n) = (rows[first], c + j);
                    if first + TILE <= R && rows[first + TILE - 1] == m + TILE - 1 {
                        let out = call.out.add(n * call.out_stride + m);
                        let all = if start == 0 && !call.add {
                            sums
                        } else {
                            _mm_add_ps(_mm_loadu_ps(out), sums)
                        };
                        _mm_storeu_ps(out, all);
                        continue;
                    }
                    let sums = std::mem::transmute::<__m128, [f32; TILE]>(sums);
                    for r in first..R.min(first + TILE) {
                        let sum = sums[r - first];
                        let out = call.out.add((c + j) * call.out_stride + rows[r]);
                        *out = if start == 0 && !call.add { sum } else { *out + sum };
                    }
                }
            }
        }
        start += K_BLOCK;
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
