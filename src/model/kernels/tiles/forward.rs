//! The forward pass of one expert.

use super::buffer::Tiles;
use super::lanes::{from_bf16, pair, rows_of, sigmoid, to_bf16, transpose};
use super::unit::{Block, Multiplier, Operand, Part, Unit};
use super::{ROW_BLOCK, TILE_BYTES, pack};
use crate::base::Result;
use crate::model::kernels::parallel::parallel_for;
use crate::model::kernels::shared::Shared;
use std::arch::x86_64::*;

/// Blocks of rows that fetch the next weights while they compute: together all 16 rows of both.
const BLOCKS_AHEAD: usize = 2;

/// Gate and up values of the forward pass in bf16: for each 16 of F and each 32 rows, a tile of
/// gate [16 f, 32 n], then one of up.
pub struct KeptTiles {
    pub(super) tiles: Tiles,
    pub(super) rows: usize,
}

impl KeptTiles {
    pub(super) fn index(block_f: usize, block_n: usize, blocks_n: usize) -> usize {
        2 * (block_f * blocks_n + block_n)
    }
}

/// Shapes of one call.
#[derive(Clone, Copy)]
pub(super) struct Shape {
    pub unit: Unit,
    pub rows: usize,
    pub hidden: usize,
    pub width: usize,
}

impl Shape {
    /// Blocks of 32 rows.
    pub fn blocks_n(&self) -> usize {
        self.rows.div_ceil(ROW_BLOCK)
    }

    /// Rows of block `n`.
    pub fn rows_of(&self, n: usize) -> usize {
        self.valid(n * ROW_BLOCK, ROW_BLOCK)
    }

    /// Valid rows from `row` on, at most `of`.
    pub fn valid(&self, row: usize, of: usize) -> usize {
        self.rows.saturating_sub(row).min(of)
    }
}

/// o [N, H] = down(silu(gate(x)) · up(x)); bf16 in and out. Answers gate and up for the backward
/// pass. `weights_gate_up` [2F, H], `weights_down` [H, F], `x` [N, H].
///
/// # Errors
/// As [`parallel_for`].
///
/// # Safety
/// The unit is available and [`super::fits`] holds; the slices have the sizes of their shapes.
#[expect(clippy::too_many_arguments, reason = "a kernel takes what it works on, flat")]
pub unsafe fn forward(
    unit: Unit,
    weights_gate_up: &[u16],
    weights_down: &[u16],
    x: &[u16],
    o: &mut [u16],
    hidden: usize,
    width: usize,
    keep: bool,
) -> Result<Option<KeptTiles>> {
    let shape = Shape { unit, rows: x.len() / hidden, hidden, width };
    let blocks_n = shape.blocks_n();
    let act = Tiles::new(2 * blocks_n * width / 32);
    let kept = keep.then(|| Tiles::new(2 * blocks_n * width / 16));
    // SAFETY: by the caller's promise.
    unsafe { first_product(shape, weights_gate_up, x, Some(&act), kept.as_ref())? };
    let o = Shared::new(o);
    parallel_for(hidden / 32, 1, |range| {
        // SAFETY: by the caller's promise; each index writes columns of its own.
        unsafe {
            let multiplier = Multiplier::take(shape.unit);
            for block in range {
                down_block(&multiplier, shape, weights_down, &act, block, o);
            }
        }
    })?;
    Ok(kept.map(|tiles| KeptTiles { tiles, rows: shape.rows }))
}

/// Gate and up alone: what [`forward`] keeps.
///
/// # Errors
/// As [`parallel_for`].
///
/// # Safety
/// As [`forward`].
pub unsafe fn gate_up(
    unit: Unit,
    weights_gate_up: &[u16],
    x: &[u16],
    hidden: usize,
    width: usize,
) -> Result<KeptTiles> {
    let shape = Shape { unit, rows: x.len() / hidden, hidden, width };
    let kept = Tiles::new(2 * shape.blocks_n() * width / 16);
    // SAFETY: by the caller's promise.
    unsafe { first_product(shape, weights_gate_up, x, None, Some(&kept))? };
    Ok(KeptTiles { tiles: kept, rows: shape.rows })
}

/// Packs x and runs the first product and the activation.
unsafe fn first_product(
    shape: Shape,
    weights: &[u16],
    x: &[u16],
    act: Option<&Tiles>,
    kept: Option<&Tiles>,
) -> Result<()> {
    let (depth, blocks_n) = (shape.hidden / 32, shape.blocks_n());
    let packed = Tiles::new(2 * blocks_n * depth);
    parallel_for(2 * blocks_n * depth, 16, |range| {
        for index in range {
            let (n, k) = (16 * (index / depth), 32 * (index % depth));
            let at = x.as_ptr().wrapping_add(n * shape.hidden + k).cast();
            // SAFETY: the valid rows lie in x; each index has a tile of its own.
            unsafe {
                pack::columns(at, 2 * shape.hidden, shape.valid(n, 16), packed.tile(index));
            }
        }
    })?;
    parallel_for(shape.width / 16, 1, |range| {
        // SAFETY: by the caller's promise; each index writes tiles of its own.
        unsafe {
            let multiplier = Multiplier::take(shape.unit);
            for block in range {
                gate_up_block(&multiplier, shape, weights, &packed, block, act, kept);
            }
        }
    })
}

/// 16 of F: gate and up for all rows, the activation, and what is kept.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn gate_up_block(
    multiplier: &Multiplier,
    shape: Shape,
    weights: &[u16],
    packed: &Tiles,
    block: usize,
    act: Option<&Tiles>,
    kept: Option<&Tiles>,
) {
    let (depth, blocks_n) = (shape.hidden / 32, shape.blocks_n());
    let row = |f: usize| weights.as_ptr().wrapping_add(f * shape.hidden).cast::<u8>();
    let (gate, up) = (row(16 * block), row(shape.width + 16 * block));
    let block_bytes = 32 * shape.hidden;
    let mut out = Block::new();
    for n in 0..blocks_n {
        let a = Operand { tiles: [gate, up], stride: 2 * shape.hidden, step: 64 };
        let tile = |half: usize| packed.tile((2 * n + half) * depth).cast_const();
        let b = Operand::packed(tile(0), tile(1), TILE_BYTES);
        // The next 16 of F lie right behind these; the first blocks of rows fetch a share each.
        let ahead = (n < BLOCKS_AHEAD)
            .then(|| [gate, up].map(|at| at.wrapping_add(block_bytes + n * depth * 512)));
        let part = Part { rows: 32, columns: shape.rows_of(n), depth: shape.hidden };
        // SAFETY: rows 16 block .. + 16 of gate and up lie in the weights, B tiles were packed.
        unsafe { multiplier.product(a, b, part, ahead, &mut out) };
        let [g0, g1, u0, u1] = &out.0;
        if let Some(kept) = kept {
            let index = KeptTiles::index(block, n, blocks_n);
            for f in 0..16 {
                let store = |tile: usize, first: &[f32; 16], second: &[f32; 16]| {
                    let at = kept.tile(index + tile).wrapping_add(64 * f);
                    // SAFETY: a row of a tile that this index owns.
                    unsafe {
                        let both = to_bf16(
                            _mm512_load_ps(first.as_ptr()),
                            _mm512_load_ps(second.as_ptr()),
                        );
                        _mm512_store_si512(at.cast(), both);
                    }
                };
                store(0, &g0[f], &g1[f]);
                store(1, &u0[f], &u1[f]);
            }
        }
        let Some(act) = act else { continue };
        for (half, (gate, up)) in [(g0, u0), (g1, u1)].into_iter().enumerate() {
            // Depth of the second product is F: tile (row block, F / 32), and in it the pair of f.
            let tile = act.tile((2 * n + half) * (shape.width / 32) + block / 2);
            for f in (0..16).step_by(2) {
                // SAFETY: 16 aligned f32; the row belongs to this index.
                unsafe {
                    let value = |f: usize| {
                        let g = _mm512_load_ps(gate[f].as_ptr());
                        let u = _mm512_load_ps(up[f].as_ptr());
                        _mm512_mul_ps(_mm512_mul_ps(g, sigmoid(g)), u)
                    };
                    let at = tile.wrapping_add(64 * (8 * (block % 2) + f / 2));
                    _mm512_store_si512(at.cast(), pair(value(f), value(f + 1)));
                }
            }
        }
    }
}

/// 32 of H: the second product for all rows.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn down_block(
    multiplier: &Multiplier,
    shape: Shape,
    weights: &[u16],
    act: &Tiles,
    block: usize,
    o: Shared<u16>,
) {
    let depth = shape.width / 32;
    let row = |h: usize| weights.as_ptr().wrapping_add(h * shape.width).cast::<u8>();
    let (first, second) = (row(32 * block), row(32 * block + 16));
    let block_bytes = 64 * shape.width;
    let mut out = Block::new();
    for n in 0..shape.blocks_n() {
        let a = Operand { tiles: [first, second], stride: 2 * shape.width, step: 64 };
        let tile = |half: usize| act.tile((2 * n + half) * depth).cast_const();
        let b = Operand::packed(tile(0), tile(1), TILE_BYTES);
        let ahead = (n < BLOCKS_AHEAD)
            .then(|| [first, second].map(|at| at.wrapping_add(block_bytes + n * depth * 512)));
        let part = Part { rows: 32, columns: shape.rows_of(n), depth: shape.width };
        // SAFETY: rows 32 block .. + 32 lie in the weights, B tiles were made by the first product.
        unsafe { multiplier.product(a, b, part, ahead, &mut out) };
        for half in 0..2 {
            let low = transpose(rows_of(&out.0[half]));
            let high = transpose(rows_of(&out.0[2 + half]));
            let start = ROW_BLOCK * n + 16 * half;
            for i in 0..shape.valid(start, 16) {
                let both = to_bf16(_mm512_castsi512_ps(low[i]), _mm512_castsi512_ps(high[i]));
                // SAFETY: a valid row of o, columns 32 block .. + 32.
                unsafe {
                    let at = o.at((start + i) * shape.hidden + 32 * block);
                    _mm512_storeu_si512(at.cast(), both);
                }
            }
        }
    }
}

/// One row of a kept tile as f32: 32 rows n of one f.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(super) unsafe fn kept_row(kept: &Tiles, tile: usize, f: usize) -> [__m512; 2] {
    // SAFETY: a row of a tile of the buffer, by the caller's promise.
    from_bf16(unsafe { _mm512_load_si512(kept.tile(tile).wrapping_add(64 * f).cast()) })
}
