//! Sums that do not depend on the number of threads: fixed blocks, added in order.

use super::dispatch::dispatched;
use super::float::from_bf16;
use super::parallel::{Threads, parallel_each};
use crate::base::{Error, Result};

/// Elements of one partial sum; part of the definition of the result.
const BLOCK: usize = 16 * 1024;
/// Accumulators of one block, one a vector lane.
const LANES: usize = 16;

#[inline(always)]
fn block_body(x: &[f32]) -> f64 {
    let mut lanes = [0f64; LANES];
    let mut chunks = x.chunks_exact(LANES);
    for chunk in &mut chunks {
        for (lane, &value) in lanes.iter_mut().zip(chunk) {
            let wide = f64::from(value);
            *lane += wide * wide;
        }
    }
    for (lane, &value) in lanes.iter_mut().zip(chunks.remainder()) {
        let wide = f64::from(value);
        *lane += wide * wide;
    }
    lanes.iter().sum()
}

dispatched! {
    fn block_sum_squares(x: &[f32]) -> f64 = block_body;
}

/// Σ x², in f64. The square of a finite f32 cannot overflow f64, so the result is finite
/// exactly when every element is: this is the non-finite check too.
///
/// # Errors
/// As [`parallel_each`].
pub fn sum_squares(x: &[f32], threads: Threads) -> Result<f64> {
    let mut sums = vec![0f64; x.len().div_ceil(BLOCK)];
    let jobs: Vec<_> = x.chunks(BLOCK).zip(sums.iter_mut()).collect();
    parallel_each(threads, jobs, |_, (block, sum)| *sum = block_sum_squares(block))?;
    Ok(sums.iter().sum())
}

#[inline(always)]
fn set_body(source: &[u16], sum: &mut [f32]) {
    for (&x, sum) in source.iter().zip(sum) {
        *sum = from_bf16(x);
    }
}

#[inline(always)]
fn add_body(source: &[u16], sum: &mut [f32]) {
    for (&x, sum) in source.iter().zip(sum) {
        *sum += from_bf16(x);
    }
}

dispatched! {
    fn set_block(source: &[u16], sum: &mut [f32]) = set_body;
}
dispatched! {
    fn add_block(source: &[u16], sum: &mut [f32]) = add_body;
}

/// sum = source when `first`, else sum += source; `source` is bf16.
///
/// # Errors
/// [`crate::base::ErrorKind::Bug`] when the lengths differ; otherwise as [`parallel_each`].
pub fn accumulate(source: &[u16], sum: &mut [f32], first: bool) -> Result<()> {
    if source.len() != sum.len() {
        let text = "a gradient does not fit its slot";
        return Err(Error::bug(text).with("gradient", source.len()).with("slot", sum.len()));
    }
    let jobs: Vec<_> = source.chunks(BLOCK).zip(sum.chunks_mut(BLOCK)).collect();
    let run = if first { set_block } else { add_block };
    parallel_each(Threads::Pool, jobs, |_, (source, sum)| run(source, sum))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sum_is_right_and_independent_of_threads() {
        let x: Vec<f32> = (0..70_001).map(|i| ((i * 37 % 101) as f32 - 50.0) * 0.01).collect();
        let want: f64 = x.iter().map(|v| f64::from(*v).powi(2)).sum();
        let one = sum_squares(&x, Threads::Calling).unwrap();
        let many = sum_squares(&x, Threads::Pool).unwrap();
        assert_eq!(one.to_bits(), many.to_bits());
        assert!((one - want).abs() < 1e-9 * want);
        assert_eq!(sum_squares(&[], Threads::Pool).unwrap(), 0.0);
    }

    #[test]
    fn one_bad_element_shows() {
        let mut x = vec![f32::MAX; 40_000];
        assert!(sum_squares(&x, Threads::Pool).unwrap().is_finite());
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            x[33_333] = bad;
            assert!(!sum_squares(&x, Threads::Pool).unwrap().is_finite());
        }
    }
}
