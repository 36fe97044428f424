//! Heads and blocks of queries: their operands as panels, and the products between them.

use super::Heads;
use crate::model::kernels::shared::Shared;
use crate::model::kernels::vector::forward::{load_row, store_row};
use crate::model::kernels::vector::pack::{self, Element, Matrix};
use crate::model::kernels::vector::simd::Simd;
use crate::model::kernels::vector::tile::{DEPTH, Left, ROWS, product};
use std::slice::from_raw_parts_mut as slice_mut;

/// Queries of a block: few, so that little is computed beyond the diagonal; many, so that a panel
/// of keys serves them while it is in the first-level cache.
pub const BLOCK: usize = 8 * ROWS;

/// One head of [B, S, heads, D]: where token 0 begins, and how far apart tokens lie.
#[derive(Clone, Copy)]
pub struct Place {
    at: usize,
    stride: usize,
}

impl Place {
    pub fn new(heads: &Heads, of: usize, sequence: usize, head: usize) -> Self {
        let stride = of * heads.dim;
        Self { at: sequence * heads.tokens * stride + head * heads.dim, stride }
    }

    pub fn matrix<T>(&self, values: &[T]) -> Matrix<T> {
        Matrix::new(&values[self.at..], self.stride)
    }

    pub fn row(&self, token: usize) -> usize {
        self.at + token * self.stride
    }
}

/// The queries `first..first + rows` of one head.
#[derive(Clone, Copy)]
pub struct Block {
    pub first: usize,
    pub rows: usize,
}

impl Block {
    pub fn all(tokens: usize) -> impl Iterator<Item = Self> {
        (0..tokens).step_by(BLOCK).map(move |first| Self { first, rows: BLOCK.min(tokens - first) })
    }

    /// Keys that any of them sees.
    pub fn keys(&self) -> usize {
        self.first + self.rows
    }
}

/// All rows of a head's matrix transposed: `[S in panels][D][P]`.
///
/// # Safety
/// As [`pack::transposed`]; `out` holds S in whole panels times D.
#[inline(always)]
pub unsafe fn columns<S: Simd, T: Element>(heads: &Heads, w: Matrix<T>, out: *mut f32) {
    for token in (0..heads.tokens).step_by(S::PANEL) {
        let lanes = S::PANEL.min(heads.tokens - token);
        // SAFETY: by the caller's promise.
        unsafe {
            pack::transposed::<S, T>(w, [token, 0], heads.dim, lanes, out.add(token * heads.dim))
        }
    }
}

/// All rows of a head's matrix as they lie: `[D in panels][S][P]`.
///
/// # Safety
/// As [`pack::rows`]; `out` holds S times D in whole panels.
#[inline(always)]
pub unsafe fn as_it_lies<S: Simd, T: Element>(heads: &Heads, w: Matrix<T>, out: *mut f32) {
    for d in (0..heads.dim).step_by(S::PANEL) {
        let lanes = S::PANEL.min(heads.dim - d);
        // SAFETY: by the caller's promise.
        unsafe { pack::rows::<S, T>(w, [0, d], heads.tokens, lanes, out.add(d * heads.tokens)) }
    }
}

/// Rows of a block in f32, times `scale`, `[rows][D in panels]`, zero beyond D.
///
/// # Safety
/// The rows of the block lie in the matrix; `out` has room.
#[inline(always)]
pub unsafe fn widen<S: Simd, T: Element>(
    heads: &Heads,
    w: Matrix<T>,
    block: Block,
    scale: f32,
    out: *mut f32,
) {
    let [_, dim] = heads.panels::<S>();
    for r in 0..block.rows {
        for d in (0..heads.dim).step_by(S::PANEL) {
            let lanes = S::PANEL.min(heads.dim - d);
            // SAFETY: by the caller's promise.
            unsafe {
                let row = load_row::<S, T>(w.row(block.first + r, d), lanes);
                let to = slice_mut(out.add(r * dim + d), S::PANEL);
                to.iter_mut().zip(row).for_each(|(to, x)| *to = x * scale);
            }
        }
    }
}

/// `out` [rows, stride] = rows · columnsᵀ for all the keys of a block: `left` [rows, D].
///
/// # Safety
/// `left` is as [`widen`] leaves it, `columns` as [`columns`]; `out` has room for whole panels.
#[inline(always)]
pub unsafe fn against_keys<S: Simd>(
    heads: &Heads,
    block: Block,
    left: *const f32,
    columns: *const f32,
    out: *mut f32,
    stride: usize,
) {
    let [_, dim] = heads.panels::<S>();
    let left = Left { at: left, stride: dim, step: 1 };
    for key in (0..block.keys()).step_by(S::PANEL) {
        // SAFETY: by the caller's promise.
        unsafe {
            let panel = columns.add(key * heads.dim);
            product::<S>(block.rows, heads.dim, left, panel, out.add(key), stride, false);
        }
    }
}

/// `out` [rows, D in panels] = weights · values over the keys of a block: `weights` [rows, stride].
///
/// # Safety
/// `values` is as [`as_it_lies`] leaves it; `out` has room.
#[inline(always)]
pub unsafe fn over_keys<S: Simd>(
    heads: &Heads,
    block: Block,
    weights: *const f32,
    stride: usize,
    values: *const f32,
    out: *mut f32,
) {
    let [_, dim] = heads.panels::<S>();
    for d in (0..dim).step_by(S::PANEL) {
        for key in (0..block.keys()).step_by(DEPTH) {
            let len = DEPTH.min(block.keys() - key);
            let left = Left { at: weights.wrapping_add(key), stride, step: 1 };
            // SAFETY: by the caller's promise.
            unsafe {
                let panel = values.add(d * heads.tokens + key * S::PANEL);
                product::<S>(block.rows, len, left, panel, out.add(d), dim, key > 0);
            }
        }
    }
}

/// `sums` [S, D in panels] += weightsᵀ · rows, for the keys of a block: `weights` [rows, stride],
/// `rows` [rows, D in panels] goes through `panel`.
///
/// # Safety
/// As [`over_keys`]; `panel` has room for a block.
#[inline(always)]
pub unsafe fn to_keys<S: Simd>(
    heads: &Heads,
    block: Block,
    weights: *const f32,
    stride: usize,
    rows: *const f32,
    panel: *mut f32,
    sums: *mut f32,
) {
    let [_, dim] = heads.panels::<S>();
    let rows = Matrix { at: rows, stride: dim };
    let left = Left { at: weights, stride: 1, step: stride };
    for d in (0..dim).step_by(S::PANEL) {
        // SAFETY: by the caller's promise.
        unsafe {
            pack::rows::<S, f32>(rows, [0, d], block.rows, S::PANEL, panel);
            product::<S>(block.keys(), block.rows, left, panel, sums.add(d), dim, true);
        }
    }
}

/// Rows of [.., D in panels], times `scale`, to their place in the compute type.
///
/// # Safety
/// `rows` rows are readable; nobody else writes theirs in `out`.
#[inline(always)]
pub unsafe fn put<S: Simd, T: Element>(
    heads: &Heads,
    place: Place,
    block: Block,
    from: *mut f32,
    out: Shared<T>,
    scale: impl Fn(usize) -> f32,
) {
    let [_, dim] = heads.panels::<S>();
    for r in 0..block.rows {
        let scale = scale(r);
        for d in (0..heads.dim).step_by(S::PANEL) {
            let lanes = S::PANEL.min(heads.dim - d);
            let from = from.wrapping_add(r * dim + d);
            // SAFETY: by the caller's promise.
            unsafe {
                slice_mut(from, S::PANEL).iter_mut().for_each(|x| *x *= scale);
                store_row::<S, T>(from, out.at(place.row(block.first + r) + d), lanes);
            }
        }
    }
}

pub fn scale(heads: &Heads) -> f32 {
    1.0 / (heads.dim as f32).sqrt()
}
