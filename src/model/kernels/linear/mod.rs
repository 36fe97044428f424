//! Products with encoded weights: a matrix is multiplied as it lies in its file.
//!
//! Law 4, here: a row's result does not depend on N, on the number of threads, or on addresses, so
//! that batched, chunked, streamed and resident runs agree bit for bit. Hence every encoding has
//! one order of sums, whatever N is, and one treatment of the activations:
//!
//! * floats (F32, F16, BF16, FP8) are decoded to f32 and multiplied in f32 (`floats`, `columns`);
//! * BF16 that meets [`Activations::Bf16`] is multiplied in pairs and summed in f32 (`pairs`);
//! * integers (Q8_0, Q4_0, Q4_K, Q6_K, MXFP4, `Int8`, `Int4`) meet activations rounded to int8
//!   by groups, for one row as for a thousand (`ints`; with AVX-512 VNNI `sets`): their sums within a
//!   group, or a set of sixteen columns, are exact.
//!
//! Results do depend on the instruction set (eight or sixteen lanes, fused or not).
//!
//! ```text
//! x [N, K] ──input──▶ f32 in blocks | bf16 | int8 in groups ─┐
//! W as it lies ──────────────────────────────────────────────┴─product──▶ floats | columns | pairs | ints | sets ──▶ out [N, M]
//!                                     (tasks of rows of W, on the threads of pool)
//! ```

mod aligned;
mod blocks;
mod columns;
mod decode;
mod encoding;
mod expert;
mod experts;
mod floats;
mod input;
mod ints;
mod matrix;
#[cfg(target_arch = "x86_64")]
mod pairs;
mod pool;
mod product;
mod quantise;
#[cfg(target_arch = "x86_64")]
mod sets;
pub(super) mod simd;
#[cfg(test)]
mod tests;
mod work;

pub use aligned::AlignedBytes;
pub use decode::decode_row;
pub use encoding::Encoding;
pub use expert::{Activation, ExpertWeights, GateUp, Projection, expert};
pub use experts::experts_of_row;
pub use matrix::{Matrix, OwnedMatrix, Vector};
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
    w.check()?;
    rows_of(w, x_nk, out_nm)?;
    let Work { pool, scratch, level } = work;
    let [input, _] = &mut scratch.inputs;
    if !w.transposed {
        input.take(Form::of(w.encoding, *level), x_nk, w.cols, pool)?;
    }
    let out = Outputs { stride: w.rows, offset: 0, add, all: Disjoint::new(out_nm) };
    let (input, level) = (&*input, *level);
    let step = product::task_rows(w, x_nk.len() / w.cols.max(1), pool.threads());
    pool.run(w.rows.div_ceil(step), &|_, task| {
        // SAFETY: W is checked, x was taken in, out fits, and each task has rows of its own.
        unsafe { product::rows(level, w, x_nk, input, &out, task * step, (task + 1) * step) }
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
