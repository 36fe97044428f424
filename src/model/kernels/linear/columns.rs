//! Products with float weights that lie transposed, [K, M]: lanes run over outputs.
//!
//! One order of sums for every N: an output sums its columns k in order, in one accumulator,
//! which rests in its place in the output between stretches of k.

use super::floats::Codec;
use super::floats::{Bf16, F16, F32};
use super::simd::{Floats, Level, for_level};

/// Rows of W (outputs) are cut at multiples of this: a whole number of any processor's vectors.
pub(super) const CUT: usize = 64;
/// Rows of the bytes [K, M] that pass before the next outputs: the more, the less the
/// accumulators move; the fewer, the more outputs are read in one go.
const FEW_STRETCH: usize = 8;
const MANY_STRETCH: usize = 128;

/// Outputs `from..to` (cut at [`CUT`]) of all rows of x.
pub(super) struct Call<'a> {
    pub w: *const u8,
    /// M.
    pub width: usize,
    pub x_nk: &'a [f32],
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
    unsafe fn f32_columns(call: &Call<'_>) = Floats columns<F32>;
    unsafe fn f16_columns(call: &Call<'_>) = Floats columns<F16>;
    unsafe fn bf16_columns(call: &Call<'_>) = Floats columns<Bf16>;
}

/// Runs `call`.
///
/// # Safety
/// The pointers hold what the sizes say, and nobody else writes these outputs.
pub(super) unsafe fn run(level: Level, encoding: super::Encoding, call: &Call<'_>) {
    // SAFETY: the caller's.
    unsafe {
        match encoding {
            super::Encoding::F32 => f32_columns(level, call),
            super::Encoding::F16 => f16_columns(level, call),
            _ => bf16_columns(level, call),
        }
    }
}

#[inline(always)]
unsafe fn columns<S: Floats, W: Codec>(call: &Call<'_>) {
    // SAFETY: the caller's.
    unsafe {
        if !call.add {
            for n in 0..call.n {
                call.out.add(n * call.out_stride + call.from).write_bytes(0, call.to - call.from);
            }
        }
        let stretch = if call.n <= 8 { FEW_STRETCH } else { MANY_STRETCH };
        let mut k = 0;
        while k < call.k {
            let end = (k + stretch).min(call.k);
            let mut c = 0;
            while c < call.n {
                match call.n - c {
                    1 => outputs::<S, W, 1>(call, c, k, end),
                    2 => outputs::<S, W, 2>(call, c, k, end),
                    3 => outputs::<S, W, 3>(call, c, k, end),
                    _ => outputs::<S, W, 4>(call, c, k, end),
                }
                c += 4;
            }
            k = end;
        }
    }
}

#[inline(always)]
unsafe fn outputs<S: Floats, W: Codec, const C: usize>(
    call: &Call<'_>,
    c: usize,
    k: usize,
    end: usize,
) {
    let mut m = call.from;
    // SAFETY: the caller's; fewer outputs than a vector are moved beside zeros.
    unsafe {
        while m + 2 * S::LANES <= call.to {
            let acc = call.out.add(c * call.out_stride + m);
            let w = call.w.add((k * call.width + m) * W::BYTES);
            tile::<S, W, 2, C>(call, c, k, end, w, call.width * W::BYTES, acc, call.out_stride);
            m += 2 * S::LANES;
        }
        while m < call.to {
            let lanes = (call.to - m).min(S::LANES);
            let mut acc = [[0.0f32; 16]; C];
            for (j, acc) in acc.iter_mut().enumerate() {
                let out = call.out.add((c + j) * call.out_stride + m);
                out.copy_to_nonoverlapping(acc.as_mut_ptr(), lanes);
            }
            for k in k..end {
                let mut w = [0u8; 64];
                let bytes = call.w.add((k * call.width + m) * W::BYTES);
                bytes.copy_to_nonoverlapping(w.as_mut_ptr(), lanes * W::BYTES);
                tile::<S, W, 1, C>(call, c, k, k + 1, w.as_ptr(), 0, acc.as_mut_ptr().cast(), 16);
            }
            for (j, acc) in acc.iter().enumerate() {
                let out = call.out.add((c + j) * call.out_stride + m);
                out.copy_from_nonoverlapping(acc.as_ptr(), lanes);
            }
            m += lanes;
        }
    }
}

/// V vectors of outputs of C rows of x, over `k..end`.
#[expect(clippy::too_many_arguments, reason = "innermost: all of it is in registers")]
#[inline(always)]
unsafe fn tile<S: Floats, W: Codec, const V: usize, const C: usize>(
    call: &Call<'_>,
    c: usize,
    k: usize,
    end: usize,
    w: *const u8,
    w_stride: usize,
    out: *mut f32,
    out_stride: usize,
) {
    // SAFETY: the caller's.
    unsafe {
        let mut acc = [[S::zero(); V]; C];
        for (j, acc) in acc.iter_mut().enumerate() {
            for (v, acc) in acc.iter_mut().enumerate() {
                *acc = S::load(out.add(j * out_stride + v * S::LANES));
            }
        }
        let x = call.x_nk.as_ptr().add(c * call.k);
        for k_at in k..end {
            let row = w.add((k_at - k) * w_stride);
            let mut weights = [S::zero(); V];
            for (v, weights) in weights.iter_mut().enumerate() {
                *weights = W::load::<S>(row.add(v * S::LANES * W::BYTES), S::zero());
            }
            for (j, acc) in acc.iter_mut().enumerate() {
                let x = S::splat(*x.add(j * call.k + k_at));
                for (acc, weights) in acc.iter_mut().zip(weights) {
                    *acc = S::fma(x, weights, *acc);
                }
            }
        }
        for (j, acc) in acc.iter().enumerate() {
            for (v, acc) in acc.iter().enumerate() {
                S::store(out.add(j * out_stride + v * S::LANES), *acc);
            }
        }
    }
}
