//! Encoded rows as f32: the plain meaning of every encoding, which the fast kernels must keep.
//!
//! Written from the public descriptions: GGML's block layouts, the OCP formats e4m3, e2m1 and
//! e8m0, IEEE's binary16. Each product of two stored numbers is rounded to f32 once.

use super::encoding::{BLOCK, Encoding, FP8_TILE, INT4_CHUNK, SUPER};
use super::matrix::{Matrix, Vector};
use crate::base::{Error, Result};
use crate::model::kernels::float::from_bf16;

/// Row `row` of `w` as f32 `[K]`.
///
/// # Errors
/// [`crate::base::ErrorKind::Input`] when the matrix's bytes do not fit its shape;
/// [`crate::base::ErrorKind::Bug`] when there is no such row or `out_k` has another length.
pub fn decode_row(w: &Matrix<'_>, row: usize, out_k: &mut [f32]) -> Result<()> {
    w.check()?;
    if row >= w.rows || out_k.len() != w.cols {
        let text = "there is no such row, or its destination has another length";
        return Err(Error::bug(text)
            .with("row", row)
            .with("rows", w.rows)
            .with("cols", w.cols)
            .with("destination", out_k.len()));
    }
    decode_checked(w, row, out_k);
    Ok(())
}

/// As [`decode_row`] for a checked matrix, a row of it and a destination that fits.
pub(super) fn decode_checked(w: &Matrix<'_>, row: usize, out_k: &mut [f32]) {
    if w.transposed {
        return strided(w, row, out_k);
    }
    let bytes = w.row(row);
    match w.encoding {
        Encoding::F32 | Encoding::F16 | Encoding::Bf16 => floats(w.encoding, bytes, out_k),
        Encoding::Fp8 => fp8(w, row, bytes, out_k),
        Encoding::Mxfp4 => mxfp4(&w.scales[row * (w.cols / BLOCK)..], bytes, out_k),
        Encoding::Q8_0 => {
            for (block, out) in bytes.as_chunks::<34>().0.iter().zip(out_k.chunks_mut(BLOCK)) {
                let d = f16_at(block, 0);
                for (out, &q) in out.iter_mut().zip(&block[2..]) {
                    *out = d * f32::from(q.cast_signed());
                }
            }
        }
        Encoding::Q4_0 => {
            for (block, out) in bytes.as_chunks::<18>().0.iter().zip(out_k.chunks_mut(BLOCK)) {
                let d = f16_at(block, 0);
                for (i, &pair) in block[2..].iter().enumerate() {
                    out[i] = d * (f32::from(pair & 15) - 8.0);
                    out[i + 16] = d * (f32::from(pair >> 4) - 8.0);
                }
            }
        }
        Encoding::Q4K => {
            for (block, out) in bytes.as_chunks::<144>().0.iter().zip(out_k.chunks_mut(SUPER)) {
                q4k(block, out);
            }
        }
        Encoding::Q6K => {
            for (block, out) in bytes.as_chunks::<210>().0.iter().zip(out_k.chunks_mut(SUPER)) {
                q6k(block, out);
            }
        }
        Encoding::Int8 => {
            let scale = f32_at(w.scales, row);
            for (out, &q) in out_k.iter_mut().zip(bytes) {
                *out = scale * f32::from(q.cast_signed());
            }
        }
        Encoding::Int4 { group } => int4(w, row, group as usize, bytes, out_k),
    }
}

/// A bias as f32.
///
/// # Errors
/// [`crate::base::ErrorKind::Input`] when it has another length than `out`.
pub(super) fn decode_vector(v: &Vector<'_>, out: &mut [f32]) -> Result<()> {
    if v.len()? != out.len() {
        let text = "a bias has another length than its matrix has rows";
        return Err(Error::input(text).with("bias", v.len()?).with("rows", out.len()));
    }
    floats(v.encoding, v.data, out);
    Ok(())
}

fn floats(encoding: Encoding, bytes: &[u8], out: &mut [f32]) {
    match encoding {
        Encoding::F32 => {
            for (out, b) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
                *out = f32::from_le_bytes(*b);
            }
        }
        Encoding::F16 => {
            for (out, b) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *out = half::f16::from_le_bytes(*b).to_f32();
            }
        }
        _ => {
            for (out, b) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *out = from_bf16(u16::from_le_bytes(*b));
            }
        }
    }
}

fn strided(w: &Matrix<'_>, row: usize, out_k: &mut [f32]) {
    let size = w.encoding.float_bytes().unwrap_or(4);
    for (k, out) in out_k.iter_mut().enumerate() {
        let at = (k * w.rows + row) * size;
        floats(w.encoding, &w.data[at..at + size], std::slice::from_mut(out));
    }
}

#[inline(always)]
pub(super) fn f16_at(bytes: &[u8], at: usize) -> f32 {
    half::f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

#[inline(always)]
pub(super) fn f32_at(bytes: &[u8], index: usize) -> f32 {
    let b = &bytes[index * 4..index * 4 + 4];
    f32::from_le_bytes([b[0], b[1], b[2], b[3]])
}

/// e4m3 with one NaN and no infinity: s eeee mmm, bias 7.
#[inline(always)]
pub(super) fn from_e4m3(b: u8) -> f32 {
    if b & 0x7f == 0x7f {
        return f32::NAN;
    }
    // As a half the same bits mean 2^-8 of the value, subnormals included.
    let half = half::f16::from_bits((u16::from(b & 0x80) << 8) | (u16::from(b & 0x7f) << 7));
    half.to_f32() * 256.0
}

fn fp8(w: &Matrix<'_>, row: usize, bytes: &[u8], out_k: &mut [f32]) {
    let tiles = w.cols.div_ceil(FP8_TILE);
    let tiles_of_row = row / FP8_TILE * tiles;
    let blocks = out_k.chunks_mut(FP8_TILE).zip(bytes.chunks(FP8_TILE));
    for (tile, (out, bytes)) in blocks.enumerate() {
        let scale = f32_at(w.scales, tiles_of_row + tile);
        for (out, &b) in out.iter_mut().zip(bytes) {
            *out = from_e4m3(b) * scale;
        }
    }
}

/// Twice the values of e2m1: s ee m, bias 1.
pub(super) const E2M1_TWICE: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// Half of 2^(e - 127): the factor of [`E2M1_TWICE`]; 255 stands for NaN.
#[inline(always)]
pub(super) fn half_e8m0(e: u8) -> f32 {
    match e {
        255 => f32::NAN,
        0 => f32::from_bits(0x0020_0000),
        1 => f32::from_bits(0x0040_0000),
        e => f32::from_bits(u32::from(e - 1) << 23),
    }
}

fn mxfp4(scales: &[u8], bytes: &[u8], out_k: &mut [f32]) {
    let blocks = out_k.chunks_mut(BLOCK).zip(bytes.as_chunks::<16>().0).zip(scales);
    for ((out, bytes), &e) in blocks {
        let scale = half_e8m0(e);
        for (pair, &b) in out.as_chunks_mut::<2>().0.iter_mut().zip(bytes) {
            *pair = [b & 15, b >> 4].map(|q| scale * f32::from(E2M1_TWICE[usize::from(q)]));
        }
    }
}

/// The 6-bit scale and minimum of the eight sub-blocks of a Q4_K super-block.
#[inline(always)]
pub(super) fn q4k_scales(packed: &[u8]) -> ([u8; 8], [u8; 8]) {
    let mut scales = [0; 8];
    let mut mins = [0; 8];
    for j in 0..4 {
        scales[j] = packed[j] & 63;
        mins[j] = packed[j + 4] & 63;
        scales[j + 4] = (packed[j + 8] & 15) | ((packed[j] >> 6) << 4);
        mins[j + 4] = (packed[j + 8] >> 4) | ((packed[j + 4] >> 6) << 4);
    }
    (scales, mins)
}

fn q4k(block: &[u8; 144], out: &mut [f32]) {
    let (d, dmin) = (f16_at(block, 0), f16_at(block, 2));
    let (scales, mins) = q4k_scales(&block[4..16]);
    let chunks = out.chunks_mut(64).zip(block[16..].chunks(32));
    for (j, (out, bytes)) in chunks.enumerate() {
        let scale = [d * f32::from(scales[2 * j]), d * f32::from(scales[2 * j + 1])];
        let min = [dmin * f32::from(mins[2 * j]), dmin * f32::from(mins[2 * j + 1])];
        for (i, &b) in bytes.iter().enumerate() {
            out[i] = scale[0] * f32::from(b & 15) - min[0];
            out[i + 32] = scale[1] * f32::from(b >> 4) - min[1];
        }
    }
}

fn q6k(block: &[u8; 210], out: &mut [f32]) {
    let d = f16_at(block, 208);
    let (low, high, scales) = (&block[..128], &block[128..192], &block[192..208]);
    for (half, out) in out.chunks_mut(128).enumerate() {
        let (low, high) = (&low[half * 64..], &high[half * 32..]);
        for (i, out) in out.iter_mut().enumerate() {
            let quarter = i / 32;
            let nibble = (low[i % 64] >> (quarter / 2 * 4)) & 15;
            let pair = (high[i % 32] >> (quarter * 2)) & 3;
            let q = i32::from(nibble | (pair << 4)) - 32;
            let scale = scales[half * 8 + i / 16].cast_signed();
            *out = d * f32::from(scale) * q as f32;
        }
    }
}

fn int4(w: &Matrix<'_>, row: usize, group: usize, bytes: &[u8], out_k: &mut [f32]) {
    let groups = w.cols.div_ceil(group);
    let scales = &w.scales[row * groups * 4..(row + 1) * groups * 4];
    for (k, out) in out_k.iter_mut().enumerate() {
        let i = k % INT4_CHUNK;
        let byte = bytes[k / INT4_CHUNK * 32 + i % 32];
        let q = if i < 32 { byte & 15 } else { byte >> 4 };
        let scale = f16_at(scales, k / group * 2);
        let zero = f16_at(scales, (groups + k / group) * 2);
        *out = scale * f32::from(q) + zero;
    }
}
