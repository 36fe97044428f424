//! The backward pass of one expert.

use super::floats::{Floats, Wide, padded};
use super::forward::{PACKING, load_row, store_row};
use super::pack::{self, Element, Matrix};
use super::simd::Simd;
use super::tile::{DEPTH, Left, ROWS, product, product_squares};
use super::{Shape, grain, panel, vectored};
use crate::base::Result;
use crate::model::kernels::parallel::parallel_for;
use crate::model::kernels::shared::Shared;
use crate::model::kernels::swiglu::backward_element;
use std::ops::Range;

/// Rows of a weight gradient that one task computes.
const STRIP: usize = 4 * ROWS;

/// What the backward pass reads and writes; in the compute type unless said.
pub struct BackwardCall<'a, T> {
    pub shape: Shape,
    /// [2F, H].
    pub gate_up: &'a [T],
    /// [H, F].
    pub down: &'a [T],
    /// [N, H].
    pub x: &'a [T],
    /// What the forward pass kept, [N, 2F].
    pub kept: &'a [T],
    /// d loss / d weighted output [N, H].
    pub g: &'a [T],
    /// Router weights `[N]`, f32.
    pub weights: &'a [f32],
    /// Out: d loss / d x [N, H].
    pub dx: &'a mut [T],
    /// Out: d loss / d router weights `[N]`, f32.
    pub d_weights: &'a mut [f32],
    /// Gradient of gate_up [2F, H], f32.
    pub grad_gate_up: &'a mut [f32],
    /// Gradient of down [H, F], f32.
    pub grad_down: &'a mut [f32],
    /// Overwrite the gradients instead of adding to them.
    pub first: bool,
}

/// Runs the backward pass. Answers Σ gradient² of both weight gradients as they stand afterwards.
///
/// # Errors
/// As [`parallel_for`]; [`crate::base::ErrorKind::Bug`] when slices do not fit the shape.
pub fn backward<T: Element>(call: BackwardCall<'_, T>) -> Result<f64> {
    let Shape { rows, hidden, width } = call.shape;
    call.shape.check(&[
        (call.gate_up.len(), 2 * width * hidden),
        (call.down.len(), hidden * width),
        (call.x.len(), rows * hidden),
        (call.kept.len(), 2 * rows * width),
        (call.g.len(), rows * hidden),
        (call.weights.len(), rows),
        (call.dx.len(), rows * hidden),
        (call.d_weights.len(), rows),
        (call.grad_gate_up.len(), 2 * width * hidden),
        (call.grad_down.len(), hidden * width),
    ])?;
    let (panels_h, panels_f) = (hidden.div_ceil(panel()), width.div_ceil(panel()));
    let stride = padded(2 * width);
    let mut dgu = Floats::new(rows * stride);
    let mut act = Floats::new(panels_f * rows * panel());
    let mut partial = vec![0f32; panels_f * rows];
    let (x, g) = (Wide::new(call.x, hidden)?, Wide::new(call.g, hidden)?);
    let job = Activation {
        shape: call.shape,
        down: Matrix::new(call.down, width),
        g: g.matrix(),
        kept: Matrix::new(call.kept, 2 * width),
        weights: call.weights,
        dgu: (Shared::new(dgu.slice()), stride),
        act: Shared::new(act.slice()),
        d_weights: Shared::new(&mut partial),
    };
    let packed = (rows + PACKING) * panel();
    parallel_for(panels_f, grain(packed * hidden), |range| {
        // SAFETY: the slices were checked; each index writes columns and sums of its own.
        unsafe { activation_panels::<T>(&job, range) }
    })?;
    for (n, out) in call.d_weights.iter_mut().enumerate() {
        *out = (0..panels_f).map(|index| partial[index * rows + n]).sum();
    }

    let job = Input {
        shape: call.shape,
        gate_up: Matrix::new(call.gate_up, hidden),
        dgu: dgu.matrix(stride),
        dx: Shared::new(call.dx),
    };
    parallel_for(panels_h, grain(packed * 2 * width), |range| {
        // SAFETY: the slices were checked; each index writes columns of its own.
        unsafe { input_panels::<T>(&job, range) }
    })?;

    let mut x_panels = Floats::new(panels_h * rows * panel());
    let job = Panels { shape: call.shape, x: x.matrix(), out: Shared::new(x_panels.slice()) };
    parallel_for(panels_h, grain(4 * rows * panel()), |range| {
        // SAFETY: the slices were checked; each index writes a panel of its own.
        unsafe { x_panels_of(&job, range) }
    })?;
    let gate_up = Outer {
        left: dgu.matrix(stride),
        size: [2 * width, hidden],
        panels: x_panels.matrix(panel()),
        slot: Shared::new(call.grad_gate_up),
    };
    let down = Outer {
        left: g.matrix(),
        size: [hidden, width],
        panels: act.matrix(panel()),
        slot: Shared::new(call.grad_down),
    };
    let tasks = gate_up.strips() + down.strips();
    let mut sums = vec![0f64; tasks];
    let out = Shared::new(&mut sums);
    let job = Outers { rows, first: call.first, outers: [gate_up, down], sums: out };
    parallel_for(tasks, grain((rows + PACKING) * STRIP * hidden.min(width)), |range| {
        // SAFETY: the slices were checked; each index writes rows of a slot and a sum of its own.
        unsafe { outer_strips(&job, range) }
    })?;
    Ok(sums.iter().sum())
}

struct Activation<'a, T> {
    shape: Shape,
    down: Matrix<T>,
    g: Matrix<f32>,
    kept: Matrix<T>,
    weights: &'a [f32],
    /// Gradient of gate, then of up, a row for each n, and elements from one row to the next.
    dgu: (Shared<f32>, usize),
    /// act · w in panels of F.
    act: Shared<f32>,
    /// Partial sums, a row of N for each panel.
    d_weights: Shared<f32>,
}

/// `sums` [N, P] = a · W for the `lanes` columns of W from `column`.
///
/// # Safety
/// As [`pack::rows`] and [`product`]; `panel` holds [`DEPTH`] rows.
#[inline(always)]
unsafe fn times<S: Simd, T: Element>(
    [rows, depth]: [usize; 2],
    a: Matrix<f32>,
    w: Matrix<T>,
    column: usize,
    lanes: usize,
    panel: *mut f32,
    sums: *mut f32,
) {
    for k in (0..depth).step_by(DEPTH) {
        let len = DEPTH.min(depth - k);
        let left = Left { at: a.row(0, k), stride: a.stride, step: 1 };
        // SAFETY: by the caller's promise.
        unsafe {
            pack::rows::<S, T>(w, [k, column], len, lanes, panel);
            product::<S>(rows, len, left, panel, sums, S::PANEL, k > 0);
        }
    }
}

/// Panels of F: dact = g · W_down for all rows, then through the activation.
#[inline(always)]
unsafe fn activation_body<S: Simd, T: Element>(job: &Activation<'_, T>, range: Range<usize>) {
    let Shape { rows, hidden, width } = job.shape;
    let (dgu, stride) = job.dgu;
    let (mut panel, mut sums) = (Floats::new(DEPTH * S::PANEL), Floats::new(rows * S::PANEL));
    let (panel, sums) = (panel.at(), sums.at());
    for index in range {
        let f = index * S::PANEL;
        let lanes = S::PANEL.min(width - f);
        // SAFETY: columns f.. of the weights; the scratch has room.
        unsafe { times::<S, T>([rows, hidden], job.g, job.down, f, lanes, panel, sums) };
        for n in 0..rows {
            let mut row = Row([[0.0; 32]; 3]);
            // SAFETY: row n of what was kept and of the scratch; columns f.. of row n of the
            // outputs and sum (index, n), which this index owns.
            unsafe {
                let gate = load_row::<S, T>(job.kept.row(n, f), lanes);
                let up = load_row::<S, T>(job.kept.row(n, width + f), lanes);
                let dact = load_row::<S, f32>(sums.add(n * S::PANEL), S::PANEL);
                let dot = row.fill::<S>(&gate, &up, &dact, job.weights[n]);
                *job.d_weights.at(index * rows + n) = dot;
                let [d_gate, d_up, act] = &row.0;
                store_row::<S, f32>(d_gate.as_ptr(), dgu.at(n * stride + f), lanes);
                store_row::<S, f32>(d_up.as_ptr(), dgu.at(n * stride + width + f), lanes);
                let at = job.act.at((index * rows + n) * S::PANEL);
                store_row::<S, f32>(act.as_ptr(), at, S::PANEL);
            }
        }
    }
}

/// One panel's row of d gate, d up and act · weight.
#[repr(align(64))]
struct Row([[f32; 32]; 3]);

impl Row {
    /// Fills the row; answers Σ dact · act, summed by halves.
    #[inline(always)]
    fn fill<S: Simd>(&mut self, gate: &[f32], up: &[f32], dact: &[f32], weight: f32) -> f32 {
        let mut dot = [0f32; 32];
        for l in 0..S::PANEL {
            let [dg, du, aw, product] = backward_element(gate[l], up[l], dact[l], weight);
            (self.0[0][l], self.0[1][l], self.0[2][l], dot[l]) = (dg, du, aw, product);
        }
        for half in [16, 8, 4, 2, 1] {
            for l in 0..half {
                dot[l] += dot[l + half];
            }
        }
        dot[0]
    }
}

struct Input<T> {
    shape: Shape,
    gate_up: Matrix<T>,
    dgu: Matrix<f32>,
    dx: Shared<T>,
}

/// Panels of H: dx = d(gate, up) · W_gate_up for all rows.
#[inline(always)]
unsafe fn input_body<S: Simd, T: Element>(job: &Input<T>, range: Range<usize>) {
    let Shape { rows, hidden, width } = job.shape;
    let (mut panel, mut sums) = (Floats::new(DEPTH * S::PANEL), Floats::new(rows * S::PANEL));
    let (panel, sums) = (panel.at(), sums.at());
    for h in range.map(|index| index * S::PANEL) {
        let lanes = S::PANEL.min(hidden - h);
        let size = [rows, 2 * width];
        // SAFETY: columns h.. of the weights; the scratch has room; columns h.. of dx are ours.
        unsafe {
            times::<S, T>(size, job.dgu, job.gate_up, h, lanes, panel, sums);
            for n in 0..rows {
                store_row::<S, T>(sums.add(n * S::PANEL), job.dx.at(n * hidden + h), lanes);
            }
        }
    }
}

struct Panels {
    shape: Shape,
    x: Matrix<f32>,
    out: Shared<f32>,
}

/// x in panels of H.
#[inline(always)]
unsafe fn x_panels_body<S: Simd>(job: &Panels, range: Range<usize>) {
    let Shape { rows, hidden, .. } = job.shape;
    for index in range {
        let h = index * S::PANEL;
        let out = job.out.at(index * rows * S::PANEL);
        // SAFETY: columns h.. of all rows; panel `index` is this index's.
        unsafe { pack::rows::<S, f32>(job.x, [0, h], rows, S::PANEL.min(hidden - h), out) };
    }
}

/// slot [M, K] = leftᵀ · right, left [N, M], right [N, K] in panels.
struct Outer {
    left: Matrix<f32>,
    size: [usize; 2],
    panels: Matrix<f32>,
    slot: Shared<f32>,
}

impl Outer {
    fn strips(&self) -> usize {
        self.size[0].div_ceil(STRIP)
    }
}

struct Outers {
    rows: usize,
    first: bool,
    outers: [Outer; 2],
    sums: Shared<f64>,
}

/// Strips of rows of both weight gradients.
#[inline(always)]
unsafe fn outer_body<S: Simd>(job: &Outers, range: Range<usize>) {
    let rows = job.rows;
    let mut strips = Floats::new(STRIP * rows);
    let strips = strips.at();
    for index in range {
        let of_first = job.outers[0].strips();
        let (outer, strip) = match index < of_first {
            true => (&job.outers[0], index),
            false => (&job.outers[1], index - of_first),
        };
        let [height, columns] = outer.size;
        let start = strip * STRIP;
        let end = height.min(start + STRIP);
        let mut squares = [0f64; 16];
        for (i, m) in (start..end).step_by(ROWS).enumerate() {
            let valid = ROWS.min(end - m);
            // SAFETY: columns m.. of the left operand; the scratch has room for the strip.
            unsafe { pack::strip::<ROWS>(outer.left, m, rows, valid, strips.add(i * rows * ROWS)) };
        }
        for (p, column) in (0..columns).step_by(S::PANEL).enumerate() {
            let panel = outer.panels.row(p * rows, 0);
            let lanes = S::PANEL.min(columns - column);
            for (i, m) in (start..end).step_by(ROWS).enumerate() {
                let left = Left { at: strips.wrapping_add(i * rows * ROWS), stride: 1, step: ROWS };
                let valid = ROWS.min(end - m);
                let slot = outer.slot.at(m * columns + column);
                let add = !job.first;
                // SAFETY: rows m.. and columns.. of the slot, which this index owns; a tile that
                // sticks out goes through a copy.
                unsafe {
                    if valid == ROWS && lanes == S::PANEL {
                        product_squares::<S>(rows, left, panel, slot, columns, add, &mut squares);
                    } else {
                        let mut copy = Copy([0.0; 32 * ROWS]);
                        if add {
                            copy.exchange::<S>([valid, lanes], slot, columns, false);
                        }
                        let at = copy.0.as_mut_ptr();
                        product_squares::<S>(rows, left, panel, at, S::PANEL, add, &mut squares);
                        copy.exchange::<S>([valid, lanes], slot, columns, true);
                    }
                }
            }
        }
        // SAFETY: this index's sum.
        unsafe { *job.sums.at(index) = squares.iter().sum() };
    }
}

/// A tile at the edge of a slot.
#[repr(align(64))]
struct Copy([f32; 32 * ROWS]);

impl Copy {
    /// Reads the valid part from the slot, or writes it back.
    ///
    /// # Safety
    /// The part lies in the slot, and nobody else uses it.
    #[inline(always)]
    unsafe fn exchange<S: Simd>(
        &mut self,
        [valid, lanes]: [usize; 2],
        slot: *mut f32,
        stride: usize,
        write: bool,
    ) {
        for r in 0..valid {
            for l in 0..lanes {
                let at = slot.wrapping_add(r * stride + l);
                // SAFETY: by the caller's promise.
                unsafe {
                    match write {
                        true => *at = self.0[r * S::PANEL + l],
                        false => self.0[r * S::PANEL + l] = *at,
                    }
                }
            }
        }
    }
}

vectored! {
    /// # Safety
    /// The job's memory has the sizes of its shape; nobody else writes what these indices own.
    fn activation_panels<T>(Activation<'_, T>) = activation_body;
}
vectored! {
    /// # Safety
    /// As [`activation_panels`].
    fn input_panels<T>(Input<T>) = input_body;
}
vectored! {
    /// # Safety
    /// As [`activation_panels`].
    fn x_panels_of(Panels) = x_panels_body;
}
vectored! {
    /// # Safety
    /// As [`activation_panels`].
    fn outer_strips(Outers) = outer_body;
}
