//! What a product needs besides its operands: threads, and scratch memory that is kept.

use super::input::Input;
use super::pool::Pool;
use super::simd::{Level, level};
use crate::base::Result;

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

impl Work {
    /// `threads` threads, the caller's included.
    ///
    /// # Errors
    /// As [`Pool::new`].
    pub fn new(threads: usize) -> Result<Self> {
        Ok(Self { pool: Pool::new(threads)?, level: level(), scratch: Scratch::default() })
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
