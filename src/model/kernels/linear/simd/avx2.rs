//! AVX2 with FMA and F16C.

use super::{Bytes, Floats};
use crate::model::kernels::linear::decode::E2M1_TWICE;
use std::arch::x86_64::*;

/// AVX2, FMA and F16C.
#[derive(Debug, Clone, Copy)]
pub struct Avx2;

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn sum8(v: __m256) -> f32 {
    let four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
    let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
}

impl Floats for Avx2 {
    type V = __m256;
    const LANES: usize = 8;

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn zero() -> __m256 {
        _mm256_setzero_ps()
    }
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn splat(x: f32) -> __m256 {
        _mm256_set1_ps(x)
    }
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn load(p: *const f32) -> __m256 {
        // SAFETY: the caller's.
        unsafe { _mm256_loadu_ps(p) }
    }
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn store(p: *mut f32, v: __m256) {
        // SAFETY: the caller's.
        unsafe { _mm256_storeu_ps(p, v) }
    }
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn f16(p: *const u8) -> __m256 {
        // SAFETY: the caller's.
        _mm256_cvtph_ps(unsafe { _mm_loadu_si128(p.cast()) })
    }
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn bf16(p: *const u8) -> __m256 {
        // SAFETY: the caller's.
        let bits = _mm256_cvtepu16_epi32(unsafe { _mm_loadu_si128(p.cast()) });
        _mm256_castsi256_ps(_mm256_slli_epi32::<16>(bits))
    }
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn e4m3(p: *const u8) -> __m256 {
        // SAFETY: the caller's.
        let bytes = unsafe { _mm_loadl_epi64(p.cast()) };
        // In the high byte of 16 bits, shifted right by one with its sign kept: a half of 2^-8 of
        // the value, once bit 14 (a copy of the sign) is cleared.
        let high = _mm_unpacklo_epi8(_mm_setzero_si128(), bytes);
        let half = _mm_and_si128(_mm_srai_epi16::<1>(high), _mm_set1_epi16(0xbfff_u16 as i16));
        let nan = _mm_set1_epi16(0x7f00);
        let is_nan = _mm_cmpeq_epi16(_mm_and_si128(high, nan), nan);
        let half = _mm_or_si128(half, is_nan);
        _mm256_mul_ps(_mm256_cvtph_ps(half), _mm256_set1_ps(256.0))
    }
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn mul(a: __m256, b: __m256) -> __m256 {
        _mm256_mul_ps(a, b)
    }
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn fma(a: __m256, b: __m256, c: __m256) -> __m256 {
        _mm256_fmadd_ps(a, b, c)
    }
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn sum(v: __m256) -> f32 {
        sum8(v)
    }
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn prefetch(p: *const u8) {
        _mm_prefetch::<_MM_HINT_T0>(p.cast());
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn low_nibbles(v: __m256i) -> __m256i {
    _mm256_and_si256(v, _mm256_set1_epi8(15))
}

/// Sums of four neighbours' products, w unsigned: exact where sums of two fit 16 bits.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn dot4(acc: __m256i, w: __m256i, x: __m256i) -> __m256i {
    let pairs = _mm256_maddubs_epi16(w, x);
    _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
}

/// Four rows of 32-bit lanes as columns, in each half: vector i has lane i of each half of each row.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn turn_four([a, b, c, d]: [__m256i; 4]) -> [__m256i; 4] {
    let (ab, cd) = (_mm256_unpacklo_epi32(a, b), _mm256_unpacklo_epi32(c, d));
    let (ab_high, cd_high) = (_mm256_unpackhi_epi32(a, b), _mm256_unpackhi_epi32(c, d));
    [
        _mm256_unpacklo_epi64(ab, cd),
        _mm256_unpackhi_epi64(ab, cd),
        _mm256_unpacklo_epi64(ab_high, cd_high),
        _mm256_unpackhi_epi64(ab_high, cd_high),
    ]
}

/// Eight blocks of 16 bytes, `STRIDE` bytes apart: vector i has four bytes of each, from byte 4i on.
///
/// # Safety
/// They are there.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn blocks_turned<const STRIDE: usize>(p: *const u8) -> [__m256i; 4] {
    // Blocks i and i + 4 side by side.
    let both = |i: usize| {
        // SAFETY: the caller's.
        unsafe {
            let [low, high] = [i, i + 4].map(|i| p.add(i * STRIDE).cast());
            _mm256_loadu2_m128i(high, low)
        }
    };
    turn_four([both(0), both(1), both(2), both(3)])
}

/// Vector i: 16-bit lane i of each half of `v`, in all lanes of that half.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn spread_lanes(v: __m256i) -> [__m256i; 8] {
    [
        _mm256_shuffle_epi8(v, _mm256_set1_epi16(0x0100)),
        _mm256_shuffle_epi8(v, _mm256_set1_epi16(0x0302)),
        _mm256_shuffle_epi8(v, _mm256_set1_epi16(0x0504)),
        _mm256_shuffle_epi8(v, _mm256_set1_epi16(0x0706)),
        _mm256_shuffle_epi8(v, _mm256_set1_epi16(0x0908)),
        _mm256_shuffle_epi8(v, _mm256_set1_epi16(0x0b0a)),
        _mm256_shuffle_epi8(v, _mm256_set1_epi16(0x0d0c)),
        _mm256_shuffle_epi8(v, _mm256_set1_epi16(0x0f0e)),
    ]
}

impl Bytes for Avx2 {
    type I = __m256i;
    type F = __m256;

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn zero_i() -> __m256i {
        _mm256_setzero_si256()
    }
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn load_i(p: *const u8) -> __m256i {
        // SAFETY: the caller's.
        unsafe { _mm256_loadu_si256(p.cast()) }
    }
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn nibbles(p: *const u8) -> [__m256i; 2] {
        // SAFETY: the caller's.
        let v = unsafe { _mm256_loadu_si256(p.cast()) };
        [low_nibbles(v), low_nibbles(_mm256_srli_epi16::<4>(v))]
    }
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn turn(rows: [__m256i; 8]) -> [__m256i; 8] {
        let [a, b, c, d, e, f, g, h] = rows;
        let (abcd, efgh) = (turn_four([a, b, c, d]), turn_four([e, f, g, h]));
        let low = |i: usize| _mm256_permute2x128_si256::<0x20>(abcd[i], efgh[i]);
        let high = |i: usize| _mm256_permute2x128_si256::<0x31>(abcd[i], efgh[i]);
        [low(0), low(1), low(2), low(3), high(0), high(1), high(2), high(3)]
    }
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn nibbles_turned<const STRIDE: usize>(p: *const u8) -> [__m256i; 8] {
        // SAFETY: the caller's.
        let [a, b, c, d] = unsafe { blocks_turned::<STRIDE>(p) };
        let high = |v: __m256i| low_nibbles(_mm256_srli_epi16::<4>(v));
        [
            low_nibbles(a),
            low_nibbles(b),
            low_nibbles(c),
            low_nibbles(d),
            high(a),
            high(b),
            high(c),
            high(d),
        ]
    }
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn e2m1_turned(p: *const u8) -> [__m256i; 8] {
        // SAFETY: the caller's; the table has 16 bytes.
        let ([a, b, c, d], table) = unsafe {
            let table = _mm_loadu_si128(E2M1_TWICE.as_ptr().cast());
            (blocks_turned::<16>(p), _mm256_broadcastsi128_si256(table))
        };
        // The first two bytes of each lane, each before a zero, and the last two.
        let first = _mm_setr_epi8(0, -1, 1, -1, 4, -1, 5, -1, 8, -1, 9, -1, 12, -1, 13, -1);
        let first = _mm256_broadcastsi128_si256(first);
        let last = _mm256_add_epi8(first, _mm256_set1_epi16(2));
        let numbers = |v: __m256i, two: __m256i| {
            let bytes = _mm256_shuffle_epi8(v, two);
            let index = low_nibbles(_mm256_or_si256(bytes, _mm256_slli_epi16::<4>(bytes)));
            _mm256_shuffle_epi8(table, index)
        };
        [
            numbers(a, first),
            numbers(a, last),
            numbers(b, first),
            numbers(b, last),
            numbers(c, first),
            numbers(c, last),
            numbers(d, first),
            numbers(d, last),
        ]
    }
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn six_bits(low: *const u8, high: *const u8, quarter: usize) -> __m256i {
        // SAFETY: the caller's.
        let (low, high) = unsafe {
            let low = _mm256_loadu_si256(low.add(quarter % 2 * 32).cast());
            (low, _mm256_loadu_si256(high.cast()))
        };
        let two = _mm256_set1_epi8(0x30);
        let (nibbles, pairs) = match quarter {
            0 => (low, _mm256_slli_epi16::<4>(high)),
            1 => (low, _mm256_slli_epi16::<2>(high)),
            2 => (_mm256_srli_epi16::<4>(low), high),
            _ => (_mm256_srli_epi16::<4>(low), _mm256_srli_epi16::<2>(high)),
        };
        _mm256_or_si256(low_nibbles(nibbles), _mm256_and_si256(pairs, two))
    }
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn dot_small(acc: __m256i, w: __m256i, x: __m256i) -> __m256i {
        dot4(acc, w, x)
    }
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn dot_nibbles(w: [__m256i; 4], x: [__m256i; 4]) -> __m256i {
        // 8 products of at most 15 · 127 fit 16 bits.
        let a =
            _mm256_add_epi16(_mm256_maddubs_epi16(w[0], x[0]), _mm256_maddubs_epi16(w[1], x[1]));
        let b =
            _mm256_add_epi16(_mm256_maddubs_epi16(w[2], x[2]), _mm256_maddubs_epi16(w[3], x[3]));
        _mm256_madd_epi16(_mm256_add_epi16(a, b), _mm256_set1_epi16(1))
    }
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn dot_turned(w: &[__m256i; 8], x: *const u8) -> __m256i {
        // Sixteen products of at most 15 · 127 fit 16 bits.
        let mut sums = _mm256_setzero_si256();
        for (i, w) in w.iter().enumerate() {
            // SAFETY: the caller's.
            let x = unsafe { _mm256_loadu_si256(x.add(32 * i).cast()) };
            sums = _mm256_add_epi16(sums, _mm256_maddubs_epi16(*w, x));
        }
        _mm256_madd_epi16(sums, _mm256_set1_epi16(1))
    }
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn dot_turned_signed(w: &[__m256i; 8], x: *const u8) -> __m256i {
        // As above, |w| times x with w's sign.
        let mut sums = _mm256_setzero_si256();
        for (i, w) in w.iter().enumerate() {
            // SAFETY: the caller's.
            let x = _mm256_sign_epi8(unsafe { _mm256_loadu_si256(x.add(32 * i).cast()) }, *w);
            sums = _mm256_add_epi16(sums, _mm256_maddubs_epi16(_mm256_abs_epi8(*w), x));
        }
        _mm256_madd_epi16(sums, _mm256_set1_epi16(1))
    }
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn dot_signed(acc: __m256i, w: __m256i, x: __m256i) -> __m256i {
        // |w| times x with w's sign: two products of at most 128 · 127 fit 16 bits.
        let (w, x) = (_mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
        dot4(acc, w, x)
    }
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn dot_scaled(acc: __m256i, w: __m256i, x: __m256i, scale: __m256i) -> __m256i {
        let pairs = _mm256_maddubs_epi16(w, x);
        _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, scale))
    }
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn spread(bytes: u64) -> [__m256i; 8] {
        let v = _mm_cvtepu8_epi16(_mm_cvtsi64_si128(bytes.cast_signed()));
        spread_lanes(_mm256_broadcastsi128_si256(v))
    }
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn twice(bytes: u64) -> __m256i {
        let v = _mm_cvtsi64_si128(bytes.cast_signed());
        _mm256_cvtepu8_epi16(_mm_unpacklo_epi8(v, v))
    }
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn spread_pairs(p: *const u8) -> [__m256i; 8] {
        let order = _mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15);
        // SAFETY: the caller's.
        let v = _mm_shuffle_epi8(unsafe { _mm_loadu_si128(p.cast()) }, order);
        spread_lanes(_mm256_cvtepi8_epi16(v))
    }
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn widen(p: *const u8) -> __m256i {
        // SAFETY: the caller's.
        _mm256_cvtepi8_epi16(unsafe { _mm_loadu_si128(p.cast()) })
    }
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn madd16(acc: __m256i, a: __m256i, b: __m256i) -> __m256i {
        _mm256_add_epi32(acc, _mm256_madd_epi16(a, b))
    }
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn to_f(i: __m256i) -> __m256 {
        _mm256_cvtepi32_ps(i)
    }
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn zero_f() -> __m256 {
        _mm256_setzero_ps()
    }
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn splat_f(x: f32) -> __m256 {
        _mm256_set1_ps(x)
    }
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn load_f(p: *const f32) -> __m256 {
        // SAFETY: the caller's.
        unsafe { _mm256_loadu_ps(p) }
    }
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn store_f(p: *mut f32, v: __m256) {
        // SAFETY: the caller's.
        unsafe { _mm256_storeu_ps(p, v) }
    }
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn halves<const N: usize>(p: *const u8) -> __m256 {
        // SAFETY: the caller's.
        let bits = unsafe {
            match N {
                2 => _mm_cvtsi32_si128(p.cast::<i32>().read_unaligned()),
                4 => _mm_loadl_epi64(p.cast()),
                _ => _mm_loadu_si128(p.cast()),
            }
        };
        _mm256_cvtph_ps(bits)
    }
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn halves_apart<const STRIDE: usize>(p: *const u8) -> __m256 {
        let mut bits = _mm_setzero_si128();
        // SAFETY: the caller's.
        unsafe {
            let half = |i: usize| i32::from(p.add(i * STRIDE).cast::<u16>().read_unaligned());
            bits = _mm_insert_epi16::<0>(bits, half(0));
            bits = _mm_insert_epi16::<1>(bits, half(1));
            bits = _mm_insert_epi16::<2>(bits, half(2));
            bits = _mm_insert_epi16::<3>(bits, half(3));
            bits = _mm_insert_epi16::<4>(bits, half(4));
            bits = _mm_insert_epi16::<5>(bits, half(5));
            bits = _mm_insert_epi16::<6>(bits, half(6));
            bits = _mm_insert_epi16::<7>(bits, half(7));
        }
        _mm256_cvtph_ps(bits)
    }
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn half_e8m0(p: *const u8) -> __m256 {
        // SAFETY: the caller's.
        let e = _mm256_cvtepu8_epi32(unsafe { _mm_loadl_epi64(p.cast()) });
        let one = _mm256_set1_epi32(1);
        let normal = _mm256_slli_epi32::<23>(_mm256_sub_epi32(e, one));
        // 2^-127 and 2^-128 are subnormal.
        let tiny = _mm256_srlv_epi32(_mm256_set1_epi32(0x0040_0000), _mm256_sub_epi32(one, e));
        let is_normal = _mm256_cmpgt_epi32(e, one);
        let bits = _mm256_blendv_epi8(tiny, normal, is_normal);
        let is_nan = _mm256_cmpeq_epi32(e, _mm256_set1_epi32(255));
        _mm256_castsi256_ps(_mm256_or_si256(bits, is_nan))
    }
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn mul_f(a: __m256, b: __m256) -> __m256 {
        _mm256_mul_ps(a, b)
    }
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn add_f(a: __m256, b: __m256) -> __m256 {
        _mm256_add_ps(a, b)
    }
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn fma_f(a: __m256, b: __m256, c: __m256) -> __m256 {
        _mm256_fmadd_ps(a, b, c)
    }
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn sum_f(v: __m256) -> f32 {
        sum8(v)
    }
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn prefetch(p: *const u8) {
        _mm_prefetch::<_MM_HINT_T0>(p.cast());
    }
}
