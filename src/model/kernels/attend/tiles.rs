//! The two products of attention, over one tile of keys, for each instruction set.
//!
//! Law 4: a query's sums run over elements, or over keys, one after the other, however many queries
//! pass together.

use super::TILE;
use crate::model::kernels::linear::simd::{Floats, Level, for_level};

/// Scores of `queries` queries, `q` `[element][query]`, over a tile of keys `[element][TILE]`, to rows
/// of `out` that lie `stride` apart.
pub struct Scores<'a> {
    pub q: &'a [f32],
    pub keys: &'a [f32],
    pub queries: usize,
    pub out: &'a mut [f32],
    pub stride: usize,
}

/// `out[r] += Σ_j p[r][j] · rows[j]` for `queries` rows of `out` `[queries, dim]`: rows of `p` lie
/// `stride` apart, those of `rows` are `[keys, dim]`.
pub struct Weighted<'a> {
    pub p: &'a [f32],
    pub stride: usize,
    pub rows: &'a [f32],
    pub queries: usize,
    pub out: &'a mut [f32],
}

/// Most queries of one tile: as many accumulators as hide the latency of a sum, and fit the registers.
pub fn most(level: Level) -> usize {
    if level >= Level::Avx512 { 8 } else { 4 }
}

for_level! {
    unsafe fn scores_on(call: &mut Scores<'_>) = Floats scores;
    unsafe fn weighted_on(call: &mut Weighted<'_>) = Floats weighted;
}

impl Scores<'_> {
    /// Computes; up to [`most`] queries.
    pub fn run(mut self, level: Level) {
        let dim = self.keys.len() / TILE;
        assert!(self.q.len() >= dim * self.queries, "queries are shorter than keys");
        assert!(self.out.len() >= (self.queries - 1) * self.stride + TILE, "no room for scores");
        // SAFETY: a level is what the processor has; the slices were checked.
        unsafe { scores_on(level, &mut self) }
    }
}

impl Weighted<'_> {
    /// Computes; up to [`most`] queries.
    pub fn run(mut self, level: Level) {
        let dim = self.out.len() / self.queries;
        let keys = self.rows.len() / dim;
        assert!(self.p.len() >= (self.queries - 1) * self.stride + keys, "weights are missing");
        // SAFETY: as above.
        unsafe { weighted_on(level, &mut self) }
    }
}

#[inline(always)]
unsafe fn scores<S: Floats>(call: &mut Scores<'_>) {
    // SAFETY: the caller's.
    unsafe {
        match call.queries {
            8 => score::<S, 8>(call),
            4 => score::<S, 4>(call),
            2 => score::<S, 2>(call),
            _ => score::<S, 1>(call),
        }
    }
}

#[inline(always)]
unsafe fn score<S: Floats, const R: usize>(call: &mut Scores<'_>) {
    let (q, keys, dim) = (call.q.as_ptr(), call.keys.as_ptr(), call.keys.len() / TILE);
    for at in (0..TILE).step_by(S::LANES) {
        // SAFETY: the caller's: [dim][R] of q, [dim][TILE] of keys, R rows of out.
        unsafe {
            let mut sums = [S::zero(); R];
            for d in 0..dim {
                let keys = S::load(keys.add(d * TILE + at));
                for (r, sum) in sums.iter_mut().enumerate() {
                    *sum = S::fma(S::splat(*q.add(d * R + r)), keys, *sum);
                }
            }
            for (r, sum) in sums.into_iter().enumerate() {
                S::store(call.out.as_mut_ptr().add(r * call.stride + at), sum);
            }
        }
    }
}

#[inline(always)]
unsafe fn weighted<S: Floats>(call: &mut Weighted<'_>) {
    // SAFETY: the caller's.
    unsafe {
        match call.queries {
            8 => weigh::<S, 8>(call),
            4 => weigh::<S, 4>(call),
            2 => weigh::<S, 2>(call),
            _ => weigh::<S, 1>(call),
        }
    }
}

#[inline(always)]
unsafe fn weigh<S: Floats, const R: usize>(call: &mut Weighted<'_>) {
    let dim = call.out.len() / R;
    let keys = call.rows.len() / dim;
    let whole = dim / S::LANES * S::LANES;
    let (p, rows, out) = (call.p.as_ptr(), call.rows.as_ptr(), call.out.as_mut_ptr());
    for at in (0..whole).step_by(S::LANES) {
        // SAFETY: the caller's: R rows of `keys` weights, `keys` rows of values, R rows of out.
        unsafe {
            let mut sums = [S::zero(); R];
            for (r, sum) in sums.iter_mut().enumerate() {
                *sum = S::load(out.add(r * dim + at));
            }
            for j in 0..keys {
                let value = S::load(rows.add(j * dim + at));
                for (r, sum) in sums.iter_mut().enumerate() {
                    *sum = S::fma(S::splat(*p.add(r * call.stride + j)), value, *sum);
                }
            }
            for (r, sum) in sums.into_iter().enumerate() {
                S::store(out.add(r * dim + at), sum);
            }
        }
    }
    if whole < dim {
        for (j, row) in call.rows.chunks_exact(dim).enumerate() {
            for (r, out) in call.out.chunks_exact_mut(dim).enumerate() {
                let p = call.p[r * call.stride + j];
                for (out, value) in out[whole..].iter_mut().zip(&row[whole..]) {
                    *out += p * value;
                }
            }
        }
    }
}
