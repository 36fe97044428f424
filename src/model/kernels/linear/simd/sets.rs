//! Stretches of 256 columns in AVX-512 with VNNI (see `linear::sets`).

use std::arch::x86_64::*;

/// The sums of the four lanes of each quarter: of quarter q of vector p at 4q + p.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub fn gather(v: [__m512i; 4]) -> __m512i {
    let [a, b, c, d] = v;
    let ab = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    let cd = _mm512_add_epi32(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
    _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd))
}

/// The sums of each half's quarters: `a`'s in the first half, `b`'s in the last.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub fn fold(a: __m512i, b: __m512i) -> __m512i {
    _mm512_add_epi32(_mm512_shuffle_i32x4::<0x88>(a, b), _mm512_shuffle_i32x4::<0xdd>(a, b))
}

/// Lane `ORDER[i]` is the i-th that a sum in a tree takes in: lanes half the vector apart first.
pub const ORDER: [usize; 16] = [0, 8, 4, 12, 2, 10, 6, 14, 1, 9, 5, 13, 3, 11, 7, 15];

/// The lanes added in the tree of [`ORDER`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub fn sum(v: __m512) -> f32 {
    let eight = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps::<1>(v));
    let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
    let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
}

/// Vector i gets 32-bit lane i of each of the sixteen, in their order.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub fn transpose(rows: [__m512i; 16]) -> [__m512i; 16] {
    let mut pairs = [_mm512_setzero_si512(); 16];
    for i in 0..8 {
        pairs[2 * i] = _mm512_unpacklo_epi32(rows[2 * i], rows[2 * i + 1]);
        pairs[2 * i + 1] = _mm512_unpackhi_epi32(rows[2 * i], rows[2 * i + 1]);
    }
    // fours[4i + j]: column j of each 128-bit lane, of rows 4i..4i + 4.
    let mut fours = [_mm512_setzero_si512(); 16];
    for i in 0..4 {
        fours[4 * i] = _mm512_unpacklo_epi64(pairs[4 * i], pairs[4 * i + 2]);
        fours[4 * i + 1] = _mm512_unpackhi_epi64(pairs[4 * i], pairs[4 * i + 2]);
        fours[4 * i + 2] = _mm512_unpacklo_epi64(pairs[4 * i + 1], pairs[4 * i + 3]);
        fours[4 * i + 3] = _mm512_unpackhi_epi64(pairs[4 * i + 1], pairs[4 * i + 3]);
    }
    let mut columns = [_mm512_setzero_si512(); 16];
    for j in 0..4 {
        let [a, b, c, d] = [fours[j], fours[4 + j], fours[8 + j], fours[12 + j]];
        let (ab, cd) = (_mm512_shuffle_i32x4::<0x88>(a, b), _mm512_shuffle_i32x4::<0x88>(c, d));
        columns[j] = _mm512_shuffle_i32x4::<0x88>(ab, cd);
        columns[8 + j] = _mm512_shuffle_i32x4::<0xdd>(ab, cd);
        let (ab, cd) = (_mm512_shuffle_i32x4::<0xdd>(a, b), _mm512_shuffle_i32x4::<0xdd>(c, d));
        columns[4 + j] = _mm512_shuffle_i32x4::<0x88>(ab, cd);
        columns[12 + j] = _mm512_shuffle_i32x4::<0xdd>(ab, cd);
    }
    columns
}

/// For each set the number of its group.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub fn spread(v: __m256, groups: [i32; 16]) -> __m512 {
    // SAFETY: both are 64 bytes.
    let groups = unsafe { std::mem::transmute::<[i32; 16], __m512i>(groups) };
    _mm512_permutexvar_ps(groups, _mm512_castps256_ps512(v))
}

/// The half at `p`.
///
/// # Safety
/// It is there.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub unsafe fn half(p: *const u8) -> __m128 {
    // SAFETY: the caller's.
    let bits = _mm_cvtsi32_si128(i32::from(unsafe { p.cast::<u16>().read_unaligned() }));
    _mm256_castps256_ps128(widened(bits))
}

/// The first N (2, 4 or 8) halves at `p`; zeros above.
///
/// # Safety
/// They are there.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub unsafe fn halves<const N: usize>(p: *const u8) -> __m256 {
    // SAFETY: the caller's.
    let bits = unsafe {
        match N {
            2 => _mm_cvtsi32_si128(p.cast::<i32>().read_unaligned()),
            4 => _mm_loadl_epi64(p.cast()),
            _ => _mm_loadu_si128(p.cast()),
        }
    };
    widened(bits)
}

/// The eight halves that begin the blocks of 34 bytes at `p`.
///
/// # Safety
/// 272 bytes are there.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub unsafe fn halves_by_34(p: *const u8) -> __m256 {
    let at = _mm512_castsi128_si512(_mm_setr_epi16(0, 17, 34, 51, 0, 0, 0, 0));
    // Of words 64 to 127: 68, 85, 102 and 119.
    let above = _mm512_castsi128_si512(_mm_setr_epi16(4, 21, 38, 55, 0, 0, 0, 0));
    // SAFETY: the caller's: 256 bytes are read.
    let [a, b, c, d] = unsafe { quarters(p) };
    let low = _mm512_castsi512_si128(_mm512_permutex2var_epi16(a, at, b));
    let high = _mm512_castsi512_si128(_mm512_permutex2var_epi16(c, above, d));
    widened(_mm_unpacklo_epi64(low, high))
}

/// The eight halves that begin the blocks of 18 bytes at `p`.
///
/// # Safety
/// 144 bytes are there.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub unsafe fn halves_by_18(p: *const u8) -> __m256 {
    let at = _mm512_castsi128_si512(_mm_setr_epi16(0, 9, 18, 27, 36, 45, 54, 63));
    // SAFETY: the caller's: 128 bytes are read.
    let (a, b) = unsafe { (load(p), load(p.add(64))) };
    widened(_mm512_castsi512_si128(_mm512_permutex2var_epi16(a, at, b)))
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn quarters(p: *const u8) -> [__m512i; 4] {
    // SAFETY: the caller's.
    unsafe { [load(p), load(p.add(64)), load(p.add(128)), load(p.add(192))] }
}

/// Eight halves as f32 (AVX-512's own conversion: no other feature is asked for).
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn widened(bits: __m128i) -> __m256 {
    _mm512_castps512_ps256(_mm512_cvtph_ps(_mm256_castsi128_si256(bits)))
}

/// # Safety
/// 64 bytes are at `p`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub unsafe fn load(p: *const u8) -> __m512i {
    // SAFETY: the caller's.
    unsafe { _mm512_loadu_si512(p.cast()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::kernels::linear::simd::{Level, level};

    fn lanes(v: __m512i) -> [i32; 16] {
        // SAFETY: sixteen lanes of 32 bits without padding.
        unsafe { std::mem::transmute(v) }
    }

    /// # Safety
    /// The processor has AVX-512.
    #[target_feature(enable = "avx512f")]
    unsafe fn counted(from: i32) -> __m512i {
        let numbers: [i32; 16] = std::array::from_fn(|i| from + i as i32);
        // SAFETY: 64 bytes are there.
        unsafe { _mm512_loadu_si512(numbers.as_ptr().cast()) }
    }

    #[test]
    fn vectors_are_turned_gathered_and_added_as_said() {
        if level() < Level::Avx512Vnni {
            return;
        }
        // SAFETY: the level says that the processor has the features.
        unsafe {
            let turned = transpose(std::array::from_fn(|r| counted(100 * r as i32)));
            for (i, column) in turned.into_iter().enumerate() {
                assert_eq!(lanes(column), std::array::from_fn(|r| (100 * r + i) as i32));
            }
            let sums = gather(std::array::from_fn(|p| counted(16 * p as i32)));
            for chunk in 0..16 {
                let (p, q) = (chunk / 4, chunk % 4);
                let want: usize = (16 * p + 4 * q..16 * p + 4 * q + 4).sum();
                assert_eq!(lanes(sums)[4 * q + p], want as i32);
            }
            let (a, b) = (lanes(counted(0)), lanes(counted(50)));
            let folded = |v: [i32; 16]| [0, 1, 2, 3, 8, 9, 10, 11].map(|i| v[i] + v[i + 4]);
            let want = [folded(a), folded(b)].concat();
            assert_eq!(lanes(fold(counted(0), counted(50)))[..], want);
        }
        // Numbers whose sum depends on the order.
        let numbers: [f32; 16] = std::array::from_fn(|i| 1.7f32.powi(3 * i as i32) / 3.0);
        let mut tree = ORDER.map(|lane| numbers[lane]).to_vec();
        while tree.len() > 1 {
            tree = tree.chunks(2).map(|pair| pair[0] + pair[1]).collect();
        }
        // SAFETY: as above; sixteen numbers are there.
        let got = unsafe { sum(_mm512_loadu_ps(numbers.as_ptr())) };
        assert_eq!(got.to_bits(), tree[0].to_bits());
    }

    #[test]
    fn halves_are_found_between_their_blocks() {
        if level() < Level::Avx512Vnni {
            return;
        }
        let bytes: Vec<u8> = (0..272u32).map(|i| (i * 37 % 101) as u8).collect();
        let want = |step: usize| -> [f32; 8] {
            std::array::from_fn(|i| {
                half::f16::from_le_bytes([bytes[i * step], bytes[i * step + 1]]).to_f32()
            })
        };
        // SAFETY: as above; 272 bytes are there.
        let (by_34, by_18) = unsafe {
            let (a, b) = (halves_by_34(bytes.as_ptr()), halves_by_18(bytes.as_ptr()));
            let floats = |v| std::mem::transmute::<__m256, [f32; 8]>(v);
            (floats(a), floats(b))
        };
        assert_eq!((by_34, by_18), (want(34), want(18)));
    }
}
