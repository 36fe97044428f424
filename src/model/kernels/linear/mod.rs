//! Products with encoded weights: a matrix is multiplied as it lies in its file.
//!
//! Law 4, here: a row's result does not depend on N, on the number of threads, or on addresses, so
//! that batched, chunked, streamed and resident runs agree bit for bit. Hence every encoding has
//! one order of sums, whatever N is, and one treatment of the activations:
//!
//! * floats (F32, F16, BF16, FP8) are decoded to f32 and multiplied in f32 (`floats`, `columns`);
//! * BF16 and FP8 that meet [`Activations::Bf16`] are multiplied in pairs and summed in f32 (`pairs`, with AMX
//!   `tiles`; `e4m3`);
//! * integers (Q8_0, Q4_0, Q4_K, Q6_K, MXFP4, `Int8`, `Int4`) meet activations rounded to int8
//!   by groups, for one row as for a thousand (`ints`; with AVX-512 VNNI `sets`): their sums within a
//!   group, or a set of sixteen columns, are exact.
//!
//! Results do depend on the instruction set (eight or sixteen lanes, fused or not).
//!
//! ```text
//! x [N, K] ──input──▶ f32 in blocks | bf16 | int8 in groups ─┐
//! W as it lies ──────────────────────────────────────────────┴─product──▶ floats | columns | pairs | tiles | e4m3 | ints | sets ──▶ out [N, M]
//!                                     (tasks of rows of W, on the threads of pool)
//! ```
//!
//! `expert` joins the products of one expert; `experts` computes all experts of one row together, `grouped` those of
//! many rows.

mod aligned;
mod biases;
mod blocks;
mod columns;
mod decode;
#[cfg(target_arch = "x86_64")]
mod e4m3;
mod encoding;
mod expert;
mod experts;
mod floats;
mod grouped;
mod input;
mod ints;
mod matrix;
#[cfg(target_arch = "x86_64")]
mod pairs;
mod plain;
mod pool;
mod product;
mod quantise;
#[cfg(target_arch = "x86_64")]
mod sets;
pub(super) mod simd;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod tiles;
mod work;

pub use aligned::{Aligned, AlignedBytes};
pub use decode::decode_row;
pub use encoding::Encoding;
pub use expert::{Activation, ExpertWeights, GateUp, Projection, expert, expert_at};
pub use experts::experts_of_row;
pub use grouped::{Routed, can_group, experts_of_rows, grouped_bytes};
pub use matrix::{Matrix, OwnedMatrix, Vector};
pub use plain::read;
pub use pool::{Disjoint, Pool};
pub use quantise::{Rounding, encode, encode_row};
pub use work::{Activations, Work};

use crate::base::{Error, Result};
use input::Form;
use product::Outputs;

/// out[n, m] = Σ_k x[n, k] W[m, k], added to what is there where `add`: x [N, K], out [N, M].
///
/// # Errors
/// [`crate::base::ErrorKind::Input`] when the matrix's bytes do not fit its shape;
/// [`crate::base::ErrorKind::Bug`] when x and out do not.
pub fn linear(
    w: &Matrix<'_>,
    x_nk: &[f32],
    out_nm: &mut [f32],
    add: bool,
    work: &mut Work,
) -> Result<()> {
    region([(*w, out_nm)], x_nk, add, work)
}

/// Several products of the same x: each out is what [`linear`] gives. Where all want x in the same form they
/// share one region of the threads.
///
/// # Errors
/// As [`linear`].
pub fn linears<const P: usize>(
    products: [(Matrix<'_>, &mut [f32]); P],
    x_nk: &[f32],
    work: &mut Work,
) -> Result<()> {
    let form = |w: &Matrix<'_>| (w.transposed, w.cols, Form::of(w.encoding, w.cols, work.level));
    if products.iter().all(|(w, _)| form(w) == form(&products[0].0)) {
        return region(products, x_nk, false, work);
    }
    products.into_iter().try_for_each(|product| region([product], x_nk, false, work))
}

/// Products of matrices that want x in the same form.
fn region<const P: usize>(
    products: [(Matrix<'_>, &mut [f32]); P],
    x_nk: &[f32],
    add: bool,
    work: &mut Work,
) -> Result<()> {
    let Some((first, _)) = products.first() else { return Ok(()) };
    let (transposed, cols) = (first.transposed, first.cols);
    let Work { pool, scratch, level } = work;
    let [input, _] = &mut scratch.inputs;
    let (rows, threads) = (x_nk.len() / cols.max(1), pool.threads());
    for (w, out_nm) in &products {
        w.check()?;
        rows_of(w, x_nk, out_nm)?;
    }
    if !transposed {
        input.take(Form::of(first.encoding, cols, *level), x_nk, cols, pool)?;
    }
    let (input, level) = (&*input, *level);
    let mut tasks = 0;
    let products = products.map(|(w, out_nm)| {
        let step = product::task_rows(&w, rows, level, threads, P);
        let first = tasks;
        tasks += w.rows.div_ceil(step);
        let out = Outputs { stride: w.rows, offset: 0, add, all: Disjoint::new(out_nm) };
        (w, out, first, step)
    });
    pool.run(tasks, &|_, task| {
        let of = products.iter().rfind(|(_, _, first, _)| *first <= task);
        let Some((w, out, first, step)) = of else { return };
        let from = (task - first) * step;
        // SAFETY: W is checked, x was taken in, out fits, and each task has rows of its own.
        unsafe { product::rows(level, w, x_nk, input, out, from, from + step) }
    })
}

/// N, if x and out agree on it.
fn rows_of(w: &Matrix<'_>, x_nk: &[f32], out_nm: &[f32]) -> Result<usize> {
    let rows = x_nk.len() / w.cols.max(1);
    if x_nk.len() == rows * w.cols && out_nm.len() == rows * w.rows {
        return Ok(rows);
    }
    let text = "a product's rows and outputs do not fit its matrix";
    Err(Error::bug(text)
        .with("rows", w.rows)
        .with("cols", w.cols)
        .with("x", x_nk.len())
        .with("out", out_nm.len()))
}
