//! One product, cut into tasks of rows of W, whichever kernel multiplies it.

use super::encoding::{BLOCK, Encoding, FP8_TILE};
use super::input::{Form, Input, K_STRIDE};
use super::matrix::Matrix;
use super::pool::Disjoint;
use super::simd::Level;
use super::{columns, floats, ints};
#[cfg(target_arch = "x86_64")]
use super::{e4m3, pairs, sets, tiles};

/// Bytes of W below which a task costs more to hand out than to do.
const LEAST_BYTES: usize = 16 << 10;
/// Bytes of W beyond which a task of few rows is long enough. Where memory is what takes the time each
/// task begins by waiting for it, so tasks are few.
const LONG_BYTES: usize = 1 << 20;
/// Tasks a thread: a thread that is held up leaves its share to the others. With few rows, and with many.
const TASKS: [usize; 2] = [2, 8];
/// With fewer rows than this the weights are what takes the time; with more, the products.
const FEW: usize = 8;
/// Tasks are cut at multiples of this many rows of W.
const CUT: usize = 16;

/// Rows of W a task, for a product of `n` rows on `threads` threads, one of `of` like it in a region of
/// them; a multiple of the kernel's own step where there are enough.
pub(super) fn task_rows(
    w: &Matrix<'_>,
    n: usize,
    level: Level,
    threads: usize,
    of: usize,
) -> usize {
    let few = n <= FEW;
    let cut = match (w.transposed, Form::of(w.encoding, w.cols, level), few) {
        (true, ..) => columns::CUT,
        #[cfg(target_arch = "x86_64")]
        (false, Form::Tiles, _) => tiles::ROWS,
        (false, _, true) => CUT,
        (false, _, false) => 3 * CUT,
    };
    let row_bytes = (w.data.len() / w.rows.max(1)).max(1);
    let least = LEAST_BYTES.div_ceil(row_bytes * n.max(1));
    let tasks = (threads * TASKS[usize::from(!few)]).div_ceil(of);
    let share = if threads == 1 { w.rows } else { w.rows.div_ceil(tasks) };
    let long = if few { LONG_BYTES.div_ceil(row_bytes) } else { usize::MAX };
    let most = share.min(long).max(least).max(1).div_ceil(cut);
    cut * even(w.rows.div_ceil(cut) * of, most, threads)
}

/// Units a task, at most `most` and more than half of it, that leave threads idle least while the last tasks
/// are done.
fn even(units: usize, most: usize, threads: usize) -> usize {
    let rounds = |each: &usize| units.div_ceil(*each).div_ceil(threads) * each;
    (most / 2 + 1..=most).rev().min_by_key(rounds).unwrap_or(most)
}

/// Outputs that tasks write: element (n, m) at n · `stride` + `offset` + m.
pub(super) struct Outputs<'a> {
    pub all: Disjoint<'a, f32>,
    pub stride: usize,
    pub offset: usize,
    pub add: bool,
}

/// Rows `from..to` of a checked W times all rows of x.
///
/// # Safety
/// `input` was taken from `x_nk` in the form of W's encoding; `out` has a place for every element;
/// no other thread works at these rows.
pub(super) unsafe fn rows(
    level: Level,
    w: &Matrix<'_>,
    x_nk: &[f32],
    input: &Input,
    out: &Outputs<'_>,
    from: usize,
    to: usize,
) {
    // SAFETY: the caller's.
    unsafe { rows_from(level, w, x_nk, input, 0, out, from, to) }
}

/// As [`rows`], where the first row of `x_nk` is row `first` of what was taken: with `first` over 0 one
/// row alone.
///
/// # Safety
/// As [`rows`].
#[expect(clippy::too_many_arguments, reason = "a product's operands, and the parts of each")]
pub(super) unsafe fn rows_from(
    level: Level,
    w: &Matrix<'_>,
    x_nk: &[f32],
    input: &Input,
    first: usize,
    out: &Outputs<'_>,
    from: usize,
    to: usize,
) {
    let (n, k) = (x_nk.len() / w.cols.max(1), w.cols);
    let (out_stride, add) = (out.stride, out.add);
    let to = to.min(w.rows);
    debug_assert!(first == 0 || n == 1);
    if n == 0 || from >= to {
        return;
    }
    let target = out.all.at(out.offset);
    // SAFETY: the caller's, and W was checked: its bytes are all there.
    unsafe {
        if w.transposed {
            let (w_bytes, width) = (w.data.as_ptr(), w.rows);
            let call = columns::Call {
                w: w_bytes,
                width,
                x_nk,
                n,
                k,
                from,
                to,
                out: target,
                out_stride,
                add,
            };
            return columns::run(level, w.encoding, &call);
        }
        let (data, row_bytes) = (w.data.as_ptr(), w.data.len() / w.rows);
        if input.form == Form::Blocks {
            let call = floats::Call {
                w: data,
                row_bytes,
                scales: w.scales.as_ptr(),
                scale_stride: k.div_ceil(FP8_TILE),
                x: input.blocks.as_ptr().wrapping_add(first * K_STRIDE),
                x_rows: input.rows,
                n,
                k,
                from,
                to,
                out: target,
                out_stride,
                add,
            };
            return floats::run(level, w.encoding, &call);
        }
        #[cfg(target_arch = "x86_64")]
        if input.form == Form::Pairs {
            let call = pairs::Call {
                w: data,
                row_bytes,
                x: input.pairs.as_ptr().wrapping_add(first * input.pair_stride),
                x_stride: input.pair_stride,
                x_rows: std::ptr::null(),
                n,
                k,
                from,
                to,
                out: target,
                out_stride,
                add,
            };
            if w.encoding == Encoding::Fp8 {
                let (scales, scale_stride) = (w.scales.as_ptr(), k.div_ceil(FP8_TILE));
                return e4m3::run(&e4m3::Call { pairs: call, scales, scale_stride });
            }
            return pairs::run(&call);
        }
        #[cfg(target_arch = "x86_64")]
        if input.form == Form::Tiles {
            // One row is a group as it lies.
            let row = input.pairs.as_ptr().wrapping_add(first * input.pair_stride);
            let x = if n == 1 { row } else { input.tiles.as_ptr() };
            let call = tiles::Call {
                w: data,
                row_bytes,
                x: x.cast(),
                n,
                k,
                from,
                to,
                out: target,
                out_stride,
                add,
            };
            return tiles::run(&call);
        }
        let (aux_stride, aux_second) = match w.encoding {
            Encoding::Mxfp4 => (k / BLOCK, 0),
            Encoding::Int4 { group } => {
                let array = k.div_ceil(group as usize) * 2;
                (2 * array, array)
            }
            _ => (0, 0),
        };
        #[cfg(target_arch = "x86_64")]
        if matches!(input.form, Form::Sets { .. }) {
            let call = sets::Call {
                w: data,
                row_bytes,
                aux: w.scales.as_ptr(),
                aux_stride,
                aux_second,
                row_scales: w.scales.as_ptr(),
                x: input.in_sets().at(first, 0),
                n,
                k,
                from,
                to,
                out: target,
                out_stride,
                add,
            };
            return sets::run(w.encoding, &call);
        }
        let call = ints::Call {
            w: data,
            row_bytes,
            aux: w.scales.as_ptr(),
            aux_stride,
            aux_second,
            row_scales: w.scales.as_ptr(),
            x: ints::Columns {
                q: input.q.as_ptr(),
                d: input.d.as_ptr(),
                sums: input.sums.as_ptr(),
                sums16: input.sums16.as_ptr(),
                q_stride: input.q_stride,
                d_stride: input.d_stride,
            }
            .at(first),
            n,
            k,
            from,
            to,
            out: target,
            out_stride,
            add,
        };
        ints::run(level, w.encoding, &call);
    }
}
