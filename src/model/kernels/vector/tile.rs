//! The product that everything runs on: up to six rows by one panel, summed in registers.
//!
//! Each element is one chain of multiply-adds over K in order, whatever pieces K comes in. So a
//! result depends on its own row and column only, not on how a product was cut into tiles.

use super::simd::Simd;
use std::hint::black_box;

/// Rows of a full tile: with two vectors of columns, twelve sums, which is what hides the latency
/// of the multiply-add and still fits sixteen registers.
pub const ROWS: usize = 6;
/// K of a panel that stays in the first-level cache (16 KiB with 8 lanes) while rows pass.
pub const DEPTH: usize = 256;

/// The left operand: element (row, k) lies at `at + row · stride + k · step`.
#[derive(Clone, Copy)]
pub struct Left {
    pub at: *const f32,
    pub stride: usize,
    pub step: usize,
}

/// `sums[r] += Σ_k left[r, k] · panel[k]`.
///
/// # Safety
/// The instruction set is there; `R` rows of the left operand and the panel are readable over `k`.
#[inline(always)]
unsafe fn sum<S: Simd, const R: usize>(
    k: usize,
    left: Left,
    panel: *const f32,
    sums: &mut [[S::V; 2]; R],
) {
    // Opaque, so that the rows' addresses stay in registers instead of being added up again for
    // every k.
    let rows: [*const f32; R] =
        black_box(std::array::from_fn(|r| left.at.wrapping_add(r * left.stride)));
    let mut all = *sums;
    let (mut at, mut offset) = (panel, 0);
    for _ in 0..k {
        // SAFETY: by the caller's promise.
        unsafe {
            let b = [S::load(at), S::load(at.add(S::LANES))];
            for (row, sums) in rows.iter().zip(&mut all) {
                let a = S::splat(row.add(offset));
                sums[0] = S::mul_add(a, b[0], sums[0]);
                sums[1] = S::mul_add(a, b[1], sums[1]);
            }
            at = at.add(S::PANEL);
        }
        offset += left.step;
    }
    *sums = all;
}

/// `R` rows of `out` = left · panel, or out + left · panel where `add`.
///
/// # Safety
/// As [`sum`]; `R` rows of `out`, `stride` apart, have room for a panel.
#[inline(always)]
unsafe fn tile<S: Simd, const R: usize>(
    k: usize,
    left: Left,
    panel: *const f32,
    out: *mut f32,
    stride: usize,
    add: bool,
) {
    // SAFETY: by the caller's promise.
    unsafe {
        let mut sums = [[S::zero(); 2]; R];
        if add {
            for (r, sums) in sums.iter_mut().enumerate() {
                *sums = [S::load(out.add(r * stride)), S::load(out.add(r * stride + S::LANES))];
            }
        }
        sum::<S, R>(k, left, panel, &mut sums);
        for (r, sums) in sums.iter().enumerate() {
            S::store(out.add(r * stride), sums[0]);
            S::store(out.add(r * stride + S::LANES), sums[1]);
        }
    }
}

/// `rows` rows of `out` = left · panel, or out + left · panel where `add`.
///
/// # Safety
/// As [`tile`], for all rows.
#[inline(always)]
pub unsafe fn product<S: Simd>(
    rows: usize,
    k: usize,
    left: Left,
    panel: *const f32,
    out: *mut f32,
    stride: usize,
    add: bool,
) {
    let mut n = 0;
    while n < rows {
        let left = Left { at: left.at.wrapping_add(n * left.stride), ..left };
        let out = out.wrapping_add(n * stride);
        // SAFETY: by the caller's promise.
        unsafe {
            match rows - n {
                1 => tile::<S, 1>(k, left, panel, out, stride, add),
                2 => tile::<S, 2>(k, left, panel, out, stride, add),
                3 => tile::<S, 3>(k, left, panel, out, stride, add),
                4 => tile::<S, 4>(k, left, panel, out, stride, add),
                5 => tile::<S, 5>(k, left, panel, out, stride, add),
                _ => tile::<S, ROWS>(k, left, panel, out, stride, add),
            }
        }
        n += ROWS;
    }
}

/// A full tile of left · panel, set or added as a whole to `out`; adds the squares of what `out` then
/// holds, summed in f32 over the tile, to `squares`, lane by lane.
///
/// # Safety
/// As [`tile`].
#[inline(always)]
pub unsafe fn product_squares<S: Simd>(
    k: usize,
    left: Left,
    panel: *const f32,
    out: *mut f32,
    stride: usize,
    add: bool,
    squares: &mut [f64; 16],
) {
    // SAFETY: by the caller's promise; 32 lanes are at least a panel.
    unsafe {
        let mut sums = [[S::zero(); 2]; ROWS];
        sum::<S, ROWS>(k, left, panel, &mut sums);
        let one = S::splat(&1.0);
        let mut square = [S::zero(); 2];
        for (r, sums) in sums.into_iter().enumerate() {
            for (half, mut value) in sums.into_iter().enumerate() {
                let at = out.add(r * stride + half * S::LANES);
                if add {
                    value = S::mul_add(value, one, S::load(at));
                }
                S::store(at, value);
                square[half] = S::mul_add(value, value, square[half]);
            }
        }
        let mut lanes = [0f32; 32];
        S::store(lanes.as_mut_ptr(), square[0]);
        S::store(lanes.as_mut_ptr().add(S::LANES), square[1]);
        for (i, lane) in lanes.iter().take(S::PANEL).enumerate() {
            squares[i % 16] += f64::from(*lane);
        }
    }
}
