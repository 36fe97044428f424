//! Rotary position embedding with explicit positions (Su et al. 2021), in the half-split form
//! that Hugging Face models use: element i turns with element i + D/2.
//!
//! Legend: B sequences, S tokens of one, N heads, D head width.

use crate::base::Result;
use tch::{Device, Kind, Tensor};

/// Frequencies of a rotary embedding.
#[derive(Debug)]
pub struct Rope {
    inv_freq_d: Tensor,
}

/// Cosines and sines of given positions, f32 [.., S, 1, D/2].
#[derive(Debug)]
pub struct Rotation {
    pub cos: Tensor,
    pub sin: Tensor,
}

impl Rope {
    /// Frequencies theta^(-2i/D) for i in 0..D/2.
    pub fn new(theta: f64, head_dim: usize) -> Result<Self> {
        let half = head_dim / 2;
        // In f32 throughout, as transformers does, so that angles agree far out.
        let inv: Vec<f32> = (0..half)
            .map(|i| 1.0 / (theta as f32).powf((2 * i) as f32 / head_dim as f32))
            .collect();
        Ok(Self { inv_freq_d: Tensor::f_from_slice(&inv)? })
    }

    /// Rotation of `positions` `[S]` or `[B,S]`, i64.
    pub fn at(&self, positions: &Tensor) -> Result<Rotation> {
        let angles = positions
            .f_to_kind(Kind::Float)?
            .f_unsqueeze(-1)?
            .f_mul(&self.inv_freq_d)?
            .f_unsqueeze(-2)?;
        Ok(Rotation { cos: angles.f_cos()?, sin: angles.f_sin()? })
    }

    /// Rotation of positions 0..`len`.
    pub fn first(&self, len: i64) -> Result<Rotation> {
        self.at(&Tensor::f_arange(len, (Kind::Int64, Device::Cpu))?)
    }
}

impl Rotation {
    /// Rotates `x` `[B,S,N,D]` (f32 or bf16), giving `kind`.
    pub fn apply(&self, x: &Tensor, kind: Kind) -> Result<Tensor> {
        let halves = x.f_to_kind(Kind::Float)?.f_chunk(2, -1)?;
        let (a, b) = (&halves[0], &halves[1]);
        let first = a.f_mul(&self.cos)?.f_sub(&b.f_mul(&self.sin)?)?;
        let second = b.f_mul(&self.cos)?.f_add(&a.f_mul(&self.sin)?)?;
        Ok(Tensor::f_cat(&[first, second], -1)?.f_to_kind(kind)?)
    }
}
