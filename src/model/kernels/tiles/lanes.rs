//! Vector helpers: transposing, pairing and converting 16 lanes at a time.
//!
//! All functions need AVX-512 F, BW, VL and BF16; callers carry the same target features.

use std::arch::x86_64::*;

/// Transposes 16 rows of 16 32-bit lanes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub fn transpose(r: [__m512i; 16]) -> [__m512i; 16] {
    let mut t = r;
    for i in (0..16).step_by(2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    let mut u = t;
    for i in (0..16).step_by(4) {
        u[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        u[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        u[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        u[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    // u[4 b + c] holds, in its lane q, column 4 q + c of rows 4 b .. 4 b + 4.
    let mut out = u;
    for c in 0..4 {
        let low = _mm512_shuffle_i32x4::<0x88>(u[c], u[4 + c]);
        let high = _mm512_shuffle_i32x4::<0xdd>(u[c], u[4 + c]);
        let low2 = _mm512_shuffle_i32x4::<0x88>(u[8 + c], u[12 + c]);
        let high2 = _mm512_shuffle_i32x4::<0xdd>(u[8 + c], u[12 + c]);
        out[c] = _mm512_shuffle_i32x4::<0x88>(low, low2);
        out[8 + c] = _mm512_shuffle_i32x4::<0xdd>(low, low2);
        out[4 + c] = _mm512_shuffle_i32x4::<0x88>(high, high2);
        out[12 + c] = _mm512_shuffle_i32x4::<0xdd>(high, high2);
    }
    out
}

/// Loads 16 rows of 64 bytes, `stride` bytes apart; rows from `valid` on are zero.
///
/// # Safety
/// The first `valid` rows must be readable.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub unsafe fn load_rows(at: *const u8, stride: usize, valid: usize) -> [__m512i; 16] {
    let mut rows = [_mm512_setzero_si512(); 16];
    for (i, row) in rows.iter_mut().enumerate().take(valid) {
        // SAFETY: by the caller's promise.
        *row = unsafe { _mm512_loadu_si512(at.wrapping_add(i * stride).cast()) };
    }
    rows
}

/// Stores 16 rows of 64 bytes one after the other: a packed tile.
///
/// # Safety
/// `at` must be writable for 1 KiB and aligned to 64 bytes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub unsafe fn store_tile(at: *mut u8, rows: &[__m512i; 16]) {
    for (i, row) in rows.iter().enumerate() {
        // SAFETY: by the caller's promise.
        unsafe { _mm512_store_si512(at.wrapping_add(64 * i).cast(), *row) };
    }
}

/// The rows of an f32 tile as 32-bit lanes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub fn rows_of(tile: &[[f32; 16]; 16]) -> [__m512i; 16] {
    let mut rows = [_mm512_setzero_si512(); 16];
    for (row, lanes) in rows.iter_mut().zip(tile) {
        // SAFETY: 16 f32 are 64 readable bytes.
        *row = unsafe { _mm512_loadu_si512(lanes.as_ptr().cast()) };
    }
    rows
}

/// Writes, or adds where `add`, the first `columns` columns of an f32 tile as rows of 16, row c at `at(c)`.
///
/// # Safety
/// Every `at(c)` has room for 16 f32.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub unsafe fn transposed(
    tile: &[[f32; 16]; 16],
    columns: usize,
    add: bool,
    at: impl Fn(usize) -> *mut f32,
) {
    for (c, row) in transpose(rows_of(tile)).into_iter().enumerate().take(columns) {
        let (row, at) = (_mm512_castsi512_ps(row), at(c));
        // SAFETY: by the caller's promise.
        unsafe {
            let row = if add { _mm512_add_ps(_mm512_loadu_ps(at), row) } else { row };
            _mm512_storeu_ps(at, row);
        }
    }
}

/// 32 bf16: `first` in the lower half, `second` in the upper; rounded to nearest even.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub fn to_bf16(first: __m512, second: __m512) -> __m512i {
    // SAFETY: both types are 512 bits without invalid patterns.
    unsafe { std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(second, first)) }
}

/// The f32 of the lower and of the upper 16 bf16.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub fn from_bf16(x: __m512i) -> [__m512; 2] {
    let widen =
        |half: __m256i| _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(half)));
    [widen(_mm512_castsi512_si256(x)), widen(_mm512_extracti64x4_epi64::<1>(x))]
}

/// Lanes (first`[i]`, second`[i]`) in bf16: what rows 2r and 2r+1 of a B operand become.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub fn pair(first: __m512, second: __m512) -> __m512i {
    zip(to_bf16(first, second))
}

/// Interleaves the lower 16 words with the upper 16.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub fn zip(x: __m512i) -> __m512i {
    let order = _mm512_set_epi16(
        31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20, 4,
        19, 3, 18, 2, 17, 1, 16, 0,
    );
    _mm512_permutexvar_epi16(order, x)
}

/// e^x, with the polynomial of [`crate::model::kernels::float::exp`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn exp(x: __m512) -> __m512 {
    let set = |v: f32| _mm512_set1_ps(v);
    let x = _mm512_max_ps(_mm512_min_ps(x, set(87.0)), set(-87.0));
    let n = _mm512_roundscale_ps::<8>(_mm512_mul_ps(x, set(std::f32::consts::LOG2_E)));
    let r = _mm512_fnmadd_ps(n, set(0.693_359_4), x);
    let r = _mm512_fnmadd_ps(n, set(-2.121_944_4e-4), r);
    let mut p = set(1.987_569_1e-4);
    for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = _mm512_fmadd_ps(p, r, set(c));
    }
    let value = _mm512_add_ps(_mm512_fmadd_ps(_mm512_mul_ps(p, r), r, r), set(1.0));
    _mm512_scalef_ps(value, n)
}

/// 1 / (1 + e^-x): the reciprocal by one Newton step, within 2 ulp.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub fn sigmoid(x: __m512) -> __m512 {
    let one = _mm512_set1_ps(1.0);
    let d = _mm512_add_ps(one, exp(_mm512_sub_ps(_mm512_setzero_ps(), x)));
    let r = _mm512_rcp14_ps(d);
    _mm512_mul_ps(r, _mm512_fnmadd_ps(d, r, _mm512_set1_ps(2.0)))
}
