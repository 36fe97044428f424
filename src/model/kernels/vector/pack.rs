//! Weights and activations as panels: [K, P] in f32, P columns of a product side by side.

use super::simd::Simd;
use crate::model::kernels::dispatch::dispatched;
use crate::model::kernels::float::Number;
use std::slice::{from_raw_parts as slice, from_raw_parts_mut as slice_mut};

/// A number that panels are packed from: f32, or bf16 as its bits.
pub trait Element: Number {
    const BF16: bool;
    /// The values themselves, where they are f32.
    fn as_f32(values: &[Self]) -> Option<&[f32]>;
    /// to = values.
    fn widen(values: &[Self], to: &mut [f32]);
}

impl Element for f32 {
    const BF16: bool = false;
    fn as_f32(values: &[f32]) -> Option<&[f32]> {
        Some(values)
    }
    fn widen(values: &[f32], to: &mut [f32]) {
        to.copy_from_slice(values);
    }
}

impl Element for u16 {
    const BF16: bool = true;
    fn as_f32(_: &[u16]) -> Option<&[f32]> {
        None
    }
    fn widen(values: &[u16], to: &mut [f32]) {
        widen_bf16(values, to);
    }
}

#[inline(always)]
pub(super) fn widen_row<T: Element>(values: &[T], to: &mut [f32]) {
    for (&x, to) in values.iter().zip(to) {
        *to = x.load();
    }
}

dispatched! {
    fn widen_bf16(values: &[u16], to: &mut [f32]) = widen_row;
}

/// A matrix in memory whose rows are contiguous.
#[derive(Clone, Copy)]
pub struct Matrix<T> {
    pub at: *const T,
    /// Elements from one row to the next.
    pub stride: usize,
}

// SAFETY: a plain pointer to memory that nobody writes while it is read; see each use.
unsafe impl<T: Sync> Send for Matrix<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for Matrix<T> {}

impl<T> Matrix<T> {
    pub fn new(values: &[T], stride: usize) -> Self {
        Self { at: values.as_ptr(), stride }
    }

    #[inline(always)]
    pub fn row(&self, row: usize, column: usize) -> *const T {
        self.at.wrapping_add(row * self.stride + column)
    }
}

/// A panel of a transposed matrix: `panel[P k + l] = w[row + l, column + k]` for the `k` columns
/// from `column` and the `lanes` rows from `row`. Lanes beyond hold the last row again.
///
/// # Safety
/// The instruction set is there, the rows and columns lie in the matrix, and the panel has room.
#[inline(always)]
pub unsafe fn transposed<S: Simd, T: Element>(
    w: Matrix<T>,
    [row, column]: [usize; 2],
    k: usize,
    lanes: usize,
    panel: *mut f32,
) {
    let at_once = if T::BF16 { 16 } else { 8 };
    for l in (0..S::PANEL).step_by(8) {
        let mut rows = [w.at.cast::<u8>(); 8];
        for (i, at) in rows.iter_mut().enumerate() {
            *at = w.row(row + (l + i).min(lanes - 1), column).cast();
        }
        let mut p = 0;
        while p + at_once <= k {
            // SAFETY: 32 bytes of each row lie in the matrix by the caller's promise.
            unsafe {
                let out = panel.add(p * S::PANEL + l);
                if T::BF16 {
                    S::transpose8::<true>(rows, out, S::PANEL);
                } else {
                    S::transpose8::<false>(rows, out, S::PANEL);
                }
                for at in &mut rows {
                    *at = at.add(32);
                }
            }
            p += at_once;
        }
        for p in p..k {
            for i in 0..8 {
                let at = w.row(row + (l + i).min(lanes - 1), column + p);
                // SAFETY: as above.
                unsafe { *panel.add(p * S::PANEL + l + i) = (*at).load() };
            }
        }
    }
}

/// A panel of a matrix as it lies: `panel[P k + l] = w[row + k, column + l]`. Lanes beyond `lanes`
/// are zero.
///
/// # Safety
/// As [`transposed`].
#[inline(always)]
pub unsafe fn rows<S: Simd, T: Element>(
    w: Matrix<T>,
    [row, column]: [usize; 2],
    k: usize,
    lanes: usize,
    panel: *mut f32,
) {
    for p in 0..k {
        let from = w.row(row + p, column);
        // SAFETY: by the caller's promise.
        unsafe {
            let to = slice_mut(panel.add(p * S::PANEL), S::PANEL);
            // Apart, so that the compiler knows the length of a whole panel.
            if lanes == S::PANEL {
                widen_row(slice(from, S::PANEL), to);
            } else {
                widen_row(slice(from, lanes), to);
                to[lanes..].fill(0.0);
            }
        }
    }
}

/// `R` columns of a matrix side by side, as the rows of a transposed operand:
/// `out[R k + r] = w[k, column + r]`, zero from `valid` on.
///
/// # Safety
/// As [`transposed`].
#[inline(always)]
pub unsafe fn strip<const R: usize>(
    w: Matrix<f32>,
    column: usize,
    k: usize,
    valid: usize,
    out: *mut f32,
) {
    for p in 0..k {
        let from = w.row(p, column);
        // SAFETY: by the caller's promise.
        unsafe {
            let to = slice_mut(out.add(p * R), R);
            if valid == R {
                to.copy_from_slice(slice(from, R));
            } else {
                to[..valid].copy_from_slice(slice(from, valid));
                to[valid..].fill(0.0);
            }
        }
    }
}
