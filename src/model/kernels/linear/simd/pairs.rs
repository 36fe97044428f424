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

/// # Safety
/// `p` is aligned to a vector and may be written.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub unsafe fn store(p: *mut [u16; PAIRED], numbers: __m512i) {
    // SAFETY: the caller's.
    unsafe { _mm512_store_si512(p.cast(), numbers) }
}

/// Asks for the line at `p`, which need not exist.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub fn prefetch(p: *const u8) {
    _mm_prefetch::<_MM_HINT_T0>(p.cast());
}

/// acc + the products of a's and b's neighbours, pair by pair.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
pub fn dot(acc: __m512, a: __m512i, b: __m512i) -> __m512 {
    // SAFETY: any bits are numbers.
    unsafe {
        let a = std::mem::transmute::<__m512i, __m512bh>(a);
        _mm512_dpbf16_ps(acc, a, std::mem::transmute::<__m512i, __m512bh>(b))
    }
}

/// The lanes of each of four vectors added in a tree, halves first: a sum does not depend on its
/// three neighbours.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
pub fn sums(vectors: [__m512; 4]) -> __m128 {
    let four = quarters(vectors);
    let two = _mm512_add_ps(four, _mm512_permute_ps::<0x4e>(four));
    let one = _mm512_add_ps(two, _mm512_permute_ps::<0xb1>(two));
    let firsts = _mm512_setr_epi32(0, 4, 8, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
    _mm512_castps512_ps128(_mm512_permutexvar_ps(firsts, one))
}

/// As [`sums`], of eight vectors.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
pub fn eight_sums([a, b, c, d, e, f, g, h]: [__m512; 8]) -> __m256 {
    let (x, y) = (quarters([a, b, c, d]), quarters([e, f, g, h]));
    let two = _mm512_add_ps(_mm512_shuffle_ps::<0x44>(x, y), _mm512_shuffle_ps::<0xee>(x, y));
    let one = _mm512_add_ps(two, _mm512_permute_ps::<0xb1>(two));
    let firsts = _mm512_setr_epi32(0, 4, 8, 12, 2, 6, 10, 14, 0, 0, 0, 0, 0, 0, 0, 0);
    _mm512_castps512_ps256(_mm512_permutexvar_ps(firsts, one))
}

/// Four lanes of each vector, to which its sixteen were added.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn quarters([a, b, c, d]: [__m512; 4]) -> __m512 {
    let (low, high) = (_mm512_shuffle_f32x4::<0x44>(a, b), _mm512_shuffle_f32x4::<0xee>(a, b));
    let ab = _mm512_add_ps(low, high);
    let (low, high) = (_mm512_shuffle_f32x4::<0x44>(c, d), _mm512_shuffle_f32x4::<0xee>(c, d));
    let cd = _mm512_add_ps(low, high);
    let even = _mm512_shuffle_f32x4::<0x88>(ab, cd);
    _mm512_add_ps(even, _mm512_shuffle_f32x4::<0xdd>(ab, cd))
}
