//! The forward pass of one expert.

use super::floats::{Floats, Wide, padded};
use super::pack::{self, Element, Matrix};
use super::simd::Simd;
use super::tile::{DEPTH, Left, product};
use super::{Shape, grain, panel, vectored};
use crate::base::Result;
use crate::model::kernels::float::sigmoid;
use crate::model::kernels::parallel::parallel_for;
use crate::model::kernels::shared::Shared;
use std::ops::Range;
use std::slice::{from_raw_parts as slice, from_raw_parts_mut as slice_mut};

/// Rows whose products cost about as much as packing the weights.
pub(super) const PACKING: usize = 4;

/// o [N, H] = down(silu(gate(x)) · up(x)). `gate_up` [2F, H], `down` [H, F], `x` [N, H]; gate and up
/// go to `kept` [N, 2F] for the backward pass.
///
/// # Errors
/// As [`parallel_for`]; [`crate::base::ErrorKind::Bug`] when slices do not fit the shape.
pub fn forward<T: Element>(
    shape: Shape,
    gate_up: &[T],
    down: &[T],
    x: &[T],
    o: &mut [T],
    kept: Option<&mut [T]>,
) -> Result<()> {
    let Shape { rows, hidden, width } = shape;
    let slices = [(o.len(), rows * hidden), (down.len(), hidden * width)];
    shape.check(&slices)?;
    let stride = padded(width);
    let mut act = Floats::new(rows * stride);
    first_product(shape, gate_up, x, Some((act.slice(), stride)), kept)?;
    let job = Down {
        shape,
        weights: Matrix::new(down, width),
        act: act.matrix(stride),
        o: Shared::new(o),
    };
    let adds = (rows + PACKING) * width * panel();
    parallel_for(hidden.div_ceil(panel()), grain(adds), |range| {
        // SAFETY: the slices were checked; each index writes columns of its own.
        unsafe { down_panels::<T>(&job, range) }
    })
}

/// Gate and up alone: what [`forward`] keeps, with the same bits.
///
/// # Errors
/// As [`forward`].
pub fn gate_up<T: Element>(shape: Shape, gate_up: &[T], x: &[T], kept: &mut [T]) -> Result<()> {
    first_product(shape, gate_up, x, None, Some(kept))
}

fn first_product<T: Element>(
    shape: Shape,
    weights: &[T],
    x: &[T],
    act: Option<(&mut [f32], usize)>,
    kept: Option<&mut [T]>,
) -> Result<()> {
    let Shape { rows, hidden, width } = shape;
    let kept_len = kept.as_ref().map_or(2 * rows * width, |kept| kept.len());
    shape.check(&[
        (weights.len(), 2 * width * hidden),
        (x.len(), rows * hidden),
        (kept_len, 2 * rows * width),
    ])?;
    let x = Wide::new(x, hidden)?;
    let job = GateUp {
        shape,
        weights: Matrix::new(weights, hidden),
        x: x.matrix(),
        act: act.map(|(act, stride)| (Shared::new(act), stride)),
        kept: kept.map(Shared::new),
    };
    let adds = 2 * (rows + PACKING) * hidden * panel();
    parallel_for(width.div_ceil(panel()), grain(adds), |range| {
        // SAFETY: the slices were checked; each index writes columns of its own.
        unsafe { gate_up_panels::<T>(&job, range) }
    })
}

struct GateUp<T> {
    shape: Shape,
    weights: Matrix<T>,
    x: Matrix<f32>,
    act: Option<(Shared<f32>, usize)>,
    kept: Option<Shared<T>>,
}

struct Down<T> {
    shape: Shape,
    weights: Matrix<T>,
    act: Matrix<f32>,
    o: Shared<T>,
}

/// `sums` [N, P] = a · Wᵀ for the `lanes` rows of W from `row`.
///
/// # Safety
/// As [`pack::transposed`] and [`product`]; `panel` holds [`DEPTH`] rows.
#[inline(always)]
unsafe fn times_transposed<S: Simd, T: Element>(
    [rows, depth]: [usize; 2],
    a: Matrix<f32>,
    w: Matrix<T>,
    row: usize,
    lanes: usize,
    panel: *mut f32,
    sums: *mut f32,
) {
    for k in (0..depth).step_by(DEPTH) {
        let len = DEPTH.min(depth - k);
        let left = Left { at: a.row(0, k), stride: a.stride, step: 1 };
        // SAFETY: by the caller's promise.
        unsafe {
            pack::transposed::<S, T>(w, [row, k], len, lanes, panel);
            product::<S>(rows, len, left, panel, sums, S::PANEL, k > 0);
        }
    }
}

/// Panels of F: gate and up for all rows, the activation, and what is kept.
#[inline(always)]
unsafe fn gate_up_body<S: Simd, T: Element>(job: &GateUp<T>, range: Range<usize>) {
    let Shape { rows, hidden, width } = job.shape;
    let mut panel = Floats::new(DEPTH * S::PANEL);
    let (mut gate, mut up) = (Floats::new(rows * S::PANEL), Floats::new(rows * S::PANEL));
    let (panel, gate, up) = (panel.at(), gate.at(), up.at());
    for f in range.map(|index| index * S::PANEL) {
        let lanes = S::PANEL.min(width - f);
        for (sums, row) in [(gate, f), (up, width + f)] {
            let size = [rows, hidden];
            // SAFETY: rows of gate, then of up; the scratch has room.
            unsafe {
                times_transposed::<S, T>(size, job.x, job.weights, row, lanes, panel, sums);
            }
        }
        for n in 0..rows {
            let (gate, up) = (gate.wrapping_add(n * S::PANEL), up.wrapping_add(n * S::PANEL));
            // SAFETY: row n of the scratch; columns f.. of row n of the outputs, which this index
            // owns.
            unsafe {
                if let Some(kept) = job.kept {
                    store_row::<S, T>(gate, kept.at(2 * n * width + f), lanes);
                    store_row::<S, T>(up, kept.at((2 * n + 1) * width + f), lanes);
                }
                if let Some((act, stride)) = job.act {
                    let row = slice_mut(gate, S::PANEL);
                    activate(row, slice(up, S::PANEL));
                    store_row::<S, f32>(gate, act.at(n * stride + f), lanes);
                }
            }
        }
    }
}

/// Panels of H: the second product for all rows.
#[inline(always)]
unsafe fn down_body<S: Simd, T: Element>(job: &Down<T>, range: Range<usize>) {
    let Shape { rows, hidden, width } = job.shape;
    let (mut panel, mut sums) = (Floats::new(DEPTH * S::PANEL), Floats::new(rows * S::PANEL));
    let (panel, sums) = (panel.at(), sums.at());
    for h in range.map(|index| index * S::PANEL) {
        let lanes = S::PANEL.min(hidden - h);
        let size = [rows, width];
        // SAFETY: rows h.. of the weights; the scratch has room; columns h.. of o are this index's.
        unsafe {
            times_transposed::<S, T>(size, job.act, job.weights, h, lanes, panel, sums);
            for n in 0..rows {
                store_row::<S, T>(sums.add(n * S::PANEL), job.o.at(n * hidden + h), lanes);
            }
        }
    }
}

/// The first `lanes` values of a row of a panel, rounded to `T`.
///
/// # Safety
/// A panel's row is readable at `from`, `lanes` elements are writable at `to`.
#[inline(always)]
pub(super) unsafe fn store_row<S: Simd, T: Element>(from: *const f32, to: *mut T, lanes: usize) {
    // SAFETY: by the caller's promise.
    unsafe {
        // Apart, so that the compiler knows the length of a whole panel.
        if lanes == S::PANEL {
            round(slice(from, S::PANEL), slice_mut(to, S::PANEL));
        } else {
            round(slice(from, lanes), slice_mut(to, lanes));
        }
    }
}

/// `lanes` values in f32, as a row of a panel; zero beyond.
///
/// # Safety
/// `lanes` elements, at most a panel's row, are readable at `from`.
#[inline(always)]
pub(super) unsafe fn load_row<S: Simd, T: Element>(from: *const T, lanes: usize) -> [f32; 32] {
    let mut row = [0f32; 32];
    // SAFETY: by the caller's promise.
    unsafe {
        if lanes == S::PANEL {
            pack::widen_row(slice(from, S::PANEL), &mut row[..S::PANEL]);
        } else {
            pack::widen_row(slice(from, lanes), &mut row[..lanes]);
        }
    }
    row
}

#[inline(always)]
fn round<T: Element>(from: &[f32], to: &mut [T]) {
    for (to, &x) in to.iter_mut().zip(from) {
        *to = T::store(x);
    }
}

/// gate = silu(gate) · up.
#[inline(always)]
fn activate(gate: &mut [f32], up: &[f32]) {
    for (gate, &up) in gate.iter_mut().zip(up) {
        *gate = *gate * sigmoid(*gate) * up;
    }
}

vectored! {
    /// # Safety
    /// The job's memory has the sizes of its shape; nobody else writes the columns of these panels.
    fn gate_up_panels<T>(GateUp<T>) = gate_up_body;
}
vectored! {
    /// # Safety
    /// As [`gate_up_panels`].
    fn down_panels<T>(Down<T>) = down_body;
}
