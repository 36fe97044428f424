//! One stretch of 256 columns of each integer encoding, times C rows of rounded activations.

#![expect(clippy::needless_range_loop, reason = "an index names the same lane of several arrays")]

use super::ints::{Columns, Sums};
use super::simd::Bytes;

/// An encoding's stretch.
pub(super) trait Blocks {
    /// Bytes of a stretch, and of what belongs to it in each array that lies apart.
    const BYTES: usize;
    const AUX: usize = 0;
    /// What the sums of offsets are multiplied by in the end.
    const OFFSET: f32 = 0.0;
    /// Whether each row has a scale.
    const ROW_SCALE: bool = false;
    /// Rows of x that are multiplied together where there are as many, 4 or 8: more where unpacking takes
    /// long, fewer where multiplying wants the registers.
    const TOGETHER: usize = 8;
    /// Adds stretch `s`: its bytes at `w`, what lies apart at `aux`.
    ///
    /// # Safety
    /// As [`Bytes`]; the bytes and the columns are there.
    unsafe fn step<S: Bytes, const C: usize>(
        w: *const u8,
        aux: *const u8,
        second: *const u8,
        x: &Columns,
        s: usize,
        sums: &mut Sums<S, C>,
    );
}

pub(super) struct Q8_0;
pub(super) struct Q4_0;
pub(super) struct Q4K;
pub(super) struct Q6K;
pub(super) struct Mxfp4;
pub(super) struct Int8;
/// Int4 with groups of G.
pub(super) struct Int4By<const G: usize>;

/// Weights' scales times those of C rows of x, to be read one at a time.
#[inline(always)]
unsafe fn scales<S: Bytes, const C: usize>(w: S::F, x: &Columns, group: usize) -> [[f32; 8]; C] {
    let mut scales = [[0.0; 8]; C];
    for (c, scales) in scales.iter_mut().enumerate() {
        // SAFETY: the caller's: eight scales are there, the last of them zeros.
        unsafe { S::store_f(scales.as_mut_ptr(), S::mul_f(w, S::load_f(x.d(c, group)))) }
    }
    scales
}

/// Scales a group's sums for row `c`, and adds them to one of its two accumulators: groups of 64 take
/// turns, so that one need not wait for the other.
#[inline(always)]
unsafe fn add<S: Bytes, const C: usize>(
    sums: &mut Sums<S, C>,
    c: usize,
    turn: usize,
    products: S::I,
    scale: S::F,
) {
    let acc = &mut sums.scaled[c][turn];
    // SAFETY: the caller's.
    *acc = unsafe { S::fma_f(S::to_f(products), scale, *acc) };
}

/// Adds stretch `s` of nibbles in groups of 32: `weights` are turned, so that a lane has a group; `d` and
/// `zero` are the groups' scales and what their sums of x are multiplied by.
#[inline(always)]
unsafe fn add_nibbles<S: Bytes, const C: usize>(
    weights: &[S::I; 8],
    d: S::F,
    zero: S::F,
    x: &Columns,
    s: usize,
    sums: &mut Sums<S, C>,
) {
    for c in 0..C {
        // SAFETY: the caller's: a stretch of x is there, turned as well.
        unsafe {
            let products = S::dot_turned(weights, x.q(c, s * 256));
            add(sums, c, 0, products, S::mul_f(d, S::load_f(x.d(c, s * 8))));
            sums.offset[c] = S::fma_f(zero, S::load_f(x.sums(c, s * 8)), sums.offset[c]);
        }
    }
}

impl Blocks for Q8_0 {
    const BYTES: usize = 272;
    #[inline(always)]
    unsafe fn step<S: Bytes, const C: usize>(
        w: *const u8,
        _: *const u8,
        _: *const u8,
        x: &Columns,
        s: usize,
        sums: &mut Sums<S, C>,
    ) {
        // SAFETY: the caller's; x is turned as well.
        unsafe {
            let block = |i: usize| S::load_i(w.add(i * 34 + 2));
            let blocks =
                [block(0), block(1), block(2), block(3), block(4), block(5), block(6), block(7)];
            let (weights, d) = (S::turn(blocks), S::halves_apart::<34>(w));
            for c in 0..C {
                let mut products = S::zero_i();
                for i in 0..8 {
                    let x = S::load_i(x.q(c, s * 256 + i * 32));
                    products = S::dot_signed(products, weights[i], x);
                }
                add(sums, c, 0, products, S::mul_f(d, S::load_f(x.d(c, s * 8))));
            }
        }
    }
}

impl Blocks for Q4_0 {
    const BYTES: usize = 144;
    const OFFSET: f32 = -8.0;
    #[inline(always)]
    unsafe fn step<S: Bytes, const C: usize>(
        w: *const u8,
        _: *const u8,
        _: *const u8,
        x: &Columns,
        s: usize,
        sums: &mut Sums<S, C>,
    ) {
        // SAFETY: the caller's.
        unsafe {
            let (weights, d) = (S::nibbles_turned::<18>(w.add(2)), S::halves_apart::<18>(w));
            add_nibbles(&weights, d, d, x, s, sums);
        }
    }
}

impl Blocks for Mxfp4 {
    const BYTES: usize = 128;
    const AUX: usize = 8;
    #[inline(always)]
    unsafe fn step<S: Bytes, const C: usize>(
        w: *const u8,
        aux: *const u8,
        _: *const u8,
        x: &Columns,
        s: usize,
        sums: &mut Sums<S, C>,
    ) {
        // SAFETY: the caller's; x is turned as well.
        unsafe {
            let (weights, d) = (S::e2m1_turned(w), S::half_e8m0(aux));
            for c in 0..C {
                let products = S::dot_turned_signed(&weights, x.q(c, s * 256));
                add(sums, c, 0, products, S::mul_f(d, S::load_f(x.d(c, s * 8))));
            }
        }
    }
}

impl Blocks for Int8 {
    const BYTES: usize = 256;
    const ROW_SCALE: bool = true;
    const TOGETHER: usize = 4;
    #[inline(always)]
    unsafe fn step<S: Bytes, const C: usize>(
        w: *const u8,
        _: *const u8,
        _: *const u8,
        x: &Columns,
        s: usize,
        sums: &mut Sums<S, C>,
    ) {
        // SAFETY: the caller's.
        unsafe {
            for g in 0..2 {
                let mut products = [S::zero_i(); C];
                for j in 0..4 {
                    let k = g * 128 + j * 32;
                    let weights = S::load_i(w.add(k));
                    for (c, products) in products.iter_mut().enumerate() {
                        let x = S::load_i(x.q(c, s * 256 + k));
                        *products = S::dot_signed(*products, weights, x);
                    }
                }
                for (c, products) in products.into_iter().enumerate() {
                    add(sums, c, 0, products, S::splat_f(*x.d(c, s * 2 + g)));
                }
            }
        }
    }
}

impl<const G: usize> Blocks for Int4By<G> {
    const BYTES: usize = 128;
    const AUX: usize = 256 / G * 2;
    const OFFSET: f32 = 1.0;
    const TOGETHER: usize = if G == 32 { 8 } else { 4 };
    #[inline(always)]
    unsafe fn step<S: Bytes, const C: usize>(
        w: *const u8,
        aux: *const u8,
        second: *const u8,
        x: &Columns,
        s: usize,
        sums: &mut Sums<S, C>,
    ) {
        // SAFETY: the caller's.
        unsafe {
            let groups = 256 / G;
            let (scale, zero) = match G {
                32 => (S::halves::<8>(aux), S::halves::<8>(second)),
                64 => (S::halves::<4>(aux), S::halves::<4>(second)),
                _ => (S::halves::<2>(aux), S::halves::<2>(second)),
            };
            if G == 32 {
                // A chunk of 64 columns is a group of low nibbles and one of high ones.
                let [a, b] = S::nibbles(w);
                let [c, d] = S::nibbles(w.add(32));
                let [e, f] = S::nibbles(w.add(64));
                let [g, h] = S::nibbles(w.add(96));
                let weights = S::turn([a, b, c, d, e, f, g, h]);
                return add_nibbles(&weights, scale, zero, x, s, sums);
            }
            let scales = scales::<S, C>(scale, x, s * groups);
            for c in 0..C {
                let x = S::load_f(x.sums(c, s * groups));
                sums.offset[c] = S::fma_f(zero, x, sums.offset[c]);
            }
            for half in 0..2 {
                let [a, b] = S::nibbles(w.add(half * 64));
                let [c2, d2] = S::nibbles(w.add(half * 64 + 32));
                let weights = [a, b, c2, d2];
                for c in 0..C {
                    let k = s * 256 + half * 128;
                    let x = [
                        S::load_i(x.q(c, k)),
                        S::load_i(x.q(c, k + 32)),
                        S::load_i(x.q(c, k + 64)),
                        S::load_i(x.q(c, k + 96)),
                    ];
                    let scale = |g: usize| scales[c][half * groups / 2 + g];
                    if G == 128 {
                        add(sums, c, 0, S::dot_nibbles(weights, x), S::splat_f(scale(0)));
                    } else {
                        for g in 0..2 {
                            let first = S::dot_small(S::zero_i(), weights[2 * g], x[2 * g]);
                            let both = S::dot_small(first, weights[2 * g + 1], x[2 * g + 1]);
                            add(sums, c, g, both, S::splat_f(scale(g)));
                        }
                    }
                }
            }
        }
    }
}

impl Blocks for Q4K {
    const BYTES: usize = 144;
    const OFFSET: f32 = -1.0;
    #[inline(always)]
    unsafe fn step<S: Bytes, const C: usize>(
        w: *const u8,
        _: *const u8,
        _: *const u8,
        x: &Columns,
        s: usize,
        sums: &mut Sums<S, C>,
    ) {
        // SAFETY: the caller's.
        unsafe {
            let mut d = [0.0; 8];
            S::store_f(d.as_mut_ptr(), S::halves::<2>(w));
            let (scales, mins) = q4k_scales(w.add(4).cast::<[u32; 3]>().read_unaligned());
            let (scales, mins) = (S::spread(scales), S::twice(mins));
            let mut products = [S::zero_i(); C];
            for j in 0..4 {
                let [low, high] = S::nibbles(w.add(16 + j * 32));
                for (c, products) in products.iter_mut().enumerate() {
                    let k = s * 256 + j * 64;
                    let x = [S::load_i(x.q(c, k)), S::load_i(x.q(c, k + 32))];
                    *products = S::dot_scaled(*products, low, x[0], scales[2 * j]);
                    *products = S::dot_scaled(*products, high, x[1], scales[2 * j + 1]);
                }
            }
            for (c, products) in products.into_iter().enumerate() {
                let dx = *x.d(c, s);
                let minimums = S::madd16(S::zero_i(), mins, S::load_i(x.sums16(c, s * 256)));
                sums.offset[c] = S::fma_f(S::to_f(minimums), S::splat_f(d[1] * dx), sums.offset[c]);
                add(sums, c, 0, products, S::splat_f(d[0] * dx));
            }
        }
    }
}

/// The eight 6-bit scales and minimums, a byte each, from their 12 bytes.
#[inline(always)]
pub(super) fn q4k_scales([a, b, c]: [u32; 3]) -> (u64, u64) {
    let (a, b, c) = (u32::from_le(a), u32::from_le(b), u32::from_le(c));
    let high = |word: u32| ((word >> 6) & 0x0303_0303) << 4;
    let scales = (a & 0x3f3f_3f3f, (c & 0x0f0f_0f0f) | high(a));
    let mins = (b & 0x3f3f_3f3f, ((c >> 4) & 0x0f0f_0f0f) | high(b));
    let join = |(low, high): (u32, u32)| u64::from(low) | (u64::from(high) << 32);
    (join(scales), join(mins))
}

impl Blocks for Q6K {
    const BYTES: usize = 210;
    const OFFSET: f32 = -32.0;
    #[inline(always)]
    unsafe fn step<S: Bytes, const C: usize>(
        w: *const u8,
        _: *const u8,
        _: *const u8,
        x: &Columns,
        s: usize,
        sums: &mut Sums<S, C>,
    ) {
        // SAFETY: the caller's.
        unsafe {
            let mut d = [0.0; 8];
            let half: [u8; 2] = w.add(208).cast::<[u8; 2]>().read();
            S::store_f(d.as_mut_ptr(), S::halves::<2>([half[0], half[1], 0, 0].as_ptr()));
            let scales = S::spread_pairs(w.add(192));
            let mut products = [S::zero_i(); C];
            for half in 0..2 {
                for quarter in 0..4 {
                    let (low, high) = (w.add(half * 64), w.add(128 + half * 32));
                    let weights = S::six_bits(low, high, quarter);
                    for (c, products) in products.iter_mut().enumerate() {
                        let x = S::load_i(x.q(c, s * 256 + half * 128 + quarter * 32));
                        let scale = scales[half * 4 + quarter];
                        *products = S::dot_scaled(*products, weights, x, scale);
                    }
                }
            }
            let scales = S::widen(w.add(192));
            for (c, products) in products.into_iter().enumerate() {
                let scale = S::splat_f(d[0] * *x.d(c, s));
                let offset = S::madd16(S::zero_i(), scales, S::load_i(x.sums16(c, s * 256)));
                sums.offset[c] = S::fma_f(S::to_f(offset), scale, sums.offset[c]);
                add(sums, c, 0, products, scale);
            }
        }
    }
}
