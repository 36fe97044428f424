//! Sixteen lanes of f32.

use super::Floats;
use std::arch::x86_64::*;

/// AVX-512 F, BW, DQ and VL.
#[derive(Debug, Clone, Copy)]
pub struct Avx512;

impl Floats for Avx512 {
    type V = __m512;
    const LANES: usize = 16;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn zero() -> __m512 {
        _mm512_setzero_ps()
    }
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn splat(x: f32) -> __m512 {
        _mm512_set1_ps(x)
    }
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn load(p: *const f32) -> __m512 {
        // SAFETY: the caller's.
        unsafe { _mm512_loadu_ps(p) }
    }
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn store(p: *mut f32, v: __m512) {
        // SAFETY: the caller's.
        unsafe { _mm512_storeu_ps(p, v) }
    }
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn f16(p: *const u8) -> __m512 {
        // SAFETY: the caller's.
        _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(p.cast()) })
    }
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn bf16(p: *const u8) -> __m512 {
        // SAFETY: the caller's.
        let bits = _mm512_cvtepu16_epi32(unsafe { _mm256_loadu_si256(p.cast()) });
        _mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits))
    }
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn e4m3(p: *const u8) -> __m512 {
        // SAFETY: the caller's.
        let bytes = _mm256_cvtepu8_epi16(unsafe { _mm_loadu_si128(p.cast()) });
        // As in the AVX2 version: halves of 2^-8 of the value.
        let high = _mm256_slli_epi16::<8>(bytes);
        let keep = _mm256_set1_epi16(0xbfff_u16 as i16);
        let half = _mm256_and_si256(_mm256_srai_epi16::<1>(high), keep);
        let nan = _mm256_set1_epi16(0x7f00);
        let is_nan = _mm256_cmpeq_epi16(_mm256_and_si256(high, nan), nan);
        let half = _mm256_or_si256(half, is_nan);
        _mm512_mul_ps(_mm512_cvtph_ps(half), _mm512_set1_ps(256.0))
    }
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn e4m3_twice(p: *const u8, scale: __m512) -> [__m512; 2] {
        // SAFETY: the caller's.
        let bytes = unsafe { _mm256_loadu_si256(p.cast()) };
        let signed = _mm256_or_si256(bytes, _mm256_set1_epi8(-128));
        if _mm256_cmpeq_epi8_mask(signed, _mm256_set1_epi8(-1)) != 0 {
            // NaN, which a checkpoint hardly has.
            // SAFETY: the caller's.
            return unsafe { [0, 16].map(|at| Self::mul(Self::e4m3(p.add(at)), scale)) };
        }
        // Halves of 2^-8 of the values: sign, a copy of it to be cleared, seven bits, seven zeros. What is
        // missing of their size is in the scale, which stays exact.
        let high = _mm512_slli_epi16::<7>(_mm512_cvtepi8_epi16(bytes));
        let half = _mm512_and_si512(high, _mm512_set1_epi16(0xbfff_u16 as i16));
        let scale = _mm512_mul_ps(scale, _mm512_set1_ps(256.0));
        let [first, second] = [_mm512_castsi512_si256(half), _mm512_extracti64x4_epi64::<1>(half)];
        [first, second].map(|half| _mm512_mul_ps(_mm512_cvtph_ps(half), scale))
    }
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn mul(a: __m512, b: __m512) -> __m512 {
        _mm512_mul_ps(a, b)
    }
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
        _mm512_fmadd_ps(a, b, c)
    }
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn sum(v: __m512) -> f32 {
        _mm512_reduce_add_ps(v)
    }
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn prefetch(p: *const u8) {
        _mm_prefetch::<_MM_HINT_T0>(p.cast());
    }
}
