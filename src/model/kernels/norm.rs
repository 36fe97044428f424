//! RMSNorm of the rows of training, forward and backward, each in one pass: x / rms(x) * weight (Zhang
//! and Sennrich 2019).
//!
//! Values are computed in f32 and rounded once. The backward pass finds 1 / rms(x) anew, which costs
//! nothing beside reading x. Law 4: rows are independent; a weight's gradient is summed over blocks of
//! fixed size, and these in their order.
//!
//! N rows, H elements of one.

use super::dispatch::dispatched;
use super::float::Number;
use super::parallel::{Threads, parallel_each};
use super::rows::{add_body, rms_norm_back_body, rms_norm_body};
use crate::base::{Error, Result};

/// Rows of one unit of work: part of the definition of a weight's gradient.
pub const ROWS: usize = 32;

#[inline(always)]
fn forward_body<T: Number>(x: &[f32], weight: &[f32], eps: f32, out: &mut [T]) {
    let h = weight.len();
    for (x, out) in x.chunks_exact(h).zip(out.chunks_exact_mut(h)) {
        rms_norm_body(x, weight, eps, out);
    }
}

#[inline(always)]
fn sum_body<T: Number>(x: &[f32], more: &[T], sum: &mut [f32]) {
    for ((sum, x), more) in sum.iter_mut().zip(x).zip(more) {
        *sum = x + more.load();
    }
}

#[inline(always)]
fn backward_body<T: Number>(
    x: &[f32],
    weight: &[f32],
    eps: f32,
    dy: &[T],
    dx: &mut [f32],
    d_weight: &mut [f32],
) {
    let h = weight.len();
    for ((x, dy), dx) in x.chunks_exact(h).zip(dy.chunks_exact(h)).zip(dx.chunks_exact_mut(h)) {
        for (dx, dy) in dx.iter_mut().zip(dy) {
            *dx = dy.load();
        }
        rms_norm_back_body(x, weight, eps, dx, d_weight);
    }
}

dispatched! {
    fn forward_rows<T: Number>(x: &[f32], weight: &[f32], eps: f32, out: &mut [T]) = forward_body;
}
dispatched! {
    fn sum_rows<T: Number>(x: &[f32], more: &[T], sum: &mut [f32]) = sum_body;
}
dispatched! {
    fn backward_rows<T: Number>(x: &[f32], weight: &[f32], eps: f32, dy: &[T], dx: &mut [f32], d_weight: &mut [f32]) = backward_body;
}
dispatched! {
    fn add(x: &mut [f32], y: &[f32]) = add_body;
}

/// out [N, H] = norm of the rows of x [N, H].
///
/// # Errors
/// [`crate::base::ErrorKind::Bug`] when sizes differ; otherwise as [`parallel_each`].
pub fn forward<T: Number>(x: &[f32], weight: &[f32], eps: f32, out: &mut [T]) -> Result<()> {
    check(x.len(), weight, &[out.len()])?;
    let block = ROWS * weight.len();
    let jobs: Vec<_> = x.chunks(block).zip(out.chunks_mut(block)).collect();
    parallel_each(Threads::for_elements(x.len()), jobs, |_, (x, out)| {
        forward_rows(x, weight, eps, out);
    })
}

/// sum = x + more, and out = norm of its rows; all [N, H].
///
/// # Errors
/// As [`forward`].
pub fn add_forward<T: Number>(
    x: &[f32],
    more: &[T],
    weight: &[f32],
    eps: f32,
    sum: &mut [f32],
    out: &mut [T],
) -> Result<()> {
    check(x.len(), weight, &[more.len(), sum.len(), out.len()])?;
    let block = ROWS * weight.len();
    let jobs: Vec<_> = (x.chunks(block).zip(more.chunks(block)))
        .zip(sum.chunks_mut(block).zip(out.chunks_mut(block)))
        .collect();
    parallel_each(Threads::for_elements(x.len()), jobs, |_, ((x, more), (sum, out))| {
        sum_rows(x, more, sum);
        forward_rows(sum, weight, eps, out);
    })
}

/// dx = gradient of x from `dy` of the norm's result, plus `residual`, the gradient of x on its way
/// past the norm; all [N, H]. Answers the weight's gradient `[H]`.
///
/// # Errors
/// As [`forward`].
pub fn backward<T: Number>(
    x: &[f32],
    weight: &[f32],
    eps: f32,
    dy: &[T],
    residual: Option<&[f32]>,
    dx: &mut [f32],
) -> Result<Vec<f32>> {
    let residual_len = residual.map_or(x.len(), <[f32]>::len);
    check(x.len(), weight, &[dy.len(), dx.len(), residual_len])?;
    let (h, block) = (weight.len(), ROWS * weight.len());
    let mut partial = vec![0.0; x.len().div_ceil(block) * h];
    let mut residuals = residual.map(|residual| residual.chunks(block));
    let jobs: Vec<_> = (x.chunks(block).zip(dy.chunks(block)))
        .zip(dx.chunks_mut(block).zip(partial.chunks_mut(h)))
        .map(|job| (job, residuals.as_mut().and_then(Iterator::next)))
        .collect();
    let threads = Threads::for_elements(x.len());
    parallel_each(threads, jobs, |_, (((x, dy), (dx, d_weight)), residual)| {
        backward_rows(x, weight, eps, dy, dx, d_weight);
        if let Some(residual) = residual {
            add(dx, residual);
        }
    })?;
    Ok(sum_blocks(&partial, h))
}

/// Σ of the rows of `partial` [.., H], in their order.
pub(super) fn sum_blocks(partial: &[f32], h: usize) -> Vec<f32> {
    let mut sum = vec![0.0; h];
    partial.chunks(h.max(1)).for_each(|block| add(&mut sum, block));
    sum
}

fn check(elements: usize, weight: &[f32], others: &[usize]) -> Result<()> {
    let whole = !weight.is_empty() && elements.is_multiple_of(weight.len());
    if whole && others.iter().all(|other| *other == elements) {
        return Ok(());
    }
    Err(Error::bug("slices of a norm do not fit together")
        .with("row", weight.len())
        .with("elements", elements)
        .with("others", format!("{others:?}")))
}

#[cfg(test)]
mod tests;
