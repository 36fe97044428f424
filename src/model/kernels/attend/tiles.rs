//! The two products of attention, over tiles of keys, for each instruction set.
//!
//! Law 4: a query's sums run over elements, or over keys, one after the other, however many queries
//! pass together. So each sum waits for its last addend, and many are under way at once: of many queries,
//! or, where few pass, of several vectors of keys or of elements of values.

use super::TILE;
use crate::model::kernels::linear::simd::{Floats, Level, for_level};

/// Scores of `queries` queries, `q` `[element][query]`, over tiles of keys `[tile][element][TILE]`, to rows
/// of `out` that lie `stride` apart.
pub struct Scores<'a> {
    pub q: &'a [f32],
    pub keys: &'a [f32],
    pub tiles: usize,
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

/// Most queries at once: as many accumulators as fit the registers.
pub fn most(level: Level) -> usize {
    if level >= Level::Avx512 { 16 } else { 4 }
}

for_level! {
    unsafe fn scores_on(call: &mut Scores<'_>) = Floats scores;
    unsafe fn weighted_on(call: &mut Weighted<'_>) = Floats weighted;
}

impl Scores<'_> {
    /// Computes; up to [`most`] queries.
    pub fn run(mut self, level: Level) {
        let (dim, keys) = (self.keys.len() / (self.tiles * TILE), self.tiles * TILE);
        assert!(self.q.len() >= dim * self.queries, "queries are shorter than keys");
        assert!(self.out.len() >= (self.queries - 1) * self.stride + keys, "no room for scores");
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
            16 => score::<S, 16, 1>(call),
            8 => score::<S, 8, 1>(call),
            4 => score::<S, 4, 2>(call),
            2 => score::<S, 2, 4>(call),
            _ => score::<S, 1, 4>(call),
        }
    }
}

/// R queries, V vectors of keys at once while there are so many.
#[inline(always)]
unsafe fn score<S: Floats, const R: usize, const V: usize>(call: &mut Scores<'_>) {
    let vectors = call.tiles * TILE / S::LANES;
    let whole = vectors / V * V;
    // SAFETY: the caller's.
    unsafe {
        for first in (0..whole).step_by(V) {
            score_vectors::<S, R, V>(call, first);
        }
        for first in whole..vectors {
            score_vectors::<S, R, 1>(call, first);
        }
    }
}

#[inline(always)]
unsafe fn score_vectors<S: Floats, const R: usize, const V: usize>(
    call: &mut Scores<'_>,
    first: usize,
) {
    let dim = call.keys.len() / (call.tiles * TILE);
    let (q, out) = (call.q.as_ptr(), call.out.as_mut_ptr());
    let mut keys = [call.keys.as_ptr(); V];
    for (v, keys) in keys.iter_mut().enumerate() {
        let key = (first + v) * S::LANES;
        *keys = keys.wrapping_add(key / TILE * TILE * dim + key % TILE);
    }
    // SAFETY: the caller's: [dim][R] of q, [tiles][dim][TILE] of keys, R rows of out.
    unsafe {
        let mut sums = [[S::zero(); R]; V];
        for d in 0..dim {
            for (keys, sums) in keys.iter().zip(&mut sums) {
                let keys = S::load(keys.add(d * TILE));
                for (r, sum) in sums.iter_mut().enumerate() {
                    *sum = S::fma(S::splat(*q.add(d * R + r)), keys, *sum);
                }
            }
        }
        for (v, sums) in sums.into_iter().enumerate() {
            for (r, sum) in sums.into_iter().enumerate() {
                S::store(out.add(r * call.stride + (first + v) * S::LANES), sum);
            }
        }
    }
}

#[inline(always)]
unsafe fn weighted<S: Floats>(call: &mut Weighted<'_>) {
    // SAFETY: the caller's.
    unsafe {
        match call.queries {
            16 => weigh::<S, 16, 1>(call),
            8 => weigh::<S, 8, 1>(call),
            4 => weigh::<S, 4, 2>(call),
            2 => weigh::<S, 2, 4>(call),
            _ => weigh::<S, 1, 8>(call),
        }
    }
}

/// R queries, V vectors of elements at once while there are so many.
#[inline(always)]
unsafe fn weigh<S: Floats, const R: usize, const V: usize>(call: &mut Weighted<'_>) {
    let dim = call.out.len() / R;
    let whole = dim / S::LANES * S::LANES;
    let wide = whole / (V * S::LANES) * (V * S::LANES);
    // SAFETY: the caller's.
    unsafe {
        for at in (0..wide).step_by(V * S::LANES) {
            weigh_vectors::<S, R, V>(call, at);
        }
        for at in (wide..whole).step_by(S::LANES) {
            weigh_vectors::<S, R, 1>(call, at);
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

#[inline(always)]
unsafe fn weigh_vectors<S: Floats, const R: usize, const V: usize>(
    call: &mut Weighted<'_>,
    at: usize,
) {
    let dim = call.out.len() / R;
    let keys = call.rows.len() / dim;
    let (p, rows, out) = (call.p.as_ptr(), call.rows.as_ptr(), call.out.as_mut_ptr());
    // SAFETY: the caller's: R rows of `keys` weights, `keys` rows of values, R rows of out.
    unsafe {
        let mut sums = [[S::zero(); R]; V];
        for (v, sums) in sums.iter_mut().enumerate() {
            for (r, sum) in sums.iter_mut().enumerate() {
                *sum = S::load(out.add(r * dim + at + v * S::LANES));
            }
        }
        for j in 0..keys {
            for (v, sums) in sums.iter_mut().enumerate() {
                let value = S::load(rows.add(j * dim + at + v * S::LANES));
                for (r, sum) in sums.iter_mut().enumerate() {
                    *sum = S::fma(S::splat(*p.add(r * call.stride + j)), value, *sum);
                }
            }
        }
        for (v, sums) in sums.into_iter().enumerate() {
            for (r, sum) in sums.into_iter().enumerate() {
                S::store(out.add(r * dim + at + v * S::LANES), sum);
            }
        }
    }
}
