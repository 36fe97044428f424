//! The forward pass.

use super::Heads;
use super::parts::{
    BLOCK, Block, Place, against_keys, as_it_lies, columns, over_keys, put, scale, widen,
};
use crate::base::Result;
use crate::model::kernels::parallel::parallel_for;
use crate::model::kernels::shared::Shared;
use crate::model::kernels::softmax::exponentials;
use crate::model::kernels::vector::floats::{Floats, padded};
use crate::model::kernels::vector::pack::Element;
use crate::model::kernels::vector::simd::Simd;
use crate::model::kernels::vector::vectored;
use std::ops::Range;
use std::slice::from_raw_parts_mut as slice_mut;

/// O [B, S, N, D] of `q` [B, S, N, D], `k` and `v` [B, S, G, D]; `log_sums` [B, N, S] gets the
/// logarithm of each row's sum of exponentials.
///
/// # Errors
/// As [`parallel_for`]; [`crate::base::ErrorKind::Bug`] when slices do not fit the shape.
pub fn attention<T: Element>(
    heads: Heads,
    [q, k, v]: [&[T]; 3],
    out: &mut [T],
    log_sums: &mut [f32],
) -> Result<()> {
    let (wide, narrow) = (heads.wide(), heads.narrow());
    heads.check(&[
        (q.len(), wide),
        (k.len(), narrow),
        (v.len(), narrow),
        (out.len(), wide),
        (log_sums.len(), heads.rows()),
    ])?;
    let job = Forward { heads, q, k, v, out: Shared::new(out), log_sums: Shared::new(log_sums) };
    parallel_for(heads.sequences * heads.kv_heads, 1, |range| {
        // SAFETY: the slices were checked; each index writes heads of its own.
        unsafe { forward_heads::<T>(&job, range) }
    })
}

struct Forward<'a, T> {
    heads: Heads,
    q: &'a [T],
    k: &'a [T],
    v: &'a [T],
    out: Shared<T>,
    log_sums: Shared<f32>,
}

#[inline(always)]
unsafe fn forward_body<S: Simd, T: Element>(job: &Forward<'_, T>, range: Range<usize>) {
    let heads = &job.heads;
    let [tokens, dim] = heads.panels::<S>();
    let stride = padded(tokens);
    let (mut keys, mut values) = (Floats::new(tokens * heads.dim), Floats::new(heads.tokens * dim));
    let (mut q, mut out) = (Floats::new(BLOCK * dim), Floats::new(BLOCK * dim));
    let mut scores = Floats::new(BLOCK * stride);
    let (keys, values, q, out, scores) = (keys.at(), values.at(), q.at(), out.at(), scores.at());
    let group = heads.query_heads / heads.kv_heads;
    for index in range {
        let (sequence, key_head) = (index / heads.kv_heads, index % heads.kv_heads);
        let place = Place::new(heads, heads.kv_heads, sequence, key_head);
        // SAFETY: the slices have the sizes of the shape; the scratch has room.
        unsafe {
            columns::<S, T>(heads, place.matrix(job.k), keys);
            as_it_lies::<S, T>(heads, place.matrix(job.v), values);
        }
        for head in key_head * group..(key_head + 1) * group {
            let place = Place::new(heads, heads.query_heads, sequence, head);
            let sums = (sequence * heads.query_heads + head) * heads.tokens;
            for block in Block::all(heads.tokens) {
                let mut inverse = [0f32; BLOCK];
                // SAFETY: as above; rows of this head are written by this index alone.
                unsafe {
                    widen::<S, T>(heads, place.matrix(job.q), block, scale(heads), q);
                    against_keys::<S>(heads, block, q, keys, scores, stride);
                    for (r, inverse) in inverse.iter_mut().enumerate().take(block.rows) {
                        let row = slice_mut(scores.add(r * stride), block.keys());
                        let (seen, beyond) = row.split_at_mut(block.first + r + 1);
                        beyond.fill(0.0);
                        let (most, sum) = exponentials(seen, None);
                        *inverse = 1.0 / sum;
                        *job.log_sums.at(sums + block.first + r) = most + sum.ln();
                    }
                    over_keys::<S>(heads, block, scores, stride, values, out);
                    put::<S, T>(heads, place, block, out, job.out, |r| inverse[r]);
                }
            }
        }
    }
}

vectored! {
    /// # Safety
    /// The job's memory has the sizes of its shape; nobody else writes these heads.
    fn forward_heads<T>(Forward<'_, T>) = forward_body;
}
