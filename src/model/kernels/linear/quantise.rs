//! From f32 rows to the encodings that semoe writes, and how much that changes them.
//!
//! `Int8` rounds a row by its largest element. `Int4` looks, for each group, for the scale and zero
//! with the least squared error: several widths of the grid, for each the best line through the
//! levels that its elements fall on (as llama.cpp's K-quants do).

use super::aligned::AlignedBytes;
use super::encoding::{Encoding, INT4_CHUNK};
use super::matrix::{Matrix, OwnedMatrix};
use crate::base::{Error, Result};
use crate::model::kernels::dispatch::dispatched;
use crate::model::kernels::float::to_bf16;
use half::f16;

/// What rounding changed, over all elements seen.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Rounding {
    /// Σ (w' − w)² and Σ w².
    pub squared_error: f64,
    pub squares: f64,
    /// The largest |w' − w|.
    pub largest: f32,
}

impl Rounding {
    /// Joins what two parts lost.
    pub fn add(&mut self, other: &Self) {
        self.squared_error += other.squared_error;
        self.squares += other.squares;
        self.largest = self.largest.max(other.largest);
    }

    /// ‖w' − w‖ / ‖w‖.
    pub fn relative(&self) -> f64 {
        if self.squares == 0.0 { 0.0 } else { (self.squared_error / self.squares).sqrt() }
    }

    #[inline(always)]
    fn see(&mut self, w: f32, rounded: f32) {
        let error = rounded - w;
        self.squared_error += f64::from(error) * f64::from(error);
        self.squares += f64::from(w) * f64::from(w);
        self.largest = self.largest.max(error.abs());
    }
}

/// Encodes a row: `data` has `encoding.row_bytes(K)`, `scales` has `encoding.scale_bytes(1, K)`.
///
/// # Errors
/// [`crate::base::ErrorKind::Input`] for an encoding that semoe only reads, or a number that is not
/// finite; [`crate::base::ErrorKind::Bug`] when the destinations have other lengths.
pub fn encode_row(
    encoding: Encoding,
    row_k: &[f32],
    data: &mut [u8],
    scales: &mut [u8],
) -> Result<Rounding> {
    let cols = row_k.len();
    if data.len() != encoding.row_bytes(cols)? || scales.len() != encoding.scale_bytes(1, cols) {
        let text = "an encoded row's destination has another length";
        return Err(Error::bug(text).with("data", data.len()).with("scales", scales.len()));
    }
    if !row_k.iter().all(|w| w.is_finite()) && !encoding.is_float() {
        let text = "weights hold a number that is not finite: keep them in bf16";
        return Err(Error::input(text).with("encoding", encoding.name()));
    }
    let mut rounding = Rounding::default();
    match encoding {
        Encoding::F32 => {
            for (out, w) in data.as_chunks_mut::<4>().0.iter_mut().zip(row_k) {
                *out = w.to_le_bytes();
                rounding.see(*w, *w);
            }
        }
        Encoding::F16 => {
            for (out, w) in data.as_chunks_mut::<2>().0.iter_mut().zip(row_k) {
                let half = f16::from_f32(*w);
                *out = half.to_le_bytes();
                rounding.see(*w, half.to_f32());
            }
        }
        Encoding::Bf16 => {
            for (out, w) in data.as_chunks_mut::<2>().0.iter_mut().zip(row_k) {
                let bits = to_bf16(*w);
                *out = bits.to_le_bytes();
                rounding.see(*w, f32::from_bits(u32::from(bits) << 16));
            }
        }
        Encoding::Int8 => int8(row_k, data, scales, &mut rounding),
        Encoding::Int4 { group } => int4(group as usize, row_k, data, scales, &mut rounding),
        _ => {
            let text = "semoe reads this encoding and does not write it: take bf16, int8 or int4";
            return Err(Error::input(text).with("encoding", encoding.name()));
        }
    }
    Ok(rounding)
}

/// Encodes a matrix [rows, cols].
///
/// # Errors
/// As [`encode_row`].
pub fn encode(
    encoding: Encoding,
    rows: usize,
    cols: usize,
    values: &[f32],
) -> Result<(OwnedMatrix, Rounding)> {
    if values.len() != rows * cols {
        let text = "a matrix to encode has another number of elements";
        return Err(Error::bug(text).with("elements", values.len()).with("rows", rows));
    }
    let (row_bytes, scale_bytes) = (encoding.row_bytes(cols)?, encoding.scale_bytes(1, cols));
    let mut data = AlignedBytes::zeroed(encoding.data_bytes(rows, cols)?);
    let mut scales = AlignedBytes::zeroed(rows * scale_bytes);
    let mut rounding = Rounding::default();
    for (m, row) in values.chunks(cols.max(1)).enumerate() {
        let data = &mut data[m * row_bytes..(m + 1) * row_bytes];
        let scales = &mut scales[m * scale_bytes..(m + 1) * scale_bytes];
        rounding.add(&encode_row(encoding, row, data, scales)?);
    }
    let matrix = OwnedMatrix { encoding, rows, cols, transposed: false, data, scales };
    Matrix::check(&matrix.view())?;
    Ok((matrix, rounding))
}

fn int8(row_k: &[f32], data: &mut [u8], scales: &mut [u8], rounding: &mut Rounding) {
    let most = row_k.iter().fold(0.0f32, |most, w| most.max(w.abs()));
    let scale = most / 127.0;
    let factor = if scale > 0.0 { 1.0 / scale } else { 0.0 };
    scales.copy_from_slice(&scale.to_le_bytes());
    data.fill(0);
    for (out, w) in data.iter_mut().zip(row_k) {
        let q = (w * factor).round_ties_even().clamp(-127.0, 127.0);
        *out = (q as i8).cast_unsigned();
        rounding.see(*w, scale * q);
    }
}

fn int4(group: usize, row_k: &[f32], data: &mut [u8], scales: &mut [u8], rounding: &mut Rounding) {
    let groups = row_k.len().div_ceil(group);
    data.fill(0);
    for (g, w) in row_k.chunks(group).enumerate() {
        // Elements that a short group lacks weigh nothing.
        let (mut padded, mut weight) = ([0.0f32; 128], [0.0f32; 128]);
        padded[..w.len()].copy_from_slice(w);
        weight[..w.len()].fill(1.0);
        let (scale, zero) = best_line(&padded[..group], &weight[..group]);
        let (scale, zero) = (f16::from_f32(scale), f16::from_f32(zero));
        scales[g * 2..g * 2 + 2].copy_from_slice(&scale.to_le_bytes());
        scales[(groups + g) * 2..(groups + g) * 2 + 2].copy_from_slice(&zero.to_le_bytes());
        let (scale, zero) = (scale.to_f32(), zero.to_f32());
        let factor = if scale > 0.0 { 1.0 / scale } else { 0.0 };
        for (i, w) in w.iter().enumerate() {
            let q = ((w - zero) * factor).round_ties_even().clamp(0.0, 15.0);
            let k = g * group + i;
            let (chunk, at) = (k / INT4_CHUNK * 32, k % INT4_CHUNK);
            data[chunk + at % 32] |= (q as u8) << (at / 32 * 4);
            rounding.see(*w, scale * q + zero);
        }
    }
}

dispatched! {
    fn best_line(w: &[f32], weight: &[f32]) -> (f32, f32) = best_line_body;
}

/// The scale (never negative) and zero of 16 levels with the least squared error found.
#[inline(always)]
fn best_line_body(w: &[f32], weight: &[f32]) -> (f32, f32) {
    let (mut low, mut high) = (f32::INFINITY, f32::NEG_INFINITY);
    for (w, weight) in w.iter().zip(weight) {
        if *weight > 0.0 {
            (low, high) = (low.min(*w), high.max(*w));
        }
    }
    if high <= low {
        return (0.0, low);
    }
    let mut best = (f32::INFINITY, (high - low) / 15.0, low);
    // Grids of 13 to 17 levels across the range: a narrower one clips the ends.
    for step in 0..=20 {
        let levels = 13.0 + 0.2 * step as f32;
        let found = line(w, weight, low, levels / (high - low));
        if found.0 < best.0 {
            best = found;
        }
    }
    (best.1, best.2)
}

/// Squared error, scale and zero of the best line through the levels that elements fall on with
/// the grid (w − low) · factor.
#[inline(always)]
fn line(w: &[f32], weight: &[f32], low: f32, factor: f32) -> (f32, f32, f32) {
    const SHIFT: f32 = 12_582_912.0;
    let level = |w: f32| {
        let q = ((w - low) * factor).clamp(0.0, 15.0);
        (q + SHIFT) - SHIFT
    };
    // Lanes of n, Σq, Σq², Σw, Σqw, Σw²; w is taken from `low` so that little cancels.
    let mut lanes = [[0.0f32; 8]; 6];
    for (w, weight) in w.as_chunks::<8>().0.iter().zip(weight.as_chunks::<8>().0) {
        for i in 0..8 {
            let (q, v) = (level(w[i]) * weight[i], (w[i] - low) * weight[i]);
            lanes[0][i] += weight[i];
            lanes[1][i] += q;
            lanes[2][i] += q * q;
            lanes[3][i] += v;
            lanes[4][i] += q * v;
            lanes[5][i] += v * v;
        }
    }
    let [n, q, qq, v, qv, vv] = lanes.map(|lane| lane.iter().sum::<f32>());
    let determinant = n * qq - q * q;
    if determinant <= 0.0 {
        return (f32::INFINITY, 0.0, low);
    }
    let scale = (n * qv - q * v) / determinant;
    let zero = (qq * v - q * qv) / determinant;
    let error = vv - scale * qv - zero * v;
    (error, scale.max(0.0), zero + low)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::kernels::linear::decode_row;

    /// About normal, the same every time.
    fn normal(n: usize) -> Vec<f32> {
        let mut state = 0x1234_5678_9abc_def1_u64;
        let mut uniform = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1u64 << 24) as f32
        };
        (0..n).map(|_| (0..12).map(|_| uniform()).sum::<f32>() - 6.0).map(|x| x * 0.02).collect()
    }

    #[test]
    fn rounding_is_as_small_as_the_levels_allow() {
        let values = normal(16 * 1000);
        let bounds = [
            (Encoding::F32, 1e-12),
            (Encoding::F16, 3e-4),
            (Encoding::Bf16, 2e-3),
            (Encoding::Int8, 0.009),
            (Encoding::Int4 { group: 32 }, 0.075),
            (Encoding::Int4 { group: 64 }, 0.085),
            (Encoding::Int4 { group: 128 }, 0.095),
        ];
        for (encoding, bound) in bounds {
            let (matrix, rounding) = encode(encoding, 16, 1000, &values).unwrap();
            assert!(rounding.relative() <= bound, "{encoding:?}: {}", rounding.relative());
            // The error that it states is the one that decoding shows.
            let mut shown = Rounding::default();
            let mut row = vec![0.0; 1000];
            for (m, want) in values.chunks(1000).enumerate() {
                decode_row(&matrix.view(), m, &mut row).unwrap();
                let mut of_row = Rounding::default();
                want.iter().zip(&row).for_each(|(w, r)| of_row.see(*w, *r));
                shown.add(&of_row);
            }
            assert_eq!(shown, rounding, "{encoding:?}");
        }
    }

    #[test]
    fn a_searched_grid_beats_the_plain_one() {
        let values = normal(128 * 64);
        let plain: f64 = (values.chunks(128))
            .map(|w| {
                let low = w.iter().fold(f32::MAX, |a, b| a.min(*b));
                let scale = (w.iter().fold(f32::MIN, |a, b| a.max(*b)) - low) / 15.0;
                w.iter()
                    .map(|w| f64::from(((w - low) / scale).round() * scale + low - w).powi(2))
                    .sum::<f64>()
            })
            .sum();
        let (_, searched) = encode(Encoding::Int4 { group: 128 }, 64, 128, &values).unwrap();
        assert!(searched.squared_error < 0.9 * plain, "{} {plain}", searched.squared_error);
    }

    #[test]
    fn odd_groups_are_kept() {
        for encoding in [Encoding::Int8, Encoding::Int4 { group: 32 }] {
            for values in [vec![0.0; 70], vec![0.5; 70], vec![-1.0; 1]] {
                let (_, rounding) = encode(encoding, 1, values.len(), &values).unwrap();
                assert!(rounding.largest <= 1e-7, "{encoding:?} {rounding:?}");
            }
            let text = encode(encoding, 1, 2, &[1.0, f32::NAN]).unwrap_err().to_string();
            assert!(text.contains("not finite"), "{text}");
        }
        assert!(encode(Encoding::Q4K, 1, 256, &[0.0; 256]).is_err());
    }
}
