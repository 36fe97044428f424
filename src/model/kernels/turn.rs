//! Queries, keys and values out of one projection, forward and backward, each in one pass: norm,
//! clamp and rotation of queries and keys, clamp of values.
//!
//! ```text
//! qkv row ─┬─ q ─ norm ─ clamp ─ rotate ─▶ q
//!          ├─ k ─ norm ─ clamp ─ rotate ─▶ k      backward: the same against the arrows, the
//!          └─ v ──────── clamp ──────────▶ v      rotation by the negative angle
//! ```
//!
//! Values are computed in f32 and rounded once, at the end. Law 4: rows are independent; the norms'
//! gradients are summed over blocks of fixed size, and these in their order.
//!
//! T rows, S tokens of a sequence, N query heads, G key/value heads, D head width.

use super::dispatch::dispatched;
use super::float::Number;
use super::norm::{ROWS, sum_blocks};
use super::parallel::{Threads, parallel_each};
use super::rows::{
    rms_norm_back_body, rms_norm_onto_body, rotate_halves_back_body, rotate_halves_body,
};
use crate::base::{Error, Result};

/// What turns a projection's rows.
#[derive(Debug, Clone, Copy)]
pub struct Turn<'a> {
    pub query_heads: usize,
    pub kv_heads: usize,
    pub dim: usize,
    /// Weights of the norms of queries and keys: `[D]` for one of each head, as long as all heads
    /// for one over them; None without.
    pub norms: Option<[&'a [f32]; 2]>,
    pub eps: f32,
    /// Bound of what enters rotation, and of values.
    pub clip: Option<f32>,
    /// Cosines and sines of a sequence's positions, each [S, D/2]: row t turns by those of t mod S.
    pub angles: [&'a [f32]; 2],
}

impl Turn<'_> {
    /// Whether the backward pass reads the projection.
    pub fn reads_input(&self) -> bool {
        self.norms.is_some() || self.clip.is_some()
    }

    /// Widths of queries, of keys and of values.
    fn widths(&self) -> [usize; 2] {
        [self.query_heads * self.dim, self.kv_heads * self.dim]
    }

    /// Cosines and sines of row `row`.
    #[inline(always)]
    fn at(&self, row: usize) -> [&[f32]; 2] {
        let half = self.dim / 2;
        self.angles.map(|all| &all[row * half % all.len()..][..half])
    }

    #[inline(always)]
    fn clamp(&self, x: &mut [f32]) {
        if let Some(clip) = self.clip {
            x.iter_mut().for_each(|x| *x = x.clamp(-clip, clip));
        }
    }

    /// Gradients are zero where a value was out of bounds.
    #[inline(always)]
    fn clamp_back(&self, x: &[f32], grad: &mut [f32]) {
        if let Some(clip) = self.clip {
            for (grad, x) in grad.iter_mut().zip(x) {
                *grad = if x.abs() <= clip { *grad } else { 0.0 };
            }
        }
    }

    /// Queries or keys of one row.
    #[inline(always)]
    fn forward(&self, x: &mut [f32], norm: Option<&[f32]>, [cos, sin]: [&[f32]; 2]) {
        if let Some(norm) = norm {
            x.chunks_exact_mut(norm.len()).for_each(|x| rms_norm_onto_body(x, norm, self.eps));
        }
        self.clamp(x);
        x.chunks_exact_mut(self.dim).for_each(|head| rotate_halves_body(head, cos, sin));
    }

    /// Gradients of queries or keys of one row become those of the projection `x`; `spare` is as
    /// long.
    #[inline(always)]
    fn backward(
        &self,
        [x, spare, grad]: [&mut [f32]; 3],
        norm: Option<&[f32]>,
        [cos, sin]: [&[f32]; 2],
        d_norm: &mut [f32],
    ) {
        grad.chunks_exact_mut(self.dim).for_each(|head| rotate_halves_back_body(head, cos, sin));
        let Some(norm) = norm else { return self.clamp_back(x, grad) };
        if self.clip.is_some() {
            spare.copy_from_slice(x);
            spare.chunks_exact_mut(norm.len()).for_each(|x| rms_norm_onto_body(x, norm, self.eps));
            self.clamp_back(spare, grad);
        }
        for (x, grad) in x.chunks_exact(norm.len()).zip(grad.chunks_exact_mut(norm.len())) {
            rms_norm_back_body(x, norm, self.eps, grad, d_norm);
        }
    }

    fn check(&self, qkv: usize, parts: [usize; 3]) -> Result<usize> {
        let [q, k] = self.widths();
        let rows = qkv / (q + 2 * k).max(1);
        let norms = self.norms.is_none_or(|[of_q, of_k]| {
            let fits = |norm: &[f32], width| [self.dim, width].contains(&norm.len());
            fits(of_q, q) && fits(of_k, k)
        });
        let [cos, sin] = self.angles.map(<[f32]>::len);
        let turns = cos == sin && cos > 0 && self.dim > 0 && self.dim.is_multiple_of(2);
        let turns = turns && cos.is_multiple_of(self.dim / 2);
        let whole = k > 0 && q > 0 && qkv == rows * (q + 2 * k);
        if norms && turns && whole && parts == [rows * q, rows * k, rows * k] {
            return Ok(rows);
        }
        Err(Error::bug("slices of a projection do not fit its heads")
            .with("heads", format!("{} and {} of {}", self.query_heads, self.kv_heads, self.dim))
            .with("projection", qkv)
            .with("parts", format!("{parts:?}")))
    }
}

#[inline(always)]
fn widen<T: Number>(from: &[T], to: &mut [f32]) {
    for (to, x) in to.iter_mut().zip(from) {
        *to = x.load();
    }
}

#[inline(always)]
fn round<T: Number>(from: &[f32], to: &mut [T]) {
    for (to, &x) in to.iter_mut().zip(from) {
        *to = T::store(x);
    }
}

#[inline(always)]
fn forward_body<T: Number>(
    turn: &Turn<'_>,
    first: usize,
    qkv: &[T],
    q: &mut [T],
    k: &mut [T],
    v: &mut [T],
) {
    let [wide, narrow] = turn.widths();
    let mut values = vec![0.0; wide + 2 * narrow];
    let parts =
        (q.chunks_exact_mut(wide).zip(k.chunks_exact_mut(narrow))).zip(v.chunks_exact_mut(narrow));
    for (i, (row, ((q, k), v))) in qkv.chunks_exact(values.len()).zip(parts).enumerate() {
        widen(row, &mut values);
        let (of_q, rest) = values.split_at_mut(wide);
        let (of_k, of_v) = rest.split_at_mut(narrow);
        let angles = turn.at(first + i);
        turn.forward(of_q, turn.norms.map(|norms| norms[0]), angles);
        turn.forward(of_k, turn.norms.map(|norms| norms[1]), angles);
        turn.clamp(of_v);
        round(of_q, q);
        round(of_k, k);
        round(of_v, v);
    }
}

#[inline(always)]
fn backward_body<T: Number>(
    turn: &Turn<'_>,
    first: usize,
    qkv: Option<&[T]>,
    [dq, dk, dv]: [&[T]; 3],
    d_qkv: &mut [T],
    [dq_norm, dk_norm]: [&mut [f32]; 2],
) {
    let [wide, narrow] = turn.widths();
    let width = wide + 2 * narrow;
    let [mut x, mut spare, mut grad] = [0, 1, 2].map(|_| vec![0.0; width]);
    let parts = (dq.chunks_exact(wide).zip(dk.chunks_exact(narrow))).zip(dv.chunks_exact(narrow));
    for (i, (out, ((dq, dk), dv))) in d_qkv.chunks_exact_mut(width).zip(parts).enumerate() {
        if let Some(qkv) = qkv {
            widen(&qkv[i * width..][..width], &mut x);
        }
        let (x_q, rest) = x.split_at_mut(wide);
        let (x_k, x_v) = rest.split_at_mut(narrow);
        let (grad_q, rest) = grad.split_at_mut(wide);
        let (grad_k, grad_v) = rest.split_at_mut(narrow);
        let (spare_q, spare_k) = spare.split_at_mut(wide);
        widen(dq, grad_q);
        widen(dk, grad_k);
        widen(dv, grad_v);
        let angles = turn.at(first + i);
        let [of_q, of_k] = [0, 1].map(|i| turn.norms.map(|norms| norms[i]));
        turn.backward([x_q, spare_q, grad_q], of_q, angles, dq_norm);
        turn.backward([x_k, &mut spare_k[..narrow], grad_k], of_k, angles, dk_norm);
        turn.clamp_back(x_v, grad_v);
        round(&grad, out);
    }
}

dispatched! {
    fn forward_rows<T: Number>(turn: &Turn<'_>, first: usize, qkv: &[T], q: &mut [T], k: &mut [T], v: &mut [T]) = forward_body;
}
dispatched! {
    fn backward_rows<T: Number>(turn: &Turn<'_>, first: usize, qkv: Option<&[T]>, grads: [&[T]; 3], d_qkv: &mut [T], d_norms: [&mut [f32]; 2]) = backward_body;
}

/// Queries [T, N·D], keys and values [T, G·D] of a projection `qkv` [T, (N + 2 G) D].
///
/// # Errors
/// [`crate::base::ErrorKind::Bug`] when sizes differ; otherwise as [`parallel_each`].
pub fn forward<T: Number>(turn: &Turn<'_>, qkv: &[T], [q, k, v]: [&mut [T]; 3]) -> Result<()> {
    turn.check(qkv.len(), [q.len(), k.len(), v.len()])?;
    let [wide, narrow] = turn.widths().map(|width| width * ROWS);
    let parts = (q.chunks_mut(wide).zip(k.chunks_mut(narrow))).zip(v.chunks_mut(narrow));
    let jobs: Vec<_> = qkv.chunks(wide + 2 * narrow).zip(parts).collect();
    parallel_each(Threads::for_elements(qkv.len()), jobs, |i, (qkv, ((q, k), v))| {
        forward_rows(turn, i * ROWS, qkv, q, k, v);
    })
}

/// Gradient of the projection, `d_qkv`, from those of queries, keys and values. `qkv` is what
/// [`forward`] was given, where [`Turn::reads_input`]. Answers the gradients of the norms' weights,
/// empty without norms.
///
/// # Errors
/// As [`forward`].
pub fn backward<T: Number>(
    turn: &Turn<'_>,
    qkv: Option<&[T]>,
    [dq, dk, dv]: [&[T]; 3],
    d_qkv: &mut [T],
) -> Result<[Vec<f32>; 2]> {
    let rows = turn.check(d_qkv.len(), [dq.len(), dk.len(), dv.len()])?;
    if qkv.map_or(turn.reads_input(), |qkv| qkv.len() != d_qkv.len()) {
        return Err(Error::bug("the backward pass of a projection lacks what it reads"));
    }
    let elements = d_qkv.len();
    let [wide, narrow] = turn.widths().map(|width| width * ROWS);
    let norms = turn.norms.map_or([0; 2], |norms| norms.map(<[f32]>::len));
    let mut partial = norms.map(|norm| vec![0.0; rows.div_ceil(ROWS) * norm]);
    let mut partials = partial.each_mut().map(|all| all.as_mut_slice());
    let mut inputs = qkv.map(|qkv| qkv.chunks(wide + 2 * narrow));
    let grads = (dq.chunks(wide).zip(dk.chunks(narrow))).zip(dv.chunks(narrow));
    let mut jobs = Vec::with_capacity(rows.div_ceil(ROWS));
    for (((dq, dk), dv), d_qkv) in grads.zip(d_qkv.chunks_mut(wide + 2 * narrow)) {
        let qkv = inputs.as_mut().and_then(Iterator::next);
        let [of_q, of_k] = &mut partials;
        let sums = [take(of_q, norms[0]), take(of_k, norms[1])];
        jobs.push((qkv, [dq, dk, dv], d_qkv, sums));
    }
    parallel_each(Threads::for_elements(elements), jobs, |i, (qkv, grads, d_qkv, sums)| {
        backward_rows(turn, i * ROWS, qkv, grads, d_qkv, sums);
    })?;
    let [of_q, of_k] = partial;
    Ok([sum_blocks(&of_q, norms[0]), sum_blocks(&of_k, norms[1])])
}

/// The first `n` elements, which leave `slice`.
fn take<'a>(slice: &mut &'a mut [f32], n: usize) -> &'a mut [f32] {
    let (first, rest) = std::mem::take(slice).split_at_mut(n);
    *slice = rest;
    first
}

#[cfg(test)]
mod tests;
