//! The shared expert: a SwiGLU that every token passes, scaled by a sigmoid gate (Qwen2-MoE).
//!
//! ```text
//! forward   y_th ─ gate_up [2F,H] ─▶ SwiGLU ─▶ act_tf ─ down [H,F] ─▶ · sigmoid(y · gate)
//! backward  as of a routed expert, with the sigmoid as its router weight; gate and up are
//!           computed anew
//! ```
//!
//! Legend: T tokens, H hidden, F shared width.

use super::family::Slot;
use super::kernels::swiglu::{self, SwigluNumber};
use super::kernels::view::{elements, elements_mut};
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

    /// sigmoid(y · gate) · down(silu(gate(y)) · up(y)), f32 `[T,H]`; `y_th` in the compute type,
    /// `y32_th` the same in f32.
    pub fn forward(&self, y_th: &Tensor, y32_th: &Tensor) -> Result<Tensor> {
        let gate_up_t2f = y_th.f_linear(&self.gate_up.value, None::<&Tensor>)?;
        let act_tf = match y_th.f_kind()? {
            Kind::BFloat16 => activate::<u16>(&gate_up_t2f)?,
            _ => activate::<f32>(&gate_up_t2f)?,
        };
        let out_th = act_tf.f_linear(&self.down.value, None::<&Tensor>)?.f_to_kind(Kind::Float)?;
        Ok(out_th.f_mul(&self.scale(y32_th)?)?)
    }

    /// Adds the gradient of `y_th` to `dy_th`, f32, and the parameters' to theirs: from that of
    /// [`Self::forward`]'s result, f32 `[T,H]`.
    pub fn backward(
        &self,
        y_th: &Tensor,
        y32_th: &Tensor,
        d_out_th: &Tensor,
        dy_th: &mut Tensor,
    ) -> Result<()> {
        match y_th.f_kind()? {
            Kind::BFloat16 => self.backward_in::<u16>(y_th, y32_th, d_out_th, dy_th),
            _ => self.backward_in::<f32>(y_th, y32_th, d_out_th, dy_th),
        }
    }

    fn backward_in<T: SwigluNumber>(
        &self,
        y_th: &Tensor,
        y32_th: &Tensor,
        d_out_th: &Tensor,
        dy_th: &mut Tensor,
    ) -> Result<()> {
        let d_out_th = d_out_th.f_to_kind(T::KIND)?;
        let gate_up_t2f = y_th.f_linear(&self.gate_up.value, None::<&Tensor>)?;
        let dact_tf = d_out_th.f_mm(&self.down.value)?;
        let scale_t1 = self.scale(y32_th)?;
        let mut d_gate_up_t2f = gate_up_t2f.f_empty_like()?;
        let mut scaled_tf = dact_tf.f_empty_like()?;
        let mut d_scale_t1 = scale_t1.f_empty_like()?;
        swiglu::backward(
            swiglu::Backward {
                gate_up: elements::<T>(&gate_up_t2f)?,
                dact: elements::<T>(&dact_tf)?,
                weights: elements(&scale_t1)?,
                d_gate_up: elements_mut::<T>(&mut d_gate_up_t2f)?,
                act_weighted: elements_mut::<T>(&mut scaled_tf)?,
                d_weights: elements_mut(&mut d_scale_t1)?,
            },
            dact_tf.size2()?.1 as usize,
        )?;
        self.down.accumulate_product(&d_out_th, &scaled_tf)?;
        self.gate_up.accumulate_product(&d_gate_up_t2f, y_th)?;
        let _ = dy_th.f_add_(&d_gate_up_t2f.f_mm(&self.gate_up.value)?)?;
        let d_score_t1 = d_scale_t1.f_mul(&scale_t1)?.f_mul(&scale_t1.f_neg()?.f_add_scalar(1)?)?;
        self.gate.accumulate_product(&d_score_t1, y32_th)?;
        let _ = dy_th.f_addmm_(&d_score_t1, &self.gate.value)?;
        Ok(())
    }

    fn scale(&self, y32_th: &Tensor) -> Result<Tensor> {
        Ok(y32_th.f_linear(&self.gate.value, None::<&Tensor>)?.f_sigmoid()?)
    }
}

/// silu(gate) · up of `[T,2F]`, `[T,F]`.
fn activate<T: SwigluNumber>(gate_up_t2f: &Tensor) -> Result<Tensor> {
    let (rows, width) = gate_up_t2f.size2()?;
    let mut act_tf = gate_up_t2f.f_new_empty([rows, width / 2], (T::KIND, gate_up_t2f.device()))?;
    let out = elements_mut(&mut act_tf)?;
    swiglu::forward::<T>(elements(gate_up_t2f)?, out, width as usize / 2)?;
    Ok(act_tf)
}
