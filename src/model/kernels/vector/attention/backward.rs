//! The backward pass.

use super::Heads;
use super::parts::{
    BLOCK, Block, Place, against_keys, as_it_lies, columns, over_keys, put, scale, to_keys, widen,
};
use crate::base::Result;
use crate::model::kernels::float::exp;
use crate::model::kernels::parallel::parallel_for;
use crate::model::kernels::shared::Shared;
use crate::model::kernels::vector::floats::{Floats, padded};
use crate::model::kernels::vector::pack::Element;
use crate::model::kernels::vector::simd::Simd;
use crate::model::kernels::vector::vectored;
use std::ops::Range;
use std::slice::from_raw_parts_mut as slice_mut;

/// What the backward pass reads, in the compute type unless said.
#[derive(Clone, Copy)]
pub struct AttentionTape<'a, T> {
    pub heads: Heads,
    /// [B, S, N, D].
    pub q: &'a [T],
    /// [B, S, G, D].
    pub k: &'a [T],
    /// [B, S, G, D].
    pub v: &'a [T],
    /// [B, S, N, D].
    pub out: &'a [T],
    /// f32 [B, N, S].
    pub log_sums: &'a [f32],
    /// d loss / d out [B, S, N, D].
    pub d_out: &'a [T],
}

/// Gradients of q, k and v, in their shapes.
///
/// # Errors
/// As [`super::attention`].
pub fn attention_backward<T: Element>(
    tape: AttentionTape<'_, T>,
    [dq, dk, dv]: [&mut [T]; 3],
) -> Result<()> {
    let heads = tape.heads;
    let (wide, narrow) = (heads.wide(), heads.narrow());
    heads.check(&[
        (tape.q.len(), wide),
        (tape.k.len(), narrow),
        (tape.v.len(), narrow),
        (tape.out.len(), wide),
        (tape.d_out.len(), wide),
        (tape.log_sums.len(), heads.rows()),
        (dq.len(), wide),
        (dk.len(), narrow),
        (dv.len(), narrow),
    ])?;
    let job = Backward { tape, dq: Shared::new(dq), dk: Shared::new(dk), dv: Shared::new(dv) };
    parallel_for(heads.sequences * heads.kv_heads, 1, |range| {
        // SAFETY: the slices were checked; each index writes heads of its own.
        unsafe { backward_heads::<T>(&job, range) }
    })
}

struct Backward<'a, T> {
    tape: AttentionTape<'a, T>,
    dq: Shared<T>,
    dk: Shared<T>,
    dv: Shared<T>,
}

/// Weights of a row from its scores.
#[inline(always)]
fn weigh(scores: &mut [f32], log_sum: f32) {
    for score in scores {
        *score = exp(*score - log_sum);
    }
}

/// d scores = weights · (d weights − shift), over d weights.
#[inline(always)]
fn d_scores(weights: &[f32], d_weights: &mut [f32], shift: f32) {
    for (weight, d) in weights.iter().zip(d_weights) {
        *d = weight * (*d - shift);
    }
}

#[inline(always)]
unsafe fn backward_body<S: Simd, T: Element>(job: &Backward<'_, T>, range: Range<usize>) {
    let tape = &job.tape;
    let heads = &tape.heads;
    let [tokens, dim] = heads.panels::<S>();
    let stride = padded(tokens);
    let mut packed = [0; 2].map(|_| Floats::new(tokens * heads.dim));
    let mut keys_as_lie = Floats::new(heads.tokens * dim);
    let mut blocks = [0; 4].map(|_| Floats::new(BLOCK * dim));
    let mut rows = [0; 2].map(|_| Floats::new(BLOCK * stride));
    let mut sums = [0; 2].map(|_| Floats::new(heads.tokens * dim));
    let [keys, values] = packed.each_mut().map(Floats::at);
    let [q, d_out, dq, panel] = blocks.each_mut().map(Floats::at);
    let [weights, d_weights] = rows.each_mut().map(Floats::at);
    let whole = Block { first: 0, rows: heads.tokens };
    let group = heads.query_heads / heads.kv_heads;
    for index in range {
        let (sequence, key_head) = (index / heads.kv_heads, index % heads.kv_heads);
        let place = Place::new(heads, heads.kv_heads, sequence, key_head);
        sums.iter_mut().for_each(|sums| sums.slice().fill(0.0));
        let [dk, dv] = sums.each_mut().map(Floats::at);
        // SAFETY: the slices have the sizes of the shape; the scratch has room.
        unsafe {
            columns::<S, T>(heads, place.matrix(tape.k), keys);
            columns::<S, T>(heads, place.matrix(tape.v), values);
            as_it_lies::<S, T>(heads, place.matrix(tape.k), keys_as_lie.at());
        }
        for head in key_head * group..(key_head + 1) * group {
            let of_queries = Place::new(heads, heads.query_heads, sequence, head);
            let log_sums = &tape.log_sums[(sequence * heads.query_heads + head) * heads.tokens..];
            for block in Block::all(heads.tokens) {
                // SAFETY: as above; rows of these heads are written by this index alone.
                unsafe {
                    widen::<S, T>(heads, of_queries.matrix(tape.q), block, scale(heads), q);
                    widen::<S, T>(heads, of_queries.matrix(tape.d_out), block, 1.0, d_out);
                    against_keys::<S>(heads, block, q, keys, weights, stride);
                    against_keys::<S>(heads, block, d_out, values, d_weights, stride);
                    for r in 0..block.rows {
                        let at = of_queries.row(block.first + r);
                        let out = &tape.out[at..at + heads.dim];
                        let d_out = slice_mut(d_out.add(r * dim), heads.dim);
                        let shift = out.iter().zip(d_out).map(|(o, d)| o.load() * *d).sum();
                        let weights = slice_mut(weights.add(r * stride), block.keys());
                        let d_weights = slice_mut(d_weights.add(r * stride), block.keys());
                        let seen = block.first + r + 1;
                        weigh(&mut weights[..seen], log_sums[block.first + r]);
                        d_scores(&weights[..seen], &mut d_weights[..seen], shift);
                        weights[seen..].fill(0.0);
                        d_weights[seen..].fill(0.0);
                    }
                    over_keys::<S>(heads, block, d_weights, stride, keys_as_lie.at(), dq);
                    put::<S, T>(heads, of_queries, block, dq, job.dq, |_| scale(heads));
                    to_keys::<S>(heads, block, d_weights, stride, q, panel, dk);
                    to_keys::<S>(heads, block, weights, stride, d_out, panel, dv);
                }
            }
        }
        // SAFETY: as above.
        unsafe {
            put::<S, T>(heads, place, whole, dk, job.dk, |_| 1.0);
            put::<S, T>(heads, place, whole, dv, job.dv, |_| 1.0);
        }
    }
}

vectored! {
    /// # Safety
    /// The job's memory has the sizes of its shape; nobody else writes these heads.
    fn backward_heads<T>(Backward<'_, T>) = backward_body;
}
