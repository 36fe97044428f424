//! Products of bf16 weights with activations rounded to bf16, where the processor multiplies tiles (AMX): W
//! as it lies is the left operand, sixteen rows at a time, x in pairs the right one.
//!
//! One order of sums for every N, the unit's: within 32 columns the even and the odd ones are each summed
//! in order, both are added, and so are these sums in order. One row of x passes as a tile of one column:
//! how fast it goes is up to the memory.

use super::aligned::Aligned;
use super::pool::{Disjoint, Pool};
use crate::base::Result;
use crate::model::kernels::tiles::{Block, Operand, Registers, columns, narrow, transposed, wide};

/// Columns of a tile of W, and of a group of rows of x.
const DEPTH: usize = 32;
const GROUP: usize = 16;
/// Rows of W at a time.
pub(super) const ROWS: usize = 32;
/// Groups of x that stay in the second-level cache while rows of W pass.
const PANEL: usize = 8;

/// Whether rows of this length are whole tiles.
pub(super) fn fits(cols: usize) -> bool {
    cols > 0 && cols.is_multiple_of(DEPTH)
}

/// A range of the rows of W, times all rows of x. Pointers as the checked matrix has them.
pub(super) struct Call {
    pub w: *const u8,
    pub row_bytes: usize,
    /// Up to sixteen rows are one group of as many columns; more are whole groups ([`pack`]).
    pub x: *const u8,
    pub n: usize,
    pub k: usize,
    pub from: usize,
    pub to: usize,
    /// Element (n, m) is at `out + n · out_stride + m`.
    pub out: *mut f32,
    pub out_stride: usize,
    pub add: bool,
}

/// Columns of a group, of `n` rows in all.
fn group_columns(n: usize) -> usize {
    n.min(GROUP)
}

/// Packs rows of bf16 `[N, stride]` into groups: for each 32 columns of x a tile of sixteen pairs by the
/// group's rows. A single row is such a group as it lies, and is not packed.
///
/// # Safety
/// The processor has AVX-512 BF16.
pub(super) unsafe fn pack(
    rows_nk: &[u16],
    stride: usize,
    (n, k): (usize, usize),
    out: &mut Aligned<u16>,
    pool: &mut Pool,
) -> Result<()> {
    if n <= 1 {
        return Ok(());
    }
    let (group, depth) = (group_columns(n), k / DEPTH);
    let tile = group * DEPTH;
    let out = Disjoint::new(out.sized(n.div_ceil(group) * depth * tile)?);
    pool.run(n.div_ceil(group), &|_, index| {
        let first = index * group;
        let rows = &rows_nk[first * stride..];
        // SAFETY: this group belongs to this call alone.
        let out = unsafe { out.range(index * depth * tile, depth * tile) };
        for (step, tile) in out.chunks_exact_mut(tile).enumerate() {
            let at = &rows[step * DEPTH..];
            if group == GROUP {
                let valid = (n - first).min(GROUP);
                // SAFETY: the valid rows have another 32 columns; the tile has a whole group's size and
                // is aligned.
                unsafe { columns(at.as_ptr().cast(), 2 * stride, valid, tile.as_mut_ptr().cast()) };
                continue;
            }
            for (pair, columns) in tile.chunks_exact_mut(2 * group).enumerate() {
                for (row, column) in columns.as_chunks_mut::<2>().0.iter_mut().enumerate() {
                    let at = row * stride + 2 * pair;
                    column.copy_from_slice(&rows[step * DEPTH..][at..at + 2]);
                }
            }
        }
    })
}

/// Runs `call`.
///
/// # Safety
/// The processor has AMX and this process may use it; the pointers hold what the sizes say, rows are whole
/// tiles ([`fits`]), and nobody else writes these outputs.
pub(super) unsafe fn run(call: &Call) {
    let whole = (call.to - call.from) / GROUP * GROUP;
    // SAFETY: the caller's.
    unsafe {
        let registers = Registers::sized(GROUP, group_columns(call.n));
        passes(call, &registers, call.from, call.from + whole, GROUP);
        drop(registers);
        if call.from + whole < call.to {
            let rest = call.to - call.from - whole;
            let registers = Registers::sized(rest, group_columns(call.n));
            passes(call, &registers, call.from + whole, call.to, rest);
        }
    }
}

/// Rows `from..to` of W, whole tiles of `tile` rows, times all groups.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn passes(call: &Call, registers: &Registers, from: usize, to: usize, tile: usize) {
    let groups = call.n.div_ceil(GROUP);
    for panel in (0..groups).step_by(PANEL) {
        let end = groups.min(panel + PANEL);
        for m in (from..to).step_by(ROWS) {
            // SAFETY: the caller's.
            unsafe { rows(call, registers, m, to, tile, panel..end) }
        }
    }
}

/// Up to 32 rows of W from `m` on, times some groups.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn rows(
    call: &Call,
    registers: &Registers,
    m: usize,
    to: usize,
    tile: usize,
    groups: std::ops::Range<usize>,
) {
    let depth = call.k / DEPTH;
    let columns = group_columns(call.n);
    let group_bytes = depth * columns * DEPTH * 2;
    let row = |m: usize| call.w.wrapping_add(m * call.row_bytes);
    // A second tile that is not there is the first once more.
    let second = if m + tile < to { m + tile } else { m };
    let a = Operand { tiles: [row(m), row(second)], stride: call.row_bytes, step: 2 * DEPTH };
    let mut out = Block::new();
    for g in groups.clone().step_by(2) {
        let two = g + 1 < groups.end;
        let x = [0, 1].map(|of| call.x.wrapping_add((g + of) * group_bytes));
        let b = Operand { tiles: x, stride: 4 * columns, step: 4 * columns * GROUP };
        // SAFETY: rows and groups are there; tiles have the size that the registers were given.
        unsafe {
            if two {
                wide(registers, depth, a, b, &mut out);
            } else {
                narrow(registers, depth, a, b, g > 0, &mut out);
            }
            for of in 0..1 + usize::from(two) {
                let valid = (call.n - (g + of) * GROUP).min(GROUP);
                for (half, m) in [(0, m), (1, second)].into_iter().take(1 + usize::from(second > m))
                {
                    store(call, &out.0[2 * half + of], m, tile, (g + of) * GROUP, valid);
                }
            }
        }
    }
}

/// Writes, or adds, a tile of results [rows of W, columns]: `rows` by `valid`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn store(
    call: &Call,
    tile: &[[f32; 16]; 16],
    m: usize,
    rows: usize,
    column: usize,
    valid: usize,
) {
    let at = |c: usize| call.out.wrapping_add((column + c) * call.out_stride + m);
    // SAFETY: these outputs are the caller's.
    unsafe {
        if rows == GROUP {
            transposed(tile, valid, call.add, at);
            return;
        }
        for (c, m) in (0..valid).flat_map(|c| (0..rows).map(move |m| (c, m))) {
            let at = at(c).wrapping_add(m);
            *at = if call.add { *at + tile[m][c] } else { tile[m][c] };
        }
    }
}
