//! The two products of attention, over tiles of keys, for each instruction set.
//!
//! Law 4: a query's sums run over elements, or over keys, one after the other, however many queries
//! pass together. So each sum waits for its last addend, and many are under way at once: of many queries,
//! or, where few pass, of several vectors of keys or of elements of values.

use super::TILE;
use crate::model::kernels::float::Number;
use crate::model::kernels::linear::simd::{Floats, Level, for_level};

/// A number as it is cached: f32, or bf16 as its bits. It is decoded in registers.
pub trait Cached: Number {
    /// # Safety
    /// As [`Floats`].
    unsafe fn vector<S: Floats>(p: *const Self) -> S::V;
    /// # Safety
    /// The processor has the level, and slices are as [`Scores::run`] checks them.
    unsafe fn scores(level: Level, call: &mut Scores<'_, Self>);
    /// # Safety
    /// The processor has the level, and slices are as [`Weighted::run`] checks them.
    unsafe fn weighted(level: Level, call: &mut Weighted<'_, Self>);
}

impl Cached for f32 {
    #[inline(always)]
    unsafe fn vector<S: Floats>(p: *const Self) -> S::V {
        // SAFETY: the caller's.
        unsafe { S::load(p) }
    }
    unsafe fn scores(level: Level, call: &mut Scores<'_, Self>) {
        // SAFETY: the caller's.
        unsafe { scores_f32(level, call) }
    }
    unsafe fn weighted(level: Level, call: &mut Weighted<'_, Self>) {
        // SAFETY: the caller's.
        unsafe { weighted_f32(level, call) }
    }
}

impl Cached for u16 {
    #[inline(always)]
    unsafe fn vector<S: Floats>(p: *const Self) -> S::V {
        // SAFETY: the caller's.
        unsafe { S::bf16(p.cast()) }
    }
    unsafe fn scores(level: Level, call: &mut Scores<'_, Self>) {
        // SAFETY: the caller's.
        unsafe { scores_bf16(level, call) }
    }
    unsafe fn weighted(level: Level, call: &mut Weighted<'_, Self>) {
        // SAFETY: the caller's.
        unsafe { weighted_bf16(level, call) }
    }
}

/// Scores of `queries` queries, `q` `[element][query]`, over tiles of keys `[tile][element][TILE]`, to rows
/// of `out` that lie `stride` apart.
pub struct Scores<'a, T> {
    pub q: &'a [f32],
    pub keys: &'a [T],
    pub tiles: usize,
    pub queries: usize,
    pub out: &'a mut [f32],
    pub stride: usize,
}

/// `out[r] += Σ_j p[r][j] · rows[j]` for `queries` rows of `out` `[queries, dim]`: rows of `p` lie
/// `stride` apart, those of `rows` are `[keys, dim]`.
pub struct Weighted<'a, T> {
    pub p: &'a [f32],
    pub stride: usize,
    pub rows: &'a [T],
    pub queries: usize,
    pub out: &'a mut [f32],
}

/// Most queries at once: as many accumulators as fit the registers.
pub fn most(level: Level) -> usize {
    if level >= Level::Avx512 { 16 } else { 4 }
}

for_level! {
    unsafe fn scores_f32(call: &mut Scores<'_, f32>) = Floats scores<f32>;
    unsafe fn scores_bf16(call: &mut Scores<'_, u16>) = Floats scores<u16>;
    unsafe fn weighted_f32(call: &mut Weighted<'_, f32>) = Floats weighted<f32>;
    unsafe fn weighted_bf16(call: &mut Weighted<'_, u16>) = Floats weighted<u16>;
}

impl<T: Cached> Scores<'_, T> {
    /// Computes; up to [`most`] queries.
    pub fn run(mut self, level: Level) {
        let (dim, keys) = (self.keys.len() / (self.tiles * TILE), self.tiles * TILE);
        assert!(self.q.len() >= dim * self.queries, "queries are shorter than keys");
        assert!(self.out.len() >= (self.queries - 1) * self.stride + keys, "no room for scores");
        // SAFETY: a level is what the processor has; the slices were checked.
        unsafe { T::scores(level, &mut self) }
    }
}

impl<T: Cached> Weighted<'_, T> {
    /// Computes; up to [`most`] queries.
    pub fn run(mut self, level: Level) {
        let dim = self.out.len() / self.queries;
        let keys = self.rows.len() / dim;
        assert!(self.p.len() >= (self.queries - 1) * self.stride + keys, "weights are missing");
        // SAFETY: as above.
        unsafe { T::weighted(level, &mut self) }
    }
}

#[inline(always)]
unsafe fn scores<S: Floats, T: Cached>(call: &mut Scores<'_, T>) {
    // SAFETY: the caller's.
    unsafe {
        match call.queries {
            16 => score::<S, T, 16, 1>(call),
            8 => score::<S, T, 8, 1>(call),
            4 => score::<S, T, 4, 2>(call),
            2 => score::<S, T, 2, 4>(call),
            _ => score::<S, T, 1, 4>(call),
        }
    }
}

/// R queries, V vectors of keys at once while there are so many.
#[inline(always)]
unsafe fn score<S: Floats, T: Cached, const R: usize, const V: usize>(call: &mut Scores<'_, T>) {
    let vectors = call.tiles * TILE / S::LANES;
    let whole = vectors / V * V;
    // SAFETY: the caller's.
    unsafe {
        for first in (0..whole).step_by(V) {
            score_vectors::<S, T, R, V>(call, first);
        }
        for first in whole..vectors {
            score_vectors::<S, T, R, 1>(call, first);
        }
    }
}

#[inline(always)]
unsafe fn score_vectors<S: Floats, T: Cached, const R: usize, const V: usize>(
    call: &mut Scores<'_, T>,
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
                let keys = T::vector::<S>(keys.add(d * TILE));
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
unsafe fn weighted<S: Floats, T: Cached>(call: &mut Weighted<'_, T>) {
    // SAFETY: the caller's.
    unsafe {
        match call.queries {
            16 => weigh::<S, T, 16, 1>(call),
            8 => weigh::<S, T, 8, 1>(call),
            4 => weigh::<S, T, 4, 2>(call),
            2 => weigh::<S, T, 2, 4>(call),
            _ => weigh::<S, T, 1, 8>(call),
        }
    }
}

/// R queries, V vectors of elements at once while there are so many.
#[inline(always)]
unsafe fn weigh<S: Floats, T: Cached, const R: usize, const V: usize>(call: &mut Weighted<'_, T>) {
    let dim = call.out.len() / R;
    let whole = dim / S::LANES * S::LANES;
    let wide = whole / (V * S::LANES) * (V * S::LANES);
    // SAFETY: the caller's.
    unsafe {
        for at in (0..wide).step_by(V * S::LANES) {
            weigh_vectors::<S, T, R, V>(call, at);
        }
        for at in (wide..whole).step_by(S::LANES) {
            weigh_vectors::<S, T, R, 1>(call, at);
        }
    }
    if whole < dim {
        for (j, row) in call.rows.chunks_exact(dim).enumerate() {
            for (r, out) in call.out.chunks_exact_mut(dim).enumerate() {
                let p = call.p[r * call.stride + j];
                for (out, value) in out[whole..].iter_mut().zip(&row[whole..]) {
                    *out += p * value.load();
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn weigh_vectors<S: Floats, T: Cached, const R: usize, const V: usize>(
    call: &mut Weighted<'_, T>,
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
                let value = T::vector::<S>(rows.add(j * dim + at + v * S::LANES));
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
