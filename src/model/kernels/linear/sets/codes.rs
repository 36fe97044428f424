//! What each integer encoding is in a stretch: unsigned codes in its layout, and for each set scale and
//! zero. An element is scale · (code − bias) + zero.

use super::layout::Layout;
use crate::model::kernels::linear::blocks::q4k_scales;
use crate::model::kernels::linear::decode::E2M1_TWICE;
use crate::model::kernels::linear::simd::sets::{
    half, halves, halves_by_18, halves_by_34, load, spread,
};
use std::arch::x86_64::*;

/// An encoding. Every method is unsafe for two reasons: the processor must have AVX-512 with VNNI,
/// and the stretch's bytes must be there.
pub(super) trait Codes {
    const LAYOUT: Layout;
    /// Bytes of a stretch, and of what belongs to it in each array that lies apart.
    const BYTES: usize;
    const AUX: usize = 0;
    /// Whether elements have a zero.
    const ZERO: bool = false;
    /// Whether each row has a scale.
    const ROW_SCALE: bool = false;
    unsafe fn codes(w: *const u8) -> [__m512i; 4];
    /// Scales of the sets; `aux`: the array that lies apart.
    unsafe fn scales(w: *const u8, aux: *const u8) -> __m512;
    /// Zeros of the sets; `second`: the other array that lies apart.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn zeros(_: *const u8, _second: *const u8) -> __m512 {
        _mm512_setzero_ps()
    }
}

pub(super) struct Q8_0;
pub(super) struct Q4_0;
pub(super) struct Q4K;
pub(super) struct Q6K;
pub(super) struct Mxfp4;
pub(super) struct Int8;
/// Int4 with this many groups in a stretch: 8, 4 or 2.
pub(super) struct Int4By<const GROUPS: usize>;

/// i8 as u8, 128 more.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn unsigned(v: __m512i) -> __m512i {
    _mm512_xor_si512(v, _mm512_set1_epi8(-128))
}

/// Low and high nibbles of two vectors whose eights are joined in turn.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn nibbles(a: __m512i, b: __m512i) -> [__m512i; 4] {
    let (even, odd) = (_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
    let low = _mm512_set1_epi8(15);
    [
        _mm512_and_si512(even, low),
        _mm512_and_si512(_mm512_srli_epi16::<4>(even), low),
        _mm512_and_si512(odd, low),
        _mm512_and_si512(_mm512_srli_epi16::<4>(odd), low),
    ]
}

/// 32 bytes at `a` and at `b`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn join(a: *const u8, b: *const u8) -> __m512i {
    // SAFETY: the caller's.
    let (a, b) = unsafe { (_mm256_loadu_si256(a.cast()), _mm256_loadu_si256(b.cast())) };
    _mm512_inserti64x4::<1>(_mm512_castsi256_si512(a), b)
}

impl Codes for Q8_0 {
    const LAYOUT: Layout = Layout::Plain;
    const BYTES: usize = 272;
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn codes(w: *const u8) -> [__m512i; 4] {
        // SAFETY: the caller's.
        unsafe {
            [
                unsigned(join(w.add(2), w.add(36))),
                unsigned(join(w.add(70), w.add(104))),
                unsigned(join(w.add(138), w.add(172))),
                unsigned(join(w.add(206), w.add(240))),
            ]
        }
    }
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn scales(w: *const u8, _: *const u8) -> __m512 {
        // SAFETY: the caller's.
        spread(unsafe { halves_by_34(w) }, const { Layout::Plain.groups(32) })
    }
}

impl Codes for Q4_0 {
    const LAYOUT: Layout = Layout::Blocks;
    const BYTES: usize = 144;
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn codes(w: *const u8) -> [__m512i; 4] {
        /// Words of four blocks' nibbles: of the first 32 words, then of 32 that begin `later`.
        const fn words(later: u16) -> [u16; 32] {
            let mut words = [0; 32];
            let mut i = 0;
            while i < 32 {
                let word = i as u16 / 8 * 9 + 1 + i as u16 % 8;
                words[i] = if word < 32 { word } else { word - later + 32 };
                i += 1;
            }
            words
        }
        // SAFETY: the caller's: 144 bytes are read; the tables have 64.
        unsafe {
            let a = load((const { &words(32) } as *const u16).cast());
            let b = load((const { &words(4) } as *const u16).cast());
            let a = _mm512_permutex2var_epi16(load(w), a, load(w.add(64)));
            let b = _mm512_permutex2var_epi16(load(w.add(72)), b, load(w.add(80)));
            nibbles(a, b)
        }
    }
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn scales(w: *const u8, _: *const u8) -> __m512 {
        // SAFETY: the caller's.
        spread(unsafe { halves_by_18(w) }, const { Layout::Blocks.groups(32) })
    }
}

impl Codes for Mxfp4 {
    const LAYOUT: Layout = Layout::Pairs;
    const BYTES: usize = 128;
    const AUX: usize = 8;
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn codes(w: *const u8) -> [__m512i; 4] {
        // Twice the values, 12 more: from 0 to 24.
        const TABLE: [u8; 16] = {
            let mut table = [0; 16];
            let mut i = 0;
            while i < 16 {
                table[i] = (E2M1_TWICE[i] + 12) as u8;
                i += 1;
            }
            table
        };
        // SAFETY: the caller's; the table has 16 bytes.
        let (index, table) =
            unsafe { (nibbles(load(w), load(w.add(64))), _mm_loadu_si128(TABLE.as_ptr().cast())) };
        let table = _mm512_broadcast_i32x4(table);
        [
            _mm512_shuffle_epi8(table, index[0]),
            _mm512_shuffle_epi8(table, index[1]),
            _mm512_shuffle_epi8(table, index[2]),
            _mm512_shuffle_epi8(table, index[3]),
        ]
    }
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn scales(_: *const u8, aux: *const u8) -> __m512 {
        // SAFETY: the caller's: eight bytes.
        let e = _mm256_cvtepu8_epi32(unsafe { _mm_loadl_epi64(aux.cast()) });
        let one = _mm256_set1_epi32(1);
        let normal = _mm256_slli_epi32::<23>(_mm256_sub_epi32(e, one));
        // Half of 2^-127 and of 2^-126 are subnormal.
        let tiny = _mm256_srlv_epi32(_mm256_set1_epi32(0x0040_0000), _mm256_sub_epi32(one, e));
        let bits = _mm256_mask_mov_epi32(tiny, _mm256_cmpgt_epi32_mask(e, one), normal);
        let nan = _mm256_cmpeq_epi32_mask(e, _mm256_set1_epi32(255));
        let bits = _mm256_mask_mov_epi32(bits, nan, _mm256_set1_epi32(-1));
        spread(_mm256_castsi256_ps(bits), const { Layout::Pairs.groups(32) })
    }
}

impl Codes for Int8 {
    const LAYOUT: Layout = Layout::Halves;
    const BYTES: usize = 256;
    const ROW_SCALE: bool = true;
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn codes(w: *const u8) -> [__m512i; 4] {
        // SAFETY: the caller's.
        unsafe {
            [
                unsigned(join(w, w.add(128))),
                unsigned(join(w.add(32), w.add(160))),
                unsigned(join(w.add(64), w.add(192))),
                unsigned(join(w.add(96), w.add(224))),
            ]
        }
    }
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn scales(_: *const u8, _: *const u8) -> __m512 {
        _mm512_set1_ps(1.0)
    }
}

impl<const GROUPS: usize> Codes for Int4By<GROUPS> {
    // Low and high nibbles of a byte are 32 columns apart.
    const LAYOUT: Layout = if GROUPS == 8 { Layout::SplitNibbles } else { Layout::Nibbles };
    const BYTES: usize = 128;
    const AUX: usize = GROUPS * 2;
    const ZERO: bool = true;
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn codes(w: *const u8) -> [__m512i; 4] {
        // SAFETY: the caller's.
        unsafe { nibbles(load(w), load(w.add(64))) }
    }
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn scales(_: *const u8, aux: *const u8) -> __m512 {
        // SAFETY: the caller's.
        spread(unsafe { halves::<GROUPS>(aux) }, const { Self::LAYOUT.groups(256 / GROUPS) })
    }
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn zeros(_: *const u8, second: *const u8) -> __m512 {
        // SAFETY: the caller's.
        spread(unsafe { halves::<GROUPS>(second) }, const { Self::LAYOUT.groups(256 / GROUPS) })
    }
}

/// The eight 6-bit numbers of Q4_K's packed scales (or of its minimums), times the half at `factor`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn q4k_eight(bytes: u64, factor: *const u8) -> __m512 {
    let numbers = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128(bytes.cast_signed())));
    // SAFETY: the caller's.
    let factor = _mm256_broadcastss_ps(unsafe { half(factor) });
    spread(_mm256_mul_ps(numbers, factor), const { Layout::SplitNibbles.groups(32) })
}

impl Codes for Q4K {
    const LAYOUT: Layout = Layout::SplitNibbles;
    const BYTES: usize = 144;
    const ZERO: bool = true;
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn codes(w: *const u8) -> [__m512i; 4] {
        // SAFETY: the caller's.
        unsafe { nibbles(load(w.add(16)), load(w.add(80))) }
    }
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn scales(w: *const u8, _: *const u8) -> __m512 {
        // SAFETY: the caller's.
        unsafe {
            let (scales, _) = q4k_scales(w.add(4).cast::<[u32; 3]>().read_unaligned());
            q4k_eight(scales, w)
        }
    }
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn zeros(w: *const u8, _: *const u8) -> __m512 {
        // SAFETY: the caller's.
        unsafe {
            let (_, mins) = q4k_scales(w.add(4).cast::<[u32; 3]>().read_unaligned());
            _mm512_xor_ps(q4k_eight(mins, w.add(2)), _mm512_set1_ps(-0.0))
        }
    }
}

impl Codes for Q6K {
    const LAYOUT: Layout = Layout::Plain;
    const BYTES: usize = 210;
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn codes(w: *const u8) -> [__m512i; 4] {
        let (nibble, top) = (_mm512_set1_epi8(15), _mm512_set1_epi8(0x30));
        // Bits 0 and 1 (2 and 3) to bits 4 and 5; bits 4 and 5 (6 and 7) stay there.
        let (up, down) =
            (_mm512_setr_epi64(4, 4, 4, 4, 2, 2, 2, 2), _mm512_setr_epi64(0, 0, 0, 0, 2, 2, 2, 2));
        let mut codes = [_mm512_setzero_si512(); 4];
        for half in 0..2 {
            // SAFETY: the caller's.
            let (low, high) = unsafe {
                let high = _mm256_loadu_si256(w.add(128 + half * 32).cast());
                (load(w.add(half * 64)), _mm512_broadcast_i64x4(high))
            };
            // a & b | c & d, as a table of the three that change: 0xea is (a & b) | c.
            let pairs = _mm512_and_si512(_mm512_sllv_epi64(high, up), top);
            codes[2 * half] = _mm512_ternarylogic_epi64::<0xea>(low, nibble, pairs);
            let pairs = _mm512_and_si512(_mm512_srlv_epi64(high, down), top);
            let low = _mm512_srli_epi16::<4>(low);
            codes[2 * half + 1] = _mm512_ternarylogic_epi64::<0xea>(low, nibble, pairs);
        }
        codes
    }
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn scales(w: *const u8, _: *const u8) -> __m512 {
        // SAFETY: the caller's.
        let (scales, d) = unsafe { (_mm_loadu_si128(w.add(192).cast()), half(w.add(208))) };
        // Scale 4v + i is set 4i + v's: bytes are turned as a square before they are widened.
        let turn = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
        let scales = _mm512_cvtepi8_epi32(_mm_shuffle_epi8(scales, turn));
        _mm512_mul_ps(_mm512_cvtepi32_ps(scales), _mm512_broadcastss_ps(d))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::kernels::linear::decode::half_e8m0;
    use crate::model::kernels::linear::encoding::Encoding;
    use crate::model::kernels::linear::matrix::OwnedMatrix;
    use crate::model::kernels::linear::sets::bias;
    use crate::model::kernels::linear::simd::{Level, level};
    use crate::model::kernels::linear::tests::{Random, decoded, random};

    /// What codes, scale, bias and zero make of a row of one stretch.
    ///
    /// # Safety
    /// The processor has AVX-512 with VNNI.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn elements<W: Codes>(w: &OwnedMatrix) -> Vec<f32> {
        // SAFETY: one row of one stretch is there; arrays and vectors have the same size.
        let (codes, scales, zeros) = unsafe {
            let (data, aux) = (w.data.as_ptr(), w.scales.as_ptr());
            let second = aux.wrapping_add(w.scales.len() / 2);
            (
                std::mem::transmute::<[__m512i; 4], [[u8; 64]; 4]>(W::codes(data)),
                std::mem::transmute::<__m512, [f32; 16]>(W::scales(data, aux)),
                std::mem::transmute::<__m512, [f32; 16]>(W::zeros(data, second)),
            )
        };
        let row = match W::ROW_SCALE {
            true => f32::from_le_bytes(w.scales[..4].try_into().unwrap()),
            false => 1.0,
        };
        let mut row_k = vec![f32::NAN; 256];
        for v in 0..4 {
            for at in 0..64 {
                let code = i32::from(codes[v][at]) - bias(w.encoding);
                let (set, _) = W::LAYOUT.set(v, at / 4);
                row_k[W::LAYOUT.column(v, at)] = row * (scales[set] * code as f32) + zeros[set];
            }
        }
        row_k
    }

    #[test]
    fn codes_and_scales_are_what_decoding_says() {
        if level() < Level::Avx512Vnni {
            return;
        }
        let mut numbers = Random::new(21);
        for encoding in Encoding::ALL.into_iter().filter(|e| !e.is_float() && *e != Encoding::Fp8) {
            for _ in 0..20 {
                let w = random(encoding, 1, 256, &mut numbers);
                // SAFETY: the level says that the processor has the features.
                let got = unsafe {
                    match encoding {
                        Encoding::Q8_0 => elements::<Q8_0>(&w),
                        Encoding::Q4_0 => elements::<Q4_0>(&w),
                        Encoding::Q4K => elements::<Q4K>(&w),
                        Encoding::Q6K => elements::<Q6K>(&w),
                        Encoding::Mxfp4 => elements::<Mxfp4>(&w),
                        Encoding::Int4 { group: 32 } => elements::<Int4By<8>>(&w),
                        Encoding::Int4 { group: 64 } => elements::<Int4By<4>>(&w),
                        Encoding::Int4 { .. } => elements::<Int4By<2>>(&w),
                        _ => elements::<Int8>(&w),
                    }
                };
                assert_eq!(got, decoded(&w.view()), "{encoding:?}");
            }
        }
    }

    #[test]
    fn an_exponent_is_half_its_power_at_every_byte() {
        if level() < Level::Avx512Vnni {
            return;
        }
        for e in 0..=255u8 {
            // SAFETY: the level says that the processor has the features; eight bytes are there.
            let scales: [f32; 16] =
                unsafe { std::mem::transmute(Mxfp4::scales(std::ptr::null(), [e; 8].as_ptr())) };
            let same = |x: &f32| x.to_bits() == half_e8m0(e).to_bits() || x.is_nan() && e == 255;
            assert!(scales.iter().all(same), "{e}: {scales:?}");
        }
    }
}
