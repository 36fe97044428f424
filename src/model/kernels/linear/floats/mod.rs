//! Products with weights that are floats: each is decoded to f32 and multiplied in f32.
//!
//! One order of sums for every N. Columns are cut into blocks of `K_BLOCK`; within a block lane l
//! of an output's accumulator sums the columns k ≡ l modulo the lanes, in order; the lanes are
//! added in a tree; blocks are added in order. Few rows multiply the weights as they are read, many
//! rows multiply a panel decoded once, with the same [`tile`].

#![expect(clippy::needless_range_loop, reason = "an index names the same lane of several arrays")]

mod codec;

use super::input::{K_BLOCK, K_STRIDE};
use super::simd::{Floats, for_level};
use codec::Fp8;
pub(super) use codec::{Bf16, Codec, F16, F32};
use std::mem::MaybeUninit;

/// Up to this many rows weights are multiplied as they are read: above, decoding them once for
/// all rows is worth the write.
const FEW: usize = 8;
/// Rows of W that are decoded together: with a block of columns 50 KiB, within the second-level cache.
const PANEL: usize = 24;
/// Columns of a tile of FP8's scales.
const TILE: usize = super::encoding::FP8_TILE;

/// A range of the rows of W, times all rows of x. Pointers as the checked matrix has them.
pub(super) struct Call {
    pub w: *const u8,
    pub row_bytes: usize,
    /// FP8: f32 [⌈M/128⌉, `scale_stride`].
    pub scales: *const u8,
    pub scale_stride: usize,
    /// Activations in blocks (see [`super::input::Input`]).
    pub x: *const f32,
    /// Rows of a block of them, of which `n` are multiplied.
    pub x_rows: usize,
    pub n: usize,
    pub k: usize,
    pub from: usize,
    pub to: usize,
    /// Element (n, m) is at `out + n · out_stride + m`.
    pub out: *mut f32,
    pub out_stride: usize,
    pub add: bool,
}

for_level! {
    unsafe fn f32_rows(call: &Call) = Floats rows<F32>;
    unsafe fn f16_rows(call: &Call) = Floats rows<F16>;
    unsafe fn bf16_rows(call: &Call) = Floats rows<Bf16>;
    unsafe fn fp8_rows(call: &Call) = Floats rows<Fp8>;
}

/// Runs `call` for an encoding of floats.
///
/// # Safety
/// The pointers hold what the sizes say, and nobody else writes these outputs.
pub(super) unsafe fn run(level: super::simd::Level, encoding: super::Encoding, call: &Call) {
    // SAFETY: the caller's.
    unsafe {
        match encoding {
            super::Encoding::F32 => f32_rows(level, call),
            super::Encoding::F16 => f16_rows(level, call),
            super::Encoding::Fp8 => fp8_rows(level, call),
            _ => bf16_rows(level, call),
        }
    }
}

#[inline(always)]
unsafe fn rows<S: Floats, W: Codec>(call: &Call) {
    // SAFETY: the caller's.
    unsafe {
        if call.n <= FEW {
            few_rows::<S, W>(call);
        } else {
            many_rows::<S, W>(call);
        }
    }
}

/// Four rows of W at a time, each from a quarter of the range, so that memory is read in four long streams.
#[inline(always)]
unsafe fn few_rows<S: Floats, W: Codec>(call: &Call) {
    let part = (call.to - call.from) / 4;
    for m in call.from..call.from + part {
        for c in (0..call.n).step_by(4) {
            // SAFETY: rows m, m + part and so on, and columns c.. of the product are within the call.
            unsafe {
                match call.n - c {
                    1 => group::<S, W, 4, 1>(call, m, part, c),
                    2 => group::<S, W, 4, 2>(call, m, part, c),
                    3 => {
                        group::<S, W, 2, 3>(call, m, part, c);
                        group::<S, W, 2, 3>(call, m + 2 * part, part, c);
                    }
                    _ => {
                        group::<S, W, 2, 4>(call, m, part, c);
                        group::<S, W, 2, 4>(call, m + 2 * part, part, c);
                    }
                }
            }
        }
    }
    for m in call.from + 4 * part..call.to {
        for c in (0..call.n).step_by(4) {
            // SAFETY: as above.
            unsafe {
                match call.n - c {
                    1 => group::<S, W, 1, 1>(call, m, 1, c),
                    2 => group::<S, W, 1, 2>(call, m, 1, c),
                    3 => group::<S, W, 1, 3>(call, m, 1, c),
                    _ => group::<S, W, 1, 4>(call, m, 1, c),
                }
            }
        }
    }
}

/// Rows of W: the first, and how far it is from each to the next.
#[derive(Clone, Copy)]
struct Rows {
    m: usize,
    apart: usize,
}

/// Outputs of R rows of W, `apart` from each other, and C rows of x, over all blocks.
#[inline(always)]
unsafe fn group<S: Floats, W: Codec, const R: usize, const C: usize>(
    call: &Call,
    m: usize,
    apart: usize,
    c: usize,
) {
    let rows = Rows { m, apart };
    let mut start = 0;
    while start < call.k {
        let len = (call.k - start).min(K_BLOCK);
        // SAFETY: the rows and the block are within W and x; a matrix with scales has one for
        // each tile.
        unsafe {
            let w = call.w.add(m * call.row_bytes + start * W::BYTES);
            let x = call.x.add((start / K_BLOCK * call.x_rows + c) * K_STRIDE);
            let sums =
                tile::<S, W, R, C, true>(call, rows, start, w, apart * call.row_bytes, x, len);
            emit(call, rows, c, start == 0, &sums);
        }
        start += K_BLOCK;
    }
}

/// Adds a block's sums to the outputs; the first block's replace what is there unless `add`.
#[inline(always)]
unsafe fn emit<const R: usize, const C: usize>(
    call: &Call,
    rows: Rows,
    c: usize,
    first: bool,
    sums: &[[f32; C]; R],
) {
    for (r, sums) in sums.iter().enumerate() {
        for (j, sum) in sums.iter().enumerate() {
            // SAFETY: the caller's: the outputs exist and are this thread's.
            unsafe {
                let out = call.out.add((c + j) * call.out_stride + rows.m + r * rows.apart);
                *out = if first && !call.add { *sum } else { *out + sum };
            }
        }
    }
}

/// Lane sums of one block: R rows at `w`, C rows at `x`, `len` columns, the tree applied.
#[inline(always)]
unsafe fn tile<S: Floats, W: Codec, const R: usize, const C: usize, const AHEAD: bool>(
    call: &Call,
    rows: Rows,
    start: usize,
    w: *const u8,
    w_stride: usize,
    x: *const f32,
    len: usize,
) -> [[f32; C]; R] {
    // SAFETY: the caller's; x has zeros up to a whole vector.
    unsafe {
        let mut acc = [[S::zero(); C]; R];
        let mut k = 0;
        while k < len {
            let span = if W::SCALED { (len - k).min(TILE) } else { len - k };
            let scale = scales::<S, W, R>(call, rows, start + k);
            let end = k + span / S::LANES * S::LANES;
            let line = 64 / W::BYTES;
            while k + line <= end {
                if AHEAD {
                    // The next row of each stream.
                    for r in 0..R {
                        S::prefetch(w.wrapping_add(call.row_bytes + r * w_stride + k * W::BYTES));
                    }
                }
                let mut i = 0;
                while i < line {
                    let (w, x) = (w.add((k + i) * W::BYTES), x.add(k + i));
                    if W::SCALED {
                        steps::<S, W, R, C>(w, w_stride, &scale, x, &mut acc);
                        i += 2 * S::LANES;
                    } else {
                        step::<S, W, R, C>(w, w_stride, &scale, x, &mut acc);
                        i += S::LANES;
                    }
                }
                k += line;
            }
            while k < end {
                step::<S, W, R, C>(w.add(k * W::BYTES), w_stride, &scale, x.add(k), &mut acc);
                k += S::LANES;
            }
            let rest = span % S::LANES;
            if rest > 0 {
                // The last columns of R rows, with zeros behind them.
                let mut padded = [[0u8; 64]; R];
                for (r, padded) in padded.iter_mut().enumerate() {
                    let bytes = w.add(r * w_stride + k * W::BYTES);
                    bytes.copy_to_nonoverlapping(padded.as_mut_ptr(), rest * W::BYTES);
                }
                step::<S, W, R, C>(padded.as_ptr().cast(), 64, &scale, x.add(k), &mut acc);
                k += rest;
            }
        }
        let mut sums = [[0.0; C]; R];
        for r in 0..R {
            for c in 0..C {
                sums[r][c] = S::sum(acc[r][c]);
            }
        }
        sums
    }
}

/// FP8: the scale of each of R rows at column `k`.
#[inline(always)]
unsafe fn scales<S: Floats, W: Codec, const R: usize>(
    call: &Call,
    rows: Rows,
    k: usize,
) -> [S::V; R] {
    // SAFETY: the caller's; scales may lie at any alignment.
    unsafe {
        let mut scale = [S::zero(); R];
        if W::SCALED {
            for (r, scale) in scale.iter_mut().enumerate() {
                let at = (rows.m + r * rows.apart) / TILE * call.scale_stride + k / TILE;
                *scale = S::splat(call.scales.add(at * 4).cast::<f32>().read_unaligned());
            }
        }
        scale
    }
}

#[inline(always)]
unsafe fn step<S: Floats, W: Codec, const R: usize, const C: usize>(
    w: *const u8,
    w_stride: usize,
    scale: &[S::V; R],
    x: *const f32,
    acc: &mut [[S::V; C]; R],
) {
    // SAFETY: the caller's.
    unsafe {
        let mut weights = [S::zero(); R];
        for r in 0..R {
            weights[r] = W::load::<S>(w.add(r * w_stride), scale[r]);
        }
        for c in 0..C {
            let x = S::load(x.add(c * K_STRIDE));
            for r in 0..R {
                acc[r][c] = S::fma(weights[r], x, acc[r][c]);
            }
        }
    }
}

/// Two steps together, where that decodes faster.
#[inline(always)]
unsafe fn steps<S: Floats, W: Codec, const R: usize, const C: usize>(
    w: *const u8,
    w_stride: usize,
    scale: &[S::V; R],
    x: *const f32,
    acc: &mut [[S::V; C]; R],
) {
    // SAFETY: the caller's.
    unsafe {
        let mut weights = [[S::zero(); 2]; R];
        for r in 0..R {
            weights[r] = W::load_twice::<S>(w.add(r * w_stride), scale[r]);
        }
        for i in 0..2 {
            for c in 0..C {
                let x = S::load(x.add(i * S::LANES + c * K_STRIDE));
                for r in 0..R {
                    acc[r][c] = S::fma(weights[r][i], x, acc[r][c]);
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn many_rows<S: Floats, W: Codec>(call: &Call) {
    let mut panel = [const { MaybeUninit::<f32>::uninit() }; PANEL * K_STRIDE];
    let panel = panel.as_mut_ptr().cast::<f32>();
    let mut from = call.from;
    while from < call.to {
        let to = (from + PANEL).min(call.to);
        let mut start = 0;
        while start < call.k {
            // SAFETY: the panel has room for PANEL rows of a block; the rest is the caller's.
            unsafe {
                let len = decode::<S, W>(call, from, to, start, panel);
                products::<S>(call, from, to, start, panel, len);
            }
            start += K_BLOCK;
        }
        from = to;
    }
}

/// Decodes rows `from..to` of the block at `start`; returns its columns, rounded up to vectors.
#[inline(always)]
unsafe fn decode<S: Floats, W: Codec>(
    call: &Call,
    from: usize,
    to: usize,
    start: usize,
    panel: *mut f32,
) -> usize {
    let len = (call.k - start).min(K_BLOCK);
    let whole = len / S::LANES * S::LANES;
    for m in from..to {
        let row = Rows { m, apart: 1 };
        // SAFETY: the caller's.
        unsafe {
            let w = call.w.add(m * call.row_bytes + start * W::BYTES);
            let out = panel.add((m - from) * K_STRIDE);
            let mut k = 0;
            while k < whole {
                let [scale] = scales::<S, W, 1>(call, row, start + k);
                let end = if W::SCALED { whole.min(k + TILE) } else { whole };
                while k < end {
                    S::store(out.add(k), W::load::<S>(w.add(k * W::BYTES), scale));
                    k += S::LANES;
                }
            }
            if whole < len {
                let [scale] = scales::<S, W, 1>(call, row, start + whole);
                let mut padded = [0u8; 64];
                let bytes = w.add(whole * W::BYTES);
                bytes.copy_to_nonoverlapping(padded.as_mut_ptr(), (len - whole) * W::BYTES);
                S::store(out.add(whole), W::load::<S>(padded.as_ptr(), scale));
            }
        }
    }
    len.next_multiple_of(S::LANES)
}

/// All rows of x times a decoded panel, eight at a time (a block of them stays in the first-level
/// cache while the panel passes).
#[inline(always)]
unsafe fn products<S: Floats>(
    call: &Call,
    from: usize,
    to: usize,
    start: usize,
    panel: *const f32,
    len: usize,
) {
    let mut eight = 0;
    while eight < call.n {
        let end = (eight + 8).min(call.n);
        let mut m = from;
        while m < to {
            let three = to - m >= 3;
            let mut c = eight;
            while c < end {
                // SAFETY: rows m.. of the panel and c.. of x exist.
                unsafe {
                    match (three, end - c) {
                        (true, 1) => block::<S, 3, 1>(call, from, m, c, start, panel, len),
                        (true, 2) => block::<S, 3, 2>(call, from, m, c, start, panel, len),
                        (true, 3) => block::<S, 3, 3>(call, from, m, c, start, panel, len),
                        (true, _) => block::<S, 3, 4>(call, from, m, c, start, panel, len),
                        (false, 1) => block::<S, 1, 1>(call, from, m, c, start, panel, len),
                        (false, 2) => block::<S, 1, 2>(call, from, m, c, start, panel, len),
                        (false, 3) => block::<S, 1, 3>(call, from, m, c, start, panel, len),
                        (false, _) => block::<S, 1, 4>(call, from, m, c, start, panel, len),
                    }
                }
                c += 4;
            }
            m += if three { 3 } else { 1 };
        }
        eight = end;
    }
}

#[inline(always)]
unsafe fn block<S: Floats, const R: usize, const C: usize>(
    call: &Call,
    from: usize,
    m: usize,
    c: usize,
    start: usize,
    panel: *const f32,
    len: usize,
) {
    let rows = Rows { m, apart: 1 };
    // SAFETY: the caller's.
    unsafe {
        let w = panel.add((m - from) * K_STRIDE).cast();
        let x = call.x.add((start / K_BLOCK * call.x_rows + c) * K_STRIDE);
        let sums = tile::<S, F32, R, C, false>(call, rows, start, w, K_STRIDE * 4, x, len);
        emit(call, rows, c, start == 0, &sums);
    }
}
