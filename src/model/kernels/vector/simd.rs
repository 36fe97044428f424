//! The few operations that differ between instruction sets; everything else is written once over
//! them.
//!
//! Every lane goes through the same operations in the same order whatever the width. Where the
//! processor has fused multiply-add it is used; elsewhere a product is rounded before it is added.

/// f32 vectors of one instruction set.
pub trait Simd: Copy {
    type V: Copy;
    /// f32 in a vector.
    const LANES: usize;
    /// Columns of a panel: two vectors.
    const PANEL: usize = 2 * Self::LANES;

    /// # Safety
    /// The processor has the instruction set (as for all functions of this trait).
    unsafe fn zero() -> Self::V;
    /// # Safety
    /// [`Self::LANES`] values are readable at `at`.
    unsafe fn load(at: *const f32) -> Self::V;
    /// # Safety
    /// [`Self::LANES`] values are writable at `at`.
    unsafe fn store(at: *mut f32, v: Self::V);
    /// The value at `at` in every lane.
    ///
    /// # Safety
    /// A value is readable at `at`.
    unsafe fn splat(at: *const f32) -> Self::V;
    /// a · b + c.
    ///
    /// # Safety
    /// See [`Self::zero`].
    unsafe fn mul_add(a: Self::V, b: Self::V, c: Self::V) -> Self::V;

    /// Eight rows of eight 32-bit words each, as eight columns: `out[stride · i + r]` is word i of
    /// row r. Where `BF16`, a word holds two bf16, whose f32 go to rows 2 i and 2 i + 1 of `out`.
    ///
    /// # Safety
    /// 32 bytes are readable at each of `rows`; all rows of `out` have room for eight.
    unsafe fn transpose8<const BF16: bool>(rows: [*const u8; 8], out: *mut f32, stride: usize);
}

/// No vector instructions of our own choice: what the compiler makes of arrays.
#[derive(Clone, Copy)]
pub struct Portable;

const WIDTH: usize = 8;

impl Simd for Portable {
    type V = [f32; WIDTH];
    const LANES: usize = WIDTH;

    #[inline(always)]
    unsafe fn zero() -> Self::V {
        [0.0; WIDTH]
    }
    #[inline(always)]
    unsafe fn load(at: *const f32) -> Self::V {
        // SAFETY: by the caller's promise.
        unsafe { at.cast::<Self::V>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(at: *mut f32, v: Self::V) {
        // SAFETY: by the caller's promise.
        unsafe { at.cast::<Self::V>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn splat(at: *const f32) -> Self::V {
        // SAFETY: by the caller's promise.
        [unsafe { *at }; WIDTH]
    }
    #[inline(always)]
    unsafe fn mul_add(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        // Without an instruction for it `f32::mul_add` is a function of the C library.
        let fused = cfg!(any(target_arch = "aarch64", target_feature = "fma"));
        std::array::from_fn(|i| if fused { a[i].mul_add(b[i], c[i]) } else { a[i] * b[i] + c[i] })
    }
    #[inline(always)]
    unsafe fn transpose8<const BF16: bool>(rows: [*const u8; 8], out: *mut f32, stride: usize) {
        for (r, row) in rows.into_iter().enumerate() {
            for i in 0..8 {
                // SAFETY: by the caller's promise.
                unsafe {
                    if BF16 {
                        for half in 0..2 {
                            let bits = row.cast::<u16>().add(2 * i + half).read_unaligned();
                            let at = out.add(stride * (2 * i + half) + r);
                            *at = f32::from_bits(u32::from(bits) << 16);
                        }
                    } else {
                        *out.add(stride * i + r) = row.cast::<f32>().add(i).read_unaligned();
                    }
                }
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
pub use x86::{Avx2, Avx512};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::Simd;
    use std::arch::x86_64::*;

    /// AVX2 with fused multiply-add.
    #[derive(Clone, Copy)]
    pub struct Avx2;

    /// AVX-512.
    #[derive(Clone, Copy)]
    pub struct Avx512;

    impl Simd for Avx2 {
        type V = __m256;
        const LANES: usize = 8;

        #[inline(always)]
        unsafe fn zero() -> __m256 {
            // SAFETY: the caller promises AVX2, as in every function of this implementation.
            unsafe { _mm256_setzero_ps() }
        }
        #[inline(always)]
        unsafe fn load(at: *const f32) -> __m256 {
            // SAFETY: by the caller's promise.
            unsafe { _mm256_loadu_ps(at) }
        }
        #[inline(always)]
        unsafe fn store(at: *mut f32, v: __m256) {
            // SAFETY: by the caller's promise.
            unsafe { _mm256_storeu_ps(at, v) }
        }
        #[inline(always)]
        unsafe fn splat(at: *const f32) -> __m256 {
            // SAFETY: by the caller's promise.
            unsafe { _mm256_broadcast_ss(&*at) }
        }
        #[inline(always)]
        unsafe fn mul_add(a: __m256, b: __m256, c: __m256) -> __m256 {
            // SAFETY: by the caller's promise.
            unsafe { _mm256_fmadd_ps(a, b, c) }
        }
        #[inline(always)]
        unsafe fn transpose8<const BF16: bool>(rows: [*const u8; 8], out: *mut f32, stride: usize) {
            // SAFETY: by the caller's promise: 32 bytes a row, eight values a row of `out`.
            unsafe {
                // Halves of rows r and r + 4 side by side, so that no lane crossing is left.
                let pair = |r: usize, half: usize| {
                    let at = |row: *const u8| _mm_loadu_ps(row.add(16 * half).cast());
                    _mm256_insertf128_ps::<1>(_mm256_castps128_ps256(at(rows[r])), at(rows[r + 4]))
                };
                for half in 0..2 {
                    let [a, b, c, d] = [pair(0, half), pair(1, half), pair(2, half), pair(3, half)];
                    let (low0, high0) = (_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
                    let (low1, high1) = (_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
                    let words = [
                        _mm256_shuffle_ps::<0x44>(low0, low1),
                        _mm256_shuffle_ps::<0xee>(low0, low1),
                        _mm256_shuffle_ps::<0x44>(high0, high1),
                        _mm256_shuffle_ps::<0xee>(high0, high1),
                    ];
                    for (i, word) in words.into_iter().enumerate() {
                        let i = 4 * half + i;
                        if BF16 {
                            let word = _mm256_castps_si256(word);
                            let first = _mm256_slli_epi32::<16>(word);
                            let second = _mm256_and_si256(word, _mm256_set1_epi32(-0x1_0000));
                            let at = out.add(2 * i * stride);
                            _mm256_storeu_ps(at, _mm256_castsi256_ps(first));
                            _mm256_storeu_ps(at.add(stride), _mm256_castsi256_ps(second));
                        } else {
                            _mm256_storeu_ps(out.add(i * stride), word);
                        }
                    }
                }
            }
        }
    }

    impl Simd for Avx512 {
        type V = __m512;
        const LANES: usize = 16;

        #[inline(always)]
        unsafe fn zero() -> __m512 {
            // SAFETY: the caller promises AVX-512, as in every function of this implementation.
            unsafe { _mm512_setzero_ps() }
        }
        #[inline(always)]
        unsafe fn load(at: *const f32) -> __m512 {
            // SAFETY: by the caller's promise.
            unsafe { _mm512_loadu_ps(at) }
        }
        #[inline(always)]
        unsafe fn store(at: *mut f32, v: __m512) {
            // SAFETY: by the caller's promise.
            unsafe { _mm512_storeu_ps(at, v) }
        }
        #[inline(always)]
        unsafe fn splat(at: *const f32) -> __m512 {
            // SAFETY: by the caller's promise.
            unsafe { _mm512_set1_ps(*at) }
        }
        #[inline(always)]
        unsafe fn mul_add(a: __m512, b: __m512, c: __m512) -> __m512 {
            // SAFETY: by the caller's promise.
            unsafe { _mm512_fmadd_ps(a, b, c) }
        }
        #[inline(always)]
        unsafe fn transpose8<const BF16: bool>(rows: [*const u8; 8], out: *mut f32, stride: usize) {
            // SAFETY: by the caller's promise; a processor with AVX-512 has AVX2.
            unsafe { Avx2::transpose8::<BF16>(rows, out, stride) }
        }
    }
}
