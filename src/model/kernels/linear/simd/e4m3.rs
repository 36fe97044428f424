//! e4m3 as bf16, 64 numbers at a time, looked up in a table of what a number without its sign is.

use std::arch::x86_64::*;

/// Numbers decoded together.
pub const BYTES: usize = 64;

/// Whether this processor has the instructions: AVX-512 with VBMI, and the pairs that the numbers are for.
pub fn has() -> bool {
    is_x86_feature_detected!("avx512vbmi") && is_x86_feature_detected!("avx512bf16")
}

/// Low and high bytes of the bf16 of numbers 0 to 127.
const HALVES: [[u8; 128]; 2] = {
    let mut halves = [[0; 128]; 2];
    let mut number = 0;
    while number < 128 {
        let [low, high] = bf16_of(number as u8).to_le_bytes();
        (halves[0][number], halves[1][number]) = (low, high);
        number += 1;
    }
    halves
};

/// A number without its sign: eeee mmm, bias 7, the last one NaN.
const fn bf16_of(number: u8) -> u16 {
    let (exponent, mantissa) = ((number >> 3) as u16, (number & 7) as u16);
    match (exponent, mantissa) {
        (15, 7) => 0x7fc0,
        (0, 0) => 0,
        (0, _) => {
            // Subnormal here, not in bf16: mantissa 2^-9.
            let top = mantissa.ilog2() as u16;
            ((127 - 9 + top) << 7) | ((mantissa << (7 - top)) & 0x7f)
        }
        _ => ((exponent + 127 - 7) << 7) | (mantissa << 4),
    }
}

/// The table, in registers.
#[derive(Clone, Copy)]
pub struct Table {
    low: [__m512i; 2],
    high: [__m512i; 2],
}

impl Table {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
    pub fn new() -> Self {
        // SAFETY: each half has 128 bytes.
        let half = |bytes: &[u8; 128]| unsafe {
            [
                _mm512_loadu_si512(bytes.as_ptr().cast()),
                _mm512_loadu_si512(bytes[64..].as_ptr().cast()),
            ]
        };
        Self { low: half(&HALVES[0]), high: half(&HALVES[1]) }
    }

    /// The first `len` numbers at `p` in order, zeros above; nothing behind them is read.
    ///
    /// # Safety
    /// `len` numbers, at most [`BYTES`], are at `p`.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
    pub unsafe fn decode(&self, p: *const u8, len: usize) -> [__m512i; 2] {
        // SAFETY: the caller's: masked places are not touched.
        let bytes = unsafe {
            match len {
                BYTES => _mm512_loadu_si512(p.cast()),
                _ => _mm512_maskz_loadu_epi8((1 << len) - 1, p.cast()),
            }
        };
        // Joining bytes takes the first eight of each quarter, then the last: they are moved there.
        let order = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);
        let bytes = _mm512_permutexvar_epi64(order, bytes);
        let low = _mm512_permutex2var_epi8(self.low[0], bytes, self.low[1]);
        let high = _mm512_permutex2var_epi8(self.high[0], bytes, self.high[1]);
        // high | (bytes & sign): 0xf8 is a | (b & c).
        let high = _mm512_ternarylogic_epi64::<0xf8>(high, bytes, _mm512_set1_epi8(-128));
        [_mm512_unpacklo_epi8(low, high), _mm512_unpackhi_epi8(low, high)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::kernels::float::from_bf16;
    use crate::model::kernels::linear::decode::from_e4m3;

    #[test]
    fn every_number_is_what_decoding_says_at_every_length() {
        if !has() {
            return;
        }
        for first in 0..=255u8 {
            for len in [0, 1, 31, 32, 33, 63, 64] {
                let bytes: Vec<u8> = (0..len).map(|at| first.wrapping_add(at)).collect();
                // SAFETY: the processor has the instructions; `len` bytes are there; the sizes are equal.
                let numbers: [u16; 64] = unsafe {
                    std::mem::transmute(Table::new().decode(bytes.as_ptr(), bytes.len()))
                };
                for (at, number) in numbers.into_iter().enumerate() {
                    let (got, want) =
                        (from_bf16(number), bytes.get(at).map_or(0.0, |b| from_e4m3(*b)));
                    let same = got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan();
                    assert!(same, "{:?}: {got}, {want}", bytes.get(at));
                }
            }
        }
    }
}
