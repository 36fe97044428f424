//! Pairs of bf16: 32 numbers a vector, whose products are summed in sixteen lanes of f32.

use std::arch::x86_64::*;

/// Numbers of a vector.
pub const PAIRED: usize = 32;

#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
pub fn zero() -> __m512 {
    _mm512_setzero_ps()
}

/// # Safety
/// [`PAIRED`] numbers are at `p`, at any alignment.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub unsafe fn load(p: *const u8) -> __m512i {
    // SAFETY: the caller's.
    unsafe { _mm512_loadu_si512(p.cast()) }
}

/// The first `len` numbers at `p`, zeros above; nothing behind them is read.
///
/// # Safety
/// `len` numbers, fewer than [`PAIRED`], are at `p`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub unsafe fn load_part(p: *const u8, len: usize) -> __m512i {
    let mask = (1u32 << len) - 1;
    // SAFETY: the caller's: masked places are not touched.
    unsafe { _mm512_maskz_loadu_epi16(mask, p.cast()) }
}

/// acc + the products of a's and b's neighbours, pair by pair.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
pub fn dot(acc: __m512, a: __m512i, b: __m512i) -> __m512 {
    // SAFETY: any bits are numbers.
    let bf16 = |v| unsafe { std::mem::transmute::<__m512i, __m512bh>(v) };
    _mm512_dpbf16_ps(acc, bf16(a), bf16(b))
}

/// The lanes added in a tree.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
pub fn sum(v: __m512) -> f32 {
    _mm512_reduce_add_ps(v)
}
