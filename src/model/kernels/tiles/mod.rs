//! The expert in bf16 on tiles, without libtorch: multiplied by AMX (Intel, since Sapphire Rapids) or by
//! vectors of bf16 pairs (AVX-512 BF16: AMD since Zen 4, Intel since Cooper Lake).
//!
//! An expert sees few rows and many weights, so weights are read straight from their slot, once,
//! in the order in which they lie, and what is transposed or interleaved is the small side:
//!
//! ```text
//! forward    [gate; up]ᵀ = W_gate_up · xᵀ      A: weights as they lie    B: x, packed
//!            oᵀ          = W_down · act        A: weights as they lie    B: act, made in place
//! backward   dact        = g · W_down          A: g, packed              B: weights, interleaved
//!            dx          = dgu · W_gate_up     A: dgu, packed            B: weights, interleaved
//!            dW          = (dgu, gᵀ) · (x, act)   both packed, written once, past the caches
//! ```
//!
//! Products are summed in f32, in an order fixed by the unit and the shape. N rows (padded to
//! Np, a multiple of 32), H hidden, F expert width; both multiples of 32.
//!
//! A tile is 16 rows of 64 bytes. An A tile holds 16 × 32 bf16. A B tile holds 32 × 16 in pairs:
//! its row r, column c is (`B[2r][c]`, `B[2r+1][c]`). Packed operands lie tile by tile, 1 KiB each.

mod amx;
mod backward;
mod buffer;
mod forward;
mod lanes;
mod pack;
mod pairs;
mod unit;

pub(super) use amx::{Registers, narrow, wide};
pub use backward::{BackwardCall, backward};
pub use forward::{KeptTiles, forward, gate_up};
pub(super) use lanes::transposed;
pub(super) use pack::columns;
pub use unit::Unit;
pub(super) use unit::{Block, Operand};

/// Rows are padded to this: the depth of one tile product.
const ROW_BLOCK: usize = 32;
const TILE_BYTES: usize = 1024;

/// Whether the kernels take experts of this shape.
pub fn fits(hidden: usize, width: usize) -> bool {
    hidden > 0 && width > 0 && hidden.is_multiple_of(32) && width.is_multiple_of(32)
}
