//! The product in vectors of bf16 pairs (AVX-512 BF16): a row of A broadcast pair by pair, times the
//! rows of a B tile, which are pairs of sixteen columns already.

use super::unit::{Block, Operand, Part};
use std::arch::x86_64::*;
use std::hint::black_box;

/// Pairs of a tile's row.
const PAIRS: usize = 16;
/// Tiles along the depth that all rows pass before the next: two columns of them fit in the first-level
/// cache, beside the rows of A.
const CHUNK: usize = 8;
/// Rows of A at a time: with two columns sixteen sums, enough to hide how long one takes.
const ROWS: usize = 8;

/// out = [a0; a1] · [b0, b1]; what lies beyond `part` is set to zero.
///
/// Each sum is one chain along the depth, whatever the part.
///
/// # Safety
/// The processor has these features; the operands' tiles are readable over the depth of `part`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub unsafe fn product(
    a: Operand,
    b: Operand,
    part: Part,
    ahead: Option<[*const u8; 2]>,
    out: &mut Block,
) {
    let two = part.columns > 16;
    let pairs = part.depth.div_ceil(2);
    for start in (0..pairs).step_by(CHUNK * PAIRS) {
        let first = start / PAIRS;
        let depth = Depth { first, pairs: (pairs - start).min(CHUNK * PAIRS) };
        for half in 0..2 {
            let rows = part.rows.saturating_sub(16 * half).min(16);
            let mut row = 0;
            while row < rows {
                let ahead = ahead.filter(|_| row == 0).map(|ahead| ahead[half]);
                let call = Call { a, b, depth, ahead, at: [half, row] };
                // SAFETY: by the caller's promise.
                unsafe {
                    row += match (rows - row, two) {
                        (16, false) => rows_of::<16, 1>(call, out),
                        (left, false) if left >= ROWS => rows_of::<ROWS, 1>(call, out),
                        (_, false) => rows_of::<1, 1>(call, out),
                        (1, true) => rows_of::<1, 2>(call, out),
                        (2, true) => rows_of::<2, 2>(call, out),
                        (3, true) => rows_of::<3, 2>(call, out),
                        (4, true) => rows_of::<4, 2>(call, out),
                        (5, true) => rows_of::<5, 2>(call, out),
                        (6, true) => rows_of::<6, 2>(call, out),
                        (7, true) => rows_of::<7, 2>(call, out),
                        (_, true) => rows_of::<ROWS, 2>(call, out),
                    };
                }
            }
        }
    }
    for (index, tile) in out.0.iter_mut().enumerate() {
        let rows = part.rows.saturating_sub(16 * (index / 2)).min(16);
        let whole = index % 2 == 0 || two;
        tile[if whole { rows } else { 0 }..].fill([0.0; 16]);
    }
}

/// A stretch of the depth: its first tile, and its pairs.
#[derive(Clone, Copy)]
struct Depth {
    first: usize,
    pairs: usize,
}

/// Rows of A over a stretch of the depth.
#[derive(Clone, Copy)]
struct Call {
    a: Operand,
    b: Operand,
    depth: Depth,
    ahead: Option<*const u8>,
    /// Which tile of A, and the first row in it.
    at: [usize; 2],
}

/// `R` rows times `C` tiles of columns; answers `R`.
///
/// # Safety
/// As [`product`]; the rows are within their tile.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn rows_of<const R: usize, const C: usize>(call: Call, out: &mut Block) -> usize {
    let Call { a, b, depth, ahead, at: [half, row] } = call;
    // Opaque, so that addresses of rows stay in registers instead of being added up for every pair.
    let rows: [*const u8; R] = black_box(std::array::from_fn(|r| {
        a.tiles[half].wrapping_add((row + r) * a.stride + depth.first * a.step)
    }));
    let mut sums = [[_mm512_setzero_ps(); C]; R];
    if depth.first > 0 {
        for (r, sums) in sums.iter_mut().enumerate() {
            for (c, sum) in sums.iter_mut().enumerate() {
                // SAFETY: a row of a tile is sixteen aligned f32.
                *sum = unsafe { _mm512_load_ps(out.0[2 * half + c][row + r].as_ptr()) };
            }
        }
    }
    let (mut left, mut tile) = (depth.pairs, 0);
    while left > 0 {
        if let Some(ahead) = ahead {
            for line in 0..8 {
                let at = ahead.wrapping_add(512 * (depth.first + tile) + 64 * line);
                _mm_prefetch::<_MM_HINT_T1>(at.cast());
            }
        }
        let columns: [*const u8; C] =
            std::array::from_fn(|c| b.tiles[c].wrapping_add((depth.first + tile) * b.step));
        let pairs = left.min(PAIRS);
        for pair in 0..pairs {
            // SAFETY: by the caller's promise.
            unsafe {
                let mut b = [_mm512_setzero_si512(); C];
                for (b, at) in b.iter_mut().zip(columns) {
                    *b = _mm512_load_si512(at.wrapping_add(64 * pair).cast());
                }
                for (row, sums) in rows.iter().zip(&mut sums) {
                    let at = row.wrapping_add(tile * a.step + 4 * pair).cast::<i32>();
                    let a = _mm512_set1_epi32(at.read_unaligned());
                    for (sum, b) in sums.iter_mut().zip(b) {
                        *sum = dot(*sum, a, b);
                    }
                }
            }
        }
        left -= pairs;
        tile += 1;
    }
    for (r, sums) in sums.into_iter().enumerate() {
        for (c, sum) in sums.into_iter().enumerate() {
            // SAFETY: as above.
            unsafe { _mm512_store_ps(out.0[2 * half + c][row + r].as_mut_ptr(), sum) };
        }
    }
    R
}

/// acc + the products of a's and b's neighbours, pair by pair.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn dot(acc: __m512, a: __m512i, b: __m512i) -> __m512 {
    // SAFETY: both types are 512 bits without invalid patterns.
    unsafe {
        let a = std::mem::transmute::<__m512i, __m512bh>(a);
        _mm512_dpbf16_ps(acc, a, std::mem::transmute::<__m512i, __m512bh>(b))
    }
}
