//! An f32 master kept as two 16-bit halves without redundancy.
//!
//! The upper half is the master rounded to bf16 (half up in magnitude): exactly the weight that
//! compute uses. The lower half is what is missing to the master's bits. So a bf16 run stores 4
//! bytes of weight a parameter, and reads its compute weights without the rest.

use super::dispatch::dispatched;
use crate::base::{Error, Result};

/// Upper and lower half of an f32's bits. Every bit pattern comes back from [`join`].
#[inline(always)]
pub fn split(x: f32) -> (u16, i16) {
    let bits = x.to_bits();
    let hi = bits.wrapping_add(0x8000) >> 16;
    (hi as u16, bits.wrapping_sub(hi << 16) as u16 as i16)
}

/// The f32 whose halves are `hi` and `lo`.
#[inline(always)]
pub fn join(hi: u16, lo: i16) -> f32 {
    f32::from_bits((u32::from(hi) << 16).wrapping_add(i32::from(lo) as u32))
}

#[inline(always)]
fn split_body(x: &[f32], hi: &mut [u16], lo: &mut [i16]) {
    for ((&x, hi), lo) in x.iter().zip(hi).zip(lo) {
        (*hi, *lo) = split(x);
    }
}

#[inline(always)]
fn join_body(hi: &[u16], lo: &[i16], x: &mut [f32]) {
    for ((&hi, &lo), x) in hi.iter().zip(lo).zip(x) {
        *x = join(hi, lo);
    }
}

dispatched! {
    fn split_slices(x: &[f32], hi: &mut [u16], lo: &mut [i16]) = split_body;
}
dispatched! {
    fn join_slices(hi: &[u16], lo: &[i16], x: &mut [f32]) = join_body;
}

/// Splits masters into their halves.
///
/// # Errors
/// [`crate::base::ErrorKind::Bug`] when the lengths differ.
pub fn split_master(x: &[f32], hi: &mut [u16], lo: &mut [i16]) -> Result<()> {
    same_length(x.len(), hi.len(), lo.len())?;
    split_slices(x, hi, lo);
    Ok(())
}

/// Joins the halves of masters.
///
/// # Errors
/// [`crate::base::ErrorKind::Bug`] when the lengths differ.
pub fn join_master(hi: &[u16], lo: &[i16], x: &mut [f32]) -> Result<()> {
    same_length(x.len(), hi.len(), lo.len())?;
    join_slices(hi, lo, x);
    Ok(())
}

fn same_length(x: usize, hi: usize, lo: usize) -> Result<()> {
    if x == hi && x == lo {
        return Ok(());
    }
    let text = "master and halves differ in length";
    Err(Error::bug(text).with("master", x).with("upper", hi).with("lower", lo))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_bit_pattern_comes_back() {
        let edges = [0u32, 1, 0x7fff, 0x8000, 0x8001, 0x7f7f_ffff, 0x7f80_0000, 0x7fff_ffff];
        let edges = edges.into_iter().chain([0x8000_0000, 0xff80_0000, 0xffff_7fff, 0xffff_8000]);
        let spread = (0..200_000u32).map(|i| i.wrapping_mul(0x9e37_79b9));
        let bits: Vec<u32> = edges.chain([u32::MAX]).chain(spread).collect();
        let x: Vec<f32> = bits.iter().map(|b| f32::from_bits(*b)).collect();
        let (mut hi, mut lo) = (vec![0; x.len()], vec![0; x.len()]);
        split_master(&x, &mut hi, &mut lo).unwrap();
        let mut back = vec![0f32; x.len()];
        join_master(&hi, &lo, &mut back).unwrap();
        for (b, y) in bits.iter().zip(&back) {
            assert_eq!(*b, y.to_bits(), "{b:#x}");
        }
    }

    #[test]
    fn the_upper_half_is_the_nearest_bf16() {
        for i in 0..100_000u32 {
            let x = f32::from_bits(0x3c00_0000 + i.wrapping_mul(977) % 0x0400_0000);
            let upper = f32::from_bits(u32::from(split(x).0) << 16);
            let nearest = half::bf16::from_f32(x).to_f32();
            assert!((upper - x).abs() <= (nearest - x).abs());
        }
    }
}
