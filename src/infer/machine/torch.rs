//! What libtorch is, and how fast it multiplies.

use super::Tell;
use crate::base::Result;
use crate::base::timing::median_seconds;
use crate::model::kernels::libtorch;
use crate::model::kernels::parallel::set_threads;
use serde::{Deserialize, Serialize};
use std::time::Duration;
use tch::{Device, Kind, Tensor};

/// Side of the square matrices.
const SIDE: i64 = 1024;
const PATIENCE: Duration = Duration::from_millis(150);
const MOST_RUNS: usize = 9;

/// Calls of `tell` while this is measured.
pub(super) const STEPS: u64 = 2;

/// What was found and measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TorchFigures {
    /// Such as `2.11.0`.
    pub version: String,
    /// GPUs that libtorch finds; 0 where it has no CUDA.
    pub cuda_devices: i64,
    /// Floating-point operations a second of a square product on the CPU.
    pub f32_flops: f64,
    pub bf16_flops: f64,
}

impl TorchFigures {
    /// Measures with `threads` threads; see [`super::Machine::measure`].
    ///
    /// # Errors
    /// `Torch` when libtorch fails, and what `tell` answers.
    pub fn measure(threads: usize, tell: &mut Tell<'_>) -> Result<Self> {
        set_threads(threads)?;
        tell("libtorch's products in f32")?;
        let f32_flops = flops(Kind::Float)?;
        tell("libtorch's products in bf16")?;
        let bf16_flops = flops(Kind::BFloat16)?;
        let has_cuda = tch::Cuda::is_available();
        Ok(Self {
            version: libtorch::version(),
            cuda_devices: if has_cuda { tch::Cuda::device_count() } else { 0 },
            f32_flops,
            bf16_flops,
        })
    }
}

fn flops(kind: Kind) -> Result<f64> {
    let make = || Tensor::f_ones([SIDE, SIDE], (kind, Device::Cpu));
    let (a, b) = (make()?, make()?);
    let seconds = tch::no_grad(|| {
        median_seconds(PATIENCE, MOST_RUNS, || {
            drop(a.f_mm(&b)?);
            Ok(())
        })
    })?;
    Ok(2.0 * (SIDE as f64).powi(3) / seconds)
}
