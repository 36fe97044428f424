//! Products of bf16 weights with activations rounded to bf16, where the processor multiplies pairs of
//! them: half the work of decoding to f32, in decoding as much as in prefill.
//!
//! One order of sums for every N: columns are cut into blocks of [`K_BLOCK`]; within a block lane l
//! of an output's accumulator sums columns 2l and 2l + 1 modulo 32, in order; the lanes are added in a
//! tree; blocks are added in order.

#![expect(clippy::needless_range_loop, reason = "an index names the same lane of several arrays")]

use super::simd::pairs::{PAIRED, dot, eight_sums, load, load_part, prefetch, sums, zero};
use std::arch::x86_64::{
    __m128, __m512, _mm256_add_ps, _mm256_loadu_ps, _mm256_storeu_ps, _mm512_setzero_si512,
};
use std::ops::Range;

/// Columns of a block.
const K_BLOCK: usize = 2048;
/// Up to this many rows of x the weights' bytes are what takes the time.
pub(super) const FEW: usize = 4;
/// Bytes of x that stay in the second-level cache while rows of W pass.
const CACHED: usize = 512 << 10;
/// Rows of a tile, of W and of x: sixteen accumulators.
pub(super) const TILE: usize = 4;
/// Of many rows of x: so many of W, which stay in the first-level cache (rows that lie a power of two apart
/// share a set of it, which has room for twelve lines), by so many of x, which pass.
pub(super) const WIDE: usize = 8;
const NARROW: usize = 3;
/// Rows of x are cut in multiples of this many.
const MANY: usize = WIDE * NARROW;

/// A range of the rows of W, times all rows of x. Pointers as the checked matrix has them.
pub(super) struct Call {
    pub w: *const u8,
    pub row_bytes: usize,
    /// bf16 `[N, x_stride]`, zeros up to a whole vector.
    pub x: *const u16,
    pub x_stride: usize,
    /// The rows that are multiplied, N of them; null: the first N.
    pub x_rows: *const u32,
    pub n: usize,
    pub k: usize,
    pub from: usize,
    pub to: usize,
    /// Element (n, m) is at `out + n · out_stride + m`.
    pub out: *mut f32,
    pub out_stride: usize,
    pub add: bool,
}

impl Call {
    /// Column `k` of the n-th row of x.
    ///
    /// # Safety
    /// There are so many rows.
    #[inline(always)]
    unsafe fn row(&self, n: usize, k: usize) -> *const u16 {
        // SAFETY: the caller's.
        let n = if self.x_rows.is_null() { n } else { unsafe { *self.x_rows.add(n) as usize } };
        self.x.wrapping_add(n * self.x_stride + k)
    }
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
            let whole = call.from + rows / WIDE * WIDE;
            many(call, call.from..whole);
            for m in whole..call.to {
                columns::<1>(call, [m], call.n);
            }
            return;
        }
        // Four streams, each as long as can be: the memory's own look-ahead serves them best.
        let part = rows / TILE;
        for m in call.from..call.from + part {
            columns::<TILE>(call, [m, m + part, m + 2 * part, m + 3 * part], call.n);
        }
        for m in call.from + TILE * part..call.to {
            columns::<1>(call, [m], call.n);
        }
    }
}

/// Whole groups of [`WIDE`] rows of W times all rows of x.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn many(call: &Call, rows: Range<usize>) {
    let most = (CACHED / (2 * call.k.max(1))).max(MANY) / MANY * MANY;
    for first in (0..call.n).step_by(most) {
        let x = first..call.n.min(first + most);
        for m in rows.clone().step_by(WIDE) {
            for start in (0..call.k).step_by(K_BLOCK) {
                let len = (call.k - start).min(K_BLOCK);
                let next = if start + len == call.k { (m + WIDE, 0) } else { (m, start + len) };
                let block = Block { call, m, start, len, next };
                // SAFETY: the rows and the block are within W and x; what is asked for need not exist.
                unsafe {
                    // As thinly as can be: a cache that waits for many lines lets nothing else by.
                    match x.len().div_ceil(NARROW) {
                        18.. => groups::<1>(&block, x.clone()),
                        8.. => groups::<2>(&block, x.clone()),
                        4.. => groups::<4>(&block, x.clone()),
                        _ => groups::<8>(&block, x.clone()),
                    }
                }
            }
        }
    }
}

/// A block of [`WIDE`] rows of W.
struct Block<'a> {
    call: &'a Call,
    /// Its first row, its first column and its columns.
    m: usize,
    start: usize,
    len: usize,
    /// Row and column where the block begins that is multiplied next.
    next: (usize, usize),
}

/// Outputs of a block for some rows of x; each of the first groups of [`NARROW`] asks for so many HALVES of
/// rows of the next block.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn groups<const HALVES: usize>(block: &Block<'_>, x: Range<usize>) {
    // With many groups the first is busy enough with fetching this block from the second-level cache.
    let first = if HALVES <= 2 { x.start + NARROW } else { x.start };
    let (mut c, mut asked) = (x.start, 0);
    while c < x.end {
        // Two and two rather than three and one: one row alone waits for W.
        let left = x.end - c;
        let rows = if left == 4 { 2 } else { left.min(NARROW) };
        let asks = rows > 1 && c >= first && asked < 2 * WIDE;
        // SAFETY: the caller's.
        unsafe {
            match rows {
                NARROW if asks => group::<NARROW, HALVES>(block, c, asked),
                NARROW => group::<NARROW, 0>(block, c, 0),
                2 if asks => group::<2, HALVES>(block, c, asked),
                2 => group::<2, 0>(block, c, 0),
                _ => group::<1, 0>(block, c, 0),
            }
        }
        c += rows;
        asked += if asks { HALVES } else { 0 };
    }
}

/// As [`groups`], rows `c..c + C` of x; `asked` halves were asked for.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn group<const C: usize, const HALVES: usize>(block: &Block<'_>, c: usize, asked: usize) {
    let Block { call, m, start, len, next } = *block;
    let at = |m: usize, k: usize| call.w.wrapping_add(m * call.row_bytes + 2 * k);
    // Opaque, so that each row's address stays in a register instead of being added up.
    let w: [*const u8; WIDE] = std::hint::black_box(std::array::from_fn(|r| at(m + r, start)));
    let ahead = at(next.0 + asked / 2, next.1 + asked % 2 * len / 2);
    let (whole, rest) = (len / PAIRED, len % PAIRED);
    let mut acc = [[zero(); C]; WIDE];
    // SAFETY: x has zeros up to a whole vector, the outputs are this thread's.
    unsafe {
        let x: [*const u16; C] = std::array::from_fn(|j| call.row(c + j, start));
        let inputs = |step: usize| x.map(|x| load(x.add(step * PAIRED).cast()));
        let mut multiply = |step: usize| {
            let bytes = 2 * PAIRED * step;
            for row in 0..HALVES / 2 {
                prefetch(ahead.wrapping_add(row * call.row_bytes + bytes));
            }
            let inputs = inputs(step);
            for r in 0..WIDE {
                let weights = load(w[r].add(bytes));
                for j in 0..C {
                    acc[r][j] = dot(acc[r][j], weights, inputs[j]);
                }
            }
        };
        // Two and two, so that a line of half a row is asked for without a question.
        for step in (0..whole / 2 * 2).step_by(2) {
            if HALVES == 1 {
                prefetch(ahead.wrapping_add(PAIRED * step));
            }
            multiply(step);
            multiply(step + 1);
        }
        if whole % 2 == 1 {
            multiply(whole - 1);
        }
        if rest > 0 {
            let inputs = inputs(whole);
            for r in 0..WIDE {
                let weights = load_part(w[r].add(2 * PAIRED * whole), rest);
                for j in 0..C {
                    acc[r][j] = dot(acc[r][j], weights, inputs[j]);
                }
            }
        }
        emit(call, std::array::from_fn(|r| m + r), c, start == 0, &acc);
    }
}

/// Outputs of R rows of W for all `n` rows of x.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn columns<const R: usize>(call: &Call, rows: [usize; R], n: usize) {
    for c in (0..n).step_by(TILE) {
        // SAFETY: the caller's.
        unsafe {
            match n - c {
                1 => blocks::<R, 1>(call, rows, c),
                2 => blocks::<R, 2>(call, rows, c),
                3 => blocks::<R, 3>(call, rows, c),
                _ => blocks::<R, TILE>(call, rows, c),
            }
        }
    }
}

/// Outputs of R rows of W and C rows of x, over all blocks.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn blocks<const R: usize, const C: usize>(call: &Call, rows: [usize; R], c: usize) {
    for start in (0..call.k).step_by(K_BLOCK) {
        let len = (call.k - start).min(K_BLOCK);
        // SAFETY: the rows and the block are within W and x, the outputs are this thread's.
        unsafe {
            let mut w = [call.w; R];
            for r in 0..R {
                w[r] = call.w.add(rows[r] * call.row_bytes + start * 2);
            }
            // Opaque, so that each row's address stays in a register instead of being added up.
            let w = std::hint::black_box(w);
            let acc = tile::<R, C>(w, std::array::from_fn(|j| call.row(c + j, start)), len);
            emit(call, rows, c, start == 0, &acc);
        }
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
        // SAFETY: the outputs are this thread's.
        let out = unsafe { call.out.add((c + j) * call.out_stride) };
        if R == WIDE {
            let mut eight = [zero(); WIDE];
            for r in 0..R {
                eight[r] = acc[r][j];
            }
            // These rows of W are neighbours, and so are their outputs.
            // SAFETY: as above.
            unsafe {
                let out = out.add(rows[0]);
                let sums = eight_sums(eight);
                let sums = if replace { sums } else { _mm256_add_ps(_mm256_loadu_ps(out), sums) };
                _mm256_storeu_ps(out, sums);
            }
            continue;
        }
        for at in (0..R).step_by(TILE) {
            let mut four = [zero(); TILE];
            for r in at..R.min(at + TILE) {
                four[r - at] = acc[r][j];
            }
            // SAFETY: as above.
            unsafe {
                let sums = std::mem::transmute::<__m128, [f32; TILE]>(sums(four));
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
unsafe fn tile<const R: usize, const C: usize>(
    w: [*const u8; R],
    x: [*const u16; C],
    len: usize,
) -> [[__m512; C]; R] {
    let mut acc = [[zero(); C]; R];
    let mut weights = [_mm512_setzero_si512(); R];
    let whole = len / PAIRED * PAIRED;
    // SAFETY: the caller's; x has zeros up to a whole vector.
    unsafe {
        let mut k = 0;
        while k < whole {
            for r in 0..R {
                weights[r] = load(w[r].add(k * 2));
            }
            for c in 0..C {
                let x = load(x[c].add(k).cast());
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
                let x = load(x[c].add(whole).cast());
                for r in 0..R {
                    acc[r][c] = dot(acc[r][c], weights[r], x);
                }
            }
        }
    }
    acc
}
