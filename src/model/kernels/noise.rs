//! Numbers for tests: the same in every run, whatever other tests draw from libtorch's generator.

use tch::{Kind, Tensor};

/// A tensor of numbers between -2 and 2.
pub fn noise(size: &[i64], seed: u32, kind: Kind) -> Tensor {
    let mut state = seed;
    let mut draw = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 22) as f32 - 2.0
    };
    let values: Vec<f32> = (0..size.iter().product()).map(|_| draw()).collect();
    Tensor::from_slice(&values).view(size).to_kind(kind)
}
