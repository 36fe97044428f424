//! The kernels against others' packages, against f64, and against themselves.

mod expert;
mod golden;
mod law;
mod products;

use super::aligned::AlignedBytes;
use super::decode::decode_checked;
use super::encoding::Encoding;
use super::input::Form;
use super::matrix::{Matrix, OwnedMatrix};
use super::quantise::encode;
use super::simd::{Level, level};
use super::work::{Activations, Work};
use crate::model::kernels::float::{from_bf16, to_bf16};

/// A seeded stream of numbers.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }
    pub fn bits(&mut self) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 32) as u32
    }
    /// Uniform in [-1, 1).
    pub fn number(&mut self) -> f32 {
        (self.bits() >> 8) as f32 / (1 << 23) as f32 - 1.0
    }
    pub fn numbers(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.number()).collect()
    }
}

/// The instruction sets that can be tried here.
pub fn levels() -> Vec<Level> {
    let all = [
        Level::Portable,
        Level::Avx2,
        Level::Avx512,
        Level::Avx512Vnni,
        Level::Avx512Bf16,
        Level::Amx,
    ];
    all.into_iter().filter(|one| *one <= level()).collect()
}

pub fn work(threads: usize, level: Level) -> Work {
    let mut work = Work::new(threads, Activations::F32).unwrap();
    work.level = level;
    work
}

/// A matrix [rows, cols] of random elements around ±1 in any encoding.
pub fn random(encoding: Encoding, rows: usize, cols: usize, random: &mut Random) -> OwnedMatrix {
    if matches!(encoding, Encoding::Int8 | Encoding::Int4 { .. }) || encoding.is_float() {
        return encode(encoding, rows, cols, &random.numbers(rows * cols)).unwrap().0;
    }
    let bytes = encoding.data_bytes(rows, cols).unwrap();
    let mut data = AlignedBytes::zeroed(bytes);
    data.iter_mut().for_each(|b| *b = random.bits() as u8);
    let mut scales = AlignedBytes::zeroed(encoding.scale_bytes(rows, cols));
    let (block, places): (usize, &[(usize, f32)]) = match encoding {
        Encoding::Q8_0 => (34, &[(0, 0.01)]),
        Encoding::Q4_0 => (18, &[(0, 0.1)]),
        Encoding::Q4K => (144, &[(0, 0.002), (2, 0.002)]),
        Encoding::Q6K => (210, &[(208, 0.0003)]),
        _ => (bytes.max(1), &[]),
    };
    for block in data.chunks_mut(block) {
        for (at, scale) in places {
            let half = half::f16::from_f32(scale * random.number());
            block[*at..at + 2].copy_from_slice(&half.to_le_bytes());
        }
    }
    match encoding {
        Encoding::Fp8 => {
            data.iter_mut().filter(|b| **b & 0x7f == 0x7f).for_each(|b| *b ^= 1);
            for scale in scales.as_chunks_mut::<4>().0 {
                *scale = (0.003 * random.number()).to_le_bytes();
            }
        }
        _ => scales.iter_mut().for_each(|b| *b = 120 + (random.bits() % 8) as u8),
    }
    OwnedMatrix { encoding, rows, cols, transposed: false, data, scales }
}

/// Shapes [M, K] that an encoding can have: whole blocks, and ends of every kind.
pub fn shapes(encoding: Encoding) -> Vec<(usize, usize)> {
    match encoding.block() {
        1 => vec![(1, 1), (3, 7), (5, 48), (24, 96), (50, 512), (27, 516), (130, 140), (9, 1300)],
        32 => vec![(1, 32), (5, 96), (27, 256), (26, 544), (9, 1312)],
        _ => vec![(1, 256), (5, 512), (27, 1280)],
    }
}

/// x as the kernel sees it: rounded, by groups or each by itself, where the encoding says so.
pub fn seen(encoding: Encoding, level: Level, x: &[f32], cols: usize) -> Vec<f32> {
    let group = match Form::of(encoding, cols, level) {
        Form::Blocks => return x.to_vec(),
        Form::Pairs => return x.iter().map(|x| from_bf16(to_bf16(*x))).collect(),
        #[cfg(target_arch = "x86_64")]
        Form::Tiles => return x.iter().map(|x| from_bf16(to_bf16(*x))).collect(),
        Form::Groups(group) => group,
        #[cfg(target_arch = "x86_64")]
        Form::Sets { group, .. } => group,
    };
    let mut seen = x.to_vec();
    for row in seen.chunks_mut(cols) {
        for group in row.chunks_mut(group) {
            let most = group.iter().fold(0.0f32, |most, x| most.max(x.abs()));
            let factor = if most > 1e-30 { 127.0 / most } else { 0.0 };
            group.iter_mut().for_each(|x| *x = (*x * factor).round_ties_even() * (most / 127.0));
        }
    }
    seen
}

/// All rows decoded.
pub fn decoded(w: &Matrix<'_>) -> Vec<f32> {
    let mut values = vec![0.0; w.rows * w.cols];
    for (m, row) in values.chunks_mut(w.cols.max(1)).enumerate() {
        decode_checked(w, m, row);
    }
    values
}

/// x Wᵀ in f64, and Σ |x w|, which bounds what rounding may do.
pub fn product(w: &Matrix<'_>, x: &[f32]) -> (Vec<f64>, Vec<f64>) {
    let values = decoded(w);
    let (mut sums, mut sizes) = (Vec::new(), Vec::new());
    for x in x.chunks(w.cols) {
        for w in values.chunks(w.cols) {
            let terms = x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w));
            sums.push(terms.clone().sum());
            sizes.push(terms.map(f64::abs).sum());
        }
    }
    (sums, sizes)
}

/// Asserts that `got` is `want` but for rounding of sums of the given sizes.
pub fn assert_close(what: &str, got: &[f32], want: &[f64], sizes: &[f64]) {
    assert_eq!(got.len(), want.len());
    for (i, ((got, want), size)) in got.iter().zip(want).zip(sizes).enumerate() {
        let error = (f64::from(*got) - want).abs();
        assert!(error <= 2e-6 * size + 1e-12, "{what}: element {i}: {got} instead of {want}");
    }
}

/// The same floats, NaN or not.
pub fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}
