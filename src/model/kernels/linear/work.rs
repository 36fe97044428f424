//! What a product needs besides its operands: threads, and scratch memory that is kept.

use super::input::Input;
use super::pool::Pool;
use super::simd::{Level, level};
use crate::base::{Error, Result};

/// Threads and scratch of one executor. Scratch grows to what the largest product asked for, and
/// stays: steady decoding allocates nothing.
pub struct Work {
    pub(super) pool: Pool,
    pub(super) level: Level,
    pub(super) scratch: Scratch,
}

/// Memory that products reuse.
#[derive(Default)]
pub(super) struct Scratch {
    /// Activations taken in: two, for an expert whose gate and up want different forms.
    pub inputs: [Input; 2],
    /// An expert's gate and up [N, 2F], what they are joined to [N, F], its output [N, H].
    pub gate_up: Vec<f32>,
    pub act: Vec<f32>,
    pub out: Vec<f32>,
    /// Biases as f32: gate's and up's `[2F]`, down's `[H]`.
    pub bias: Vec<f32>,
}

/// The type that activations have in products with bf16 and FP8 weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activations {
    F32,
    /// Rounded to bf16, as the weights are: for processors that multiply pairs of them.
    Bf16,
}

impl Activations {
    /// The fastest on this processor.
    pub fn best() -> Self {
        if level() >= Level::Avx512Bf16 { Self::Bf16 } else { Self::F32 }
    }

    /// Whether this processor has the products.
    ///
    /// # Errors
    /// `Config` for bf16 where it has none.
    pub fn check(self) -> Result<()> {
        if self == Self::F32 || Self::best() == Self::Bf16 {
            return Ok(());
        }
        let text = "this processor has no products of bf16 pairs (AVX-512 BF16): activations must \
                    be f32";
        Err(Error::config(text))
    }

    /// The instructions that products with them use.
    fn level(self) -> Level {
        match self {
            Self::F32 => level().min(Level::Avx512Vnni),
            Self::Bf16 => level(),
        }
    }

    /// The same in words.
    pub fn instructions(self) -> &'static str {
        self.level().name()
    }

    /// The weights that activations of bf16 are rounded for, on this processor.
    pub fn rounded_for() -> &'static str {
        #[cfg(target_arch = "x86_64")]
        if super::e4m3::fits() {
            return "bf16 and FP8";
        }
        "bf16"
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        }
    }
}

impl Work {
    /// `threads` threads, the caller's included.
    ///
    /// # Errors
    /// As [`Pool::new`] and [`Activations::check`].
    pub fn new(threads: usize, activations: Activations) -> Result<Self> {
        activations.check()?;
        Ok(Self {
            pool: Pool::new(threads)?,
            level: activations.level(),
            scratch: Scratch::default(),
        })
    }

    pub fn activations(&self) -> Activations {
        if self.level >= Level::Avx512Bf16 { Activations::Bf16 } else { Activations::F32 }
    }

    /// Threads, the caller's included.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// The threads, for other loops of the forward pass.
    pub fn pool(&mut self) -> &mut Pool {
        &mut self.pool
    }
}

/// The first `len` elements of a buffer that grows and never shrinks; their values are whatever
/// was left there.
pub(super) fn sized<T: Clone + Default>(buffer: &mut Vec<T>, len: usize) -> &mut [T] {
    if buffer.len() < len {
        buffer.resize(len, T::default());
    }
    &mut buffer[..len]
}
