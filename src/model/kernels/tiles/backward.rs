//! The backward pass of one expert.

use super::buffer::Tiles;
use super::forward::{KeptTiles, Shape, kept_row};
use super::lanes::{pair, rows_of, sigmoid, store_tile, to_bf16, transpose};
use super::unit::{Block, Multiplier, Operand, Part, Unit};
use super::{ROW_BLOCK, TILE_BYTES, pack};
use crate::base::{Error, Result};
use crate::model::kernels::parallel::{Threads, parallel_for};
use crate::model::kernels::reduce::sum_squares;
use crate::model::kernels::shared::Shared;
use std::arch::x86_64::*;
use std::ops::Range;

/// What the backward pass reads and writes; bf16 unless said. N rows.
pub struct BackwardCall<'a> {
    pub unit: Unit,
    pub hidden: usize,
    pub width: usize,
    /// [2F, H].
    pub weights_gate_up: &'a [u16],
    /// [H, F].
    pub weights_down: &'a [u16],
    /// [N, H].
    pub x: &'a [u16],
    /// d loss / d weighted output [N, H].
    pub g: &'a [u16],
    /// Router weights `[N]`, f32.
    pub weights: &'a [f32],
    /// Out: d loss / d x [N, H].
    pub dx: &'a mut [u16],
    /// Out: d loss / d router weights `[N]`, f32.
    pub d_weights: &'a mut [f32],
    /// Gradient of gate_up [2F, H], f32.
    pub grad_gate_up: &'a mut [f32],
    /// Gradient of down [H, F], f32.
    pub grad_down: &'a mut [f32],
    /// Overwrite the gradients instead of adding to them.
    pub first: bool,
}

/// Intermediate results, all packed.
struct Scratch {
    /// A tiles of g: (16 rows, 32 of H).
    g_rows: Tiles,
    /// A tiles of gᵀ: (16 of H, 32 rows).
    g_columns: Tiles,
    /// B tiles of x: (16 of H, 32 rows).
    x_pairs: Tiles,
    /// A tiles of the gradient of (gate, up) pairs: (16 rows, 16 of F).
    d_pairs: Tiles,
    /// B tiles of act · w: (16 of F, 32 rows).
    act: Tiles,
    /// Partial router-weight gradients: a row of Np for each 32 of F.
    d_weights: Tiles,
    /// Router weights, padded with zeros.
    weights: Vec<f32>,
}

/// Runs the backward pass. `kept` is overwritten by its gradient. Answers Σ gradient² of both
/// weight gradients as they stand afterwards.
///
/// # Errors
/// As [`parallel_for`]; [`crate::base::ErrorKind::Bug`] when `kept` has another number of rows.
///
/// # Safety
/// The unit is available and [`super::fits`] holds; the slices have the sizes of their shapes, and
/// `kept` was made for this expert shape.
pub unsafe fn backward(call: BackwardCall<'_>, kept: KeptTiles) -> Result<f64> {
    let BackwardCall { unit, hidden, width, .. } = call;
    let shape = Shape { unit, rows: call.weights.len(), hidden, width };
    if kept.rows != shape.rows {
        let text = "kept values are of another number of rows";
        return Err(Error::bug(text).with("kept", kept.rows).with("rows", shape.rows));
    }
    if shape.rows == 0 {
        return without_rows(call);
    }
    let (blocks_n, h16, f16) = (shape.blocks_n(), shape.hidden / 16, shape.width / 16);
    let np = ROW_BLOCK * blocks_n;
    let mut weights = vec![0f32; np];
    weights[..shape.rows].copy_from_slice(call.weights);
    let scratch = Scratch {
        g_rows: Tiles::new(2 * blocks_n * shape.hidden / 32),
        g_columns: Tiles::new(h16 * blocks_n),
        x_pairs: Tiles::new(h16 * blocks_n),
        d_pairs: Tiles::new(2 * blocks_n * f16),
        act: Tiles::new(f16 * blocks_n),
        d_weights: Tiles::new((f16 / 2 * np * 4).div_ceil(TILE_BYTES)),
        weights,
    };
    let kept = &kept.tiles;
    // SAFETY: by the caller's promise; each index of each region writes places of its own.
    unsafe {
        pack_inputs(shape, call.x, call.g, &scratch)?;
        parallel_for(shape.width / 32, 1, |range| {
            let panel_tiles = 2 * shape.hidden / 32;
            let group = pack::panels_at_once(panel_tiles * TILE_BYTES).min(range.len());
            let (multiplier, panels) = (Multiplier::take(unit), Tiles::new(group * panel_tiles));
            for first in range.clone().step_by(group) {
                let blocks = first..(first + group).min(range.end);
                pack_down(shape, call.weights_down, &panels, blocks.clone());
                for block in blocks {
                    let panel = panels.tile((block - first) * panel_tiles);
                    activation_block(&multiplier, shape, kept, &scratch, panel, block);
                }
            }
        })?;
        sum_router_gradients(shape, &scratch, call.d_weights);
        let dx = Shared::new(call.dx);
        parallel_for(shape.hidden / 32, 1, |range| {
            let group = pack::panels_at_once(2 * f16 * TILE_BYTES).min(range.len());
            let (multiplier, panels) = (Multiplier::take(unit), Tiles::new(group * 2 * f16));
            for first in range.clone().step_by(group) {
                let blocks = first..(first + group).min(range.end);
                pack_gate_up(shape, call.weights_gate_up, &panels, blocks.clone());
                for block in blocks {
                    let panel = panels.tile((block - first) * 2 * f16);
                    input_block(&multiplier, shape, &scratch, panel, block, dx);
                }
            }
        })?;
    }
    let gate_up = Outer {
        slot: Shared::new(call.grad_gate_up),
        columns: shape.hidden,
        rows: shape.rows,
        first: call.first,
        // Rows of gate, then rows of up: every other tile of what was kept.
        a: &|block| {
            let (part, f) = (block / f16, block % f16);
            kept.tile(KeptTiles::index(f, 0, blocks_n) + part)
        },
        a_step: 2 * TILE_BYTES,
        b: &scratch.x_pairs,
    };
    let down = Outer {
        slot: Shared::new(call.grad_down),
        columns: shape.width,
        rows: shape.rows,
        first: call.first,
        a: &|block| scratch.g_columns.tile(block * blocks_n),
        a_step: TILE_BYTES,
        b: &scratch.act,
    };
    let (of_gate_up, of_down) = (2 * shape.width / 32 * (shape.hidden / 32), h16 / 2 * (f16 / 2));
    let mut sums = vec![0f64; of_gate_up + of_down];
    let out = Shared::new(&mut sums);
    parallel_for(of_gate_up + of_down, 8, |range| {
        // SAFETY: all operands were packed above; each index owns a block of a slot and a sum.
        unsafe {
            let multiplier = Multiplier::take(unit);
            let mut block = Block::new();
            for index in range {
                *out.at(index) = match index < of_gate_up {
                    true => gate_up.block(&multiplier, index, &mut block),
                    false => down.block(&multiplier, index - of_gate_up, &mut block),
                };
            }
            _mm_sfence();
        }
    })?;
    Ok(sums.iter().sum())
}

/// No rows: the gradients are zero, or stay as they are.
fn without_rows(call: BackwardCall<'_>) -> Result<f64> {
    if call.first {
        call.grad_gate_up.fill(0.0);
        call.grad_down.fill(0.0);
        return Ok(0.0);
    }
    let gate_up = sum_squares(call.grad_gate_up, Threads::Pool)?;
    Ok(gate_up + sum_squares(call.grad_down, Threads::Pool)?)
}

/// Packs x and g in the three ways that the products need.
unsafe fn pack_inputs(shape: Shape, x: &[u16], g: &[u16], scratch: &Scratch) -> Result<()> {
    let blocks_n = shape.blocks_n();
    let row_bytes = 2 * shape.hidden;
    parallel_for(blocks_n * shape.hidden / 32, 4, |range| {
        for index in range {
            let (n, h) = (index % blocks_n, index / blocks_n);
            let start = n * ROW_BLOCK * shape.hidden + 32 * h;
            let at = |x: &[u16], row: usize, column: usize| {
                x.as_ptr().wrapping_add(start + row * shape.hidden + column).cast::<u8>()
            };
            let valid = shape.valid(n * ROW_BLOCK, ROW_BLOCK);
            // SAFETY: only valid rows are read; each index has tiles of its own.
            unsafe {
                for half in 0..2 {
                    let tile = (2 * n + half) * (shape.hidden / 32) + h;
                    let upper = shape.valid(n * ROW_BLOCK + 16 * half, 16);
                    pack::rows(at(g, 16 * half, 0), row_bytes, upper, scratch.g_rows.tile(tile));
                    let tile = (2 * h + half) * blocks_n + n;
                    let source = at(g, 0, 16 * half);
                    pack::transposed(source, row_bytes, valid, scratch.g_columns.tile(tile));
                    let source = at(x, 0, 16 * half);
                    pack::pairs(source, row_bytes, valid, scratch.x_pairs.tile(tile));
                }
            }
        }
    })
}

/// B tiles of W_down for blocks of 32 of F; depth is H.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn pack_down(shape: Shape, weights: &[u16], panels: &Tiles, blocks: Range<usize>) {
    let column = 32 * blocks.start;
    let at = |h: usize| weights.as_ptr().wrapping_add(h * shape.width + column).cast::<u8>();
    let row = |p: usize| [at(2 * p), at(2 * p + 1)];
    let (pairs, panel_bytes) = (shape.hidden / 2, 2 * shape.hidden / 32 * TILE_BYTES);
    // SAFETY: rows of the weights, 32 columns a block; the panels have room for the blocks.
    unsafe { pack::weight_pairs(pairs, blocks.len(), row, panels.tile(0), panel_bytes) };
}

/// B tiles of W_gate_up for blocks of 32 of H; depth is F, in pairs (gate f, up f), in the order in
/// which the gradient's tiles hold f.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn pack_gate_up(shape: Shape, weights: &[u16], panels: &Tiles, blocks: Range<usize>) {
    let column = 32 * blocks.start;
    let at = |f: usize| weights.as_ptr().wrapping_add(f * shape.hidden + column).cast::<u8>();
    let row = |p: usize| {
        let f = 32 * (p / 32) + pack::column(p / 16 % 2, p % 16);
        [at(f), at(shape.width + f)]
    };
    let panel_bytes = 2 * shape.width / 16 * TILE_BYTES;
    // SAFETY: rows of the weights, 32 columns a block; the panels have room for the blocks.
    unsafe { pack::weight_pairs(shape.width, blocks.len(), row, panels.tile(0), panel_bytes) };
}

/// Two packed tiles side by side, all along a panel.
fn panel_operand(panel: *mut u8) -> Operand {
    Operand::packed(panel, panel.wrapping_add(TILE_BYTES), 2 * TILE_BYTES)
}

/// 32 of F: dact = g · W_down for all rows, then through the activation.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn activation_block(
    multiplier: &Multiplier,
    shape: Shape,
    kept: &Tiles,
    scratch: &Scratch,
    panel: *mut u8,
    block: usize,
) {
    let (depth, blocks_n) = (shape.hidden / 32, shape.blocks_n());
    let sums = scratch.d_weights.tile(0).cast::<f32>().wrapping_add(block * ROW_BLOCK * blocks_n);
    let mut out = Block::new();
    let mut act_rows = [_mm512_setzero_si512(); 32];
    for n in 0..blocks_n {
        let tile = |half: usize| scratch.g_rows.tile((2 * n + half) * depth).cast_const();
        let a = Operand::packed(tile(0), tile(1), TILE_BYTES);
        let b = panel_operand(panel);
        let part = Part { rows: shape.rows_of(n), columns: 32, depth: shape.hidden };
        // SAFETY: all tiles were packed.
        unsafe { multiplier.product(a, b, part, None, &mut out) };
        // SAFETY: 32 padded router weights of this block.
        let w: [__m512; 2] = std::array::from_fn(|half| unsafe {
            _mm512_loadu_ps(scratch.weights.as_ptr().wrapping_add(ROW_BLOCK * n + 16 * half))
        });
        let mut sum = [_mm512_setzero_ps(); 2];
        for b in 0..2 {
            let dact = [0, 1].map(|half| transpose(rows_of(&out.0[2 * half + b])));
            let mut d_pairs = [[_mm512_setzero_si512(); 16]; 2];
            for j in 0..16 {
                let f = pack::column(b, j);
                let tile = KeptTiles::index(2 * block + f / 16, n, blocks_n);
                // SAFETY: a row of this block's tiles, which this index owns.
                let (gate, up) =
                    unsafe { (kept_row(kept, tile, f % 16), kept_row(kept, tile + 1, f % 16)) };
                let mut d_gate = [_mm512_setzero_ps(); 2];
                let mut d_up = d_gate;
                let mut act_weighted = d_gate;
                for half in 0..2 {
                    let (g, u, d) = (gate[half], up[half], _mm512_castsi512_ps(dact[half][j]));
                    let s = sigmoid(g);
                    let silu = _mm512_mul_ps(g, s);
                    let act = _mm512_mul_ps(silu, u);
                    sum[half] = _mm512_fmadd_ps(d, act, sum[half]);
                    let d = _mm512_mul_ps(d, w[half]);
                    // silu' = s + silu (1 - s)
                    let slope = _mm512_add_ps(s, _mm512_fnmadd_ps(silu, s, silu));
                    d_gate[half] = _mm512_mul_ps(_mm512_mul_ps(d, u), slope);
                    d_up[half] = _mm512_mul_ps(d, silu);
                    act_weighted[half] = _mm512_mul_ps(act, w[half]);
                    d_pairs[half][j] = pair(d_gate[half], d_up[half]);
                }
                act_rows[f] = to_bf16(act_weighted[0], act_weighted[1]);
                // SAFETY: as above; the values were read before.
                unsafe {
                    let row = |part: usize| kept.tile(tile + part).wrapping_add(64 * (f % 16));
                    _mm512_store_si512(row(0).cast(), to_bf16(d_gate[0], d_gate[1]));
                    _mm512_store_si512(row(1).cast(), to_bf16(d_up[0], d_up[1]));
                }
            }
            for (half, pairs) in d_pairs.into_iter().enumerate() {
                let tile = (2 * n + half) * (shape.width / 16) + 2 * block + b;
                // SAFETY: a tile that this index owns.
                unsafe { store_tile(scratch.d_pairs.tile(tile), &transpose(pairs)) };
            }
        }
        for half in 0..2 {
            let rows: [__m512i; 16] = std::array::from_fn(|i| act_rows[16 * half + i]);
            let tile = (2 * block + half) * blocks_n + n;
            // SAFETY: a tile that this index owns, and its row of partial sums.
            unsafe {
                store_tile(scratch.act.tile(tile), &transpose(rows));
                _mm512_store_ps(sums.wrapping_add(ROW_BLOCK * n + 16 * half), sum[half]);
            }
        }
    }
}

/// Adds the partial router-weight gradients in the order of F.
unsafe fn sum_router_gradients(shape: Shape, scratch: &Scratch, out: &mut [f32]) {
    let np = ROW_BLOCK * shape.blocks_n();
    let partial = scratch.d_weights.tile(0).cast::<f32>().cast_const();
    for (n, out) in out.iter_mut().enumerate() {
        // SAFETY: every block of 32 of F has written its Np sums.
        *out = (0..shape.width / 32).map(|block| unsafe { *partial.add(block * np + n) }).sum();
    }
}

/// 32 of H: dx = d(gate, up) · W_gate_up for all rows.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn input_block(
    multiplier: &Multiplier,
    shape: Shape,
    scratch: &Scratch,
    panel: *mut u8,
    block: usize,
    dx: Shared<u16>,
) {
    let depth = shape.width / 16;
    let order = _mm512_set_epi64(7, 3, 6, 2, 5, 1, 4, 0);
    let mut out = Block::new();
    for n in 0..shape.blocks_n() {
        let tile = |half: usize| scratch.d_pairs.tile((2 * n + half) * depth).cast_const();
        let a = Operand::packed(tile(0), tile(1), TILE_BYTES);
        let b = panel_operand(panel);
        let part = Part { rows: shape.rows_of(n), columns: 32, depth: 2 * shape.width };
        // SAFETY: all tiles were packed.
        unsafe { multiplier.product(a, b, part, None, &mut out) };
        for half in 0..2 {
            let start = ROW_BLOCK * n + 16 * half;
            for i in 0..shape.valid(start, 16) {
                // SAFETY: aligned rows of the block; a valid row of dx, columns from 32 block.
                unsafe {
                    let low = _mm512_load_ps(out.0[2 * half][i].as_ptr());
                    let high = _mm512_load_ps(out.0[2 * half + 1][i].as_ptr());
                    let row = _mm512_permutexvar_epi64(order, to_bf16(low, high));
                    let at = dx.at((start + i) * shape.hidden + 32 * block);
                    _mm512_storeu_si512(at.cast(), row);
                }
            }
        }
    }
}

/// A weight gradient: slot [rows, columns] = A · B over the rows of the expert.
struct Outer<'a> {
    slot: Shared<f32>,
    columns: usize,
    /// Rows of the expert: the depth.
    rows: usize,
    first: bool,
    /// The first A tile of 16 rows of the slot.
    a: &'a (dyn Fn(usize) -> *mut u8 + Sync),
    a_step: usize,
    /// B tiles: (16 columns, 32 rows of the expert).
    b: &'a Tiles,
}

impl Outer<'_> {
    /// Writes or adds to the 32 × 32 block `index`, by rows; answers Σ slot² of it afterwards.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    unsafe fn block(&self, multiplier: &Multiplier, index: usize, out: &mut Block) -> f64 {
        let (row, column) = (index / (self.columns / 32), index % (self.columns / 32));
        let a = Operand::packed((self.a)(2 * row), (self.a)(2 * row + 1), self.a_step);
        let blocks_n = self.rows.div_ceil(ROW_BLOCK);
        let tile = |half: usize| self.b.tile((2 * column + half) * blocks_n).cast_const();
        let b = Operand::packed(tile(0), tile(1), TILE_BYTES);
        let part = Part { rows: 32, columns: 32, depth: self.rows };
        // SAFETY: all tiles were packed, with zeros beyond the rows.
        unsafe { multiplier.product(a, b, part, None, out) };
        let start = 32 * row * self.columns + 32 * column;
        // A slot that is written whole goes past the caches: it is read again much later, if ever.
        let stream = self.first && self.slot.at(0).addr().is_multiple_of(64);
        let mut squares = [_mm512_setzero_ps(); 2];
        for row in 0..32 {
            for (half, square) in squares.iter_mut().enumerate() {
                let at = self.slot.at(start + row * self.columns + 16 * half);
                // SAFETY: 16 elements of the slot in a block that this index owns; `stream` says
                // that the slot is aligned to 64 bytes, and so then is every 16th element.
                unsafe {
                    let mut value = _mm512_load_ps(out.0[2 * (row / 16) + half][row % 16].as_ptr());
                    if stream {
                        _mm512_stream_ps(at, value);
                    } else {
                        if !self.first {
                            value = _mm512_add_ps(value, _mm512_loadu_ps(at));
                        }
                        _mm512_storeu_ps(at, value);
                    }
                    *square = _mm512_fmadd_ps(value, value, *square);
                }
            }
        }
        f64::from(_mm512_reduce_add_ps(_mm512_add_ps(squares[0], squares[1])))
    }
}
