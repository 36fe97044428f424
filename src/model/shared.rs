//! The shared expert: a SwiGLU that every token passes, scaled by a sigmoid gate (Qwen2-MoE).
//!
//! Legend: T tokens, H hidden, F shared width.

use super::family::Slot;
use super::params::{DenseParams, Param};
use crate::base::{Error, Result};
use tch::{Kind, Tensor};

/// A layer's shared expert.
#[derive(Debug)]
pub struct SharedExpert {
    /// Gate and up projections as one matrix `[2F,H]`.
    gate_up: Param,
    down: Param,
    /// `[1,H]`, f32.
    gate: Param,
}

impl SharedExpert {
    /// None where the family has none.
    pub(in crate::model) fn new(params: &DenseParams, layer: usize) -> Result<Option<Self>> {
        let layer = Some(layer);
        let slots = [Slot::SharedGateProj, Slot::SharedUpProj];
        let Some(gate_up) = params.span(layer, &slots)? else { return Ok(None) };
        let missing = || Error::bug("the shared expert lacks a weight");
        Ok(Some(Self {
            gate_up,
            down: params.param(layer, Slot::SharedDownProj)?.ok_or_else(missing)?,
            gate: params.param(layer, Slot::SharedGate)?.ok_or_else(missing)?,
        }))
    }

    pub(in crate::model) fn params(&self) -> [&Param; 3] {
        [&self.gate_up, &self.down, &self.gate]
    }

    /// sigmoid(y · gate) · down(silu(gate(y)) · up(y)), f32 `[T,H]`; `y_th` in the compute type,
    /// `y32_th` the same in f32.
    pub fn forward(&self, y_th: &Tensor, y32_th: &Tensor) -> Result<Tensor> {
        let none = None::<&Tensor>;
        let gate_up = y_th.f_linear(&self.gate_up.leaf, none)?.f_chunk(2, -1)?;
        let act_tf = gate_up[0].f_silu()?.f_mul(&gate_up[1])?;
        let out_th = act_tf.f_linear(&self.down.leaf, none)?.f_to_kind(Kind::Float)?;
        let scale_t1 = y32_th.f_linear(&self.gate.leaf, none)?.f_sigmoid()?;
        Ok(out_th.f_mul(&scale_t1)?)
    }
}
