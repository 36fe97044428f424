//! The dense part of a model: embedding, attention, norms, shared expert, router, head. What a
//! layer's routed experts need comes out of [`DenseModel::layer`]; what they give goes into the
//! next layer's input.
//!
//! ```text
//! x ─ norm ─ attention ─(+x)─┬─ h ──────────────────────(+ shared expert)──► h
//!                            └─ norm ─ y ─► experts, router ─► logits
//! next x = h + combined expert outputs
//! ```
//!
//! Explicit, forward and backward, without an autograd graph. A tape holds what the backward pass
//! cannot find again in a pass over a row: not the norms' results, and no sum twice. The layer with and
//! without a tape runs the same operations, so both give the same bits.
//!
//! Legend: B sequences, S tokens of one, T = B·S tokens, H hidden, E experts, V vocabulary.

use super::attention::{Attended, Attention};
use super::compute;
use super::config::{ModelConfig, Precision};
use super::family::Slot;
use super::loss::{self, RowsLoss};
use super::norm::Norm;
use super::params::{DenseParams, Param};
use super::rotary::{Angles, Rotary};
use super::shared::SharedExpert;
use crate::base::{Error, Result};
use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use tch::{Kind, Tensor};

/// What a layer hands to its gate and experts.
#[derive(Debug)]
pub struct LayerOut {
    /// Residual stream with attention and shared expert added, f32 `[T,H]`.
    pub h_th: Tensor,
    /// Input of the routed experts, compute type `[T,H]`.
    pub y_th: Tensor,
    /// Router logits, f32 `[T,E]`.
    pub logits_te: Tensor,
}

/// What a layer's backward pass needs.
#[derive(Debug)]
pub struct LayerTape {
    layer: usize,
    /// The layer's input, as it was given.
    x: Tensor,
    attended: Attended,
    /// Residual stream after attention, f32 `[T,H]`.
    h_th: Tensor,
    /// Its norm, in the type of the dense part `[T,H]`.
    y_th: Tensor,
}

/// Loss of a micro-batch and its gradient.
#[derive(Debug)]
pub struct HeadLoss {
    /// Sum of -log p(target) over the counted targets.
    pub nll_sum: f64,
    /// Targets counted (those that are not [`loss::IGNORE`]).
    pub targets: usize,
    /// scale · d nll_sum / d x, f32, shape of x.
    pub dx: Tensor,
}

#[derive(Debug)]
struct Layer {
    input_norm: Norm,
    attention: Attention,
    post_norm: Norm,
    router: Param,
    shared: Option<SharedExpert>,
}

/// The dense part of a model with its parameters.
#[derive(Debug)]
pub struct DenseModel {
    config: ModelConfig,
    precision: Precision,
    params: DenseParams,
    embed: Param,
    layers: Vec<Layer>,
    final_norm: Norm,
    /// None where tied to the embedding.
    head: Option<Param>,
    rotary: Rotary,
    /// By length of a sequence.
    angles: RefCell<HashMap<usize, Rc<Angles>>>,
}

impl DenseModel {
    /// A model over `params`, which must be laid out for the same config and precision.
    pub fn new(config: ModelConfig, precision: Precision, params: DenseParams) -> Result<Self> {
        let need = |layer, slot| {
            params
                .param(layer, slot)?
                .ok_or_else(|| Error::bug(format!("dense parameters lack {slot:?}")))
        };
        // What products are computed in.
        let kind = compute::dense(precision).kind();
        let norm = |layer, slot| Ok::<_, Error>(Norm::new(&config, need(layer, slot)?, kind));
        let mut layers = Vec::with_capacity(config.layers);
        for l in 0..config.layers {
            layers.push(Layer {
                input_norm: norm(Some(l), Slot::InputNorm)?,
                attention: Attention::new(&config, precision, &params, l)?,
                post_norm: norm(Some(l), Slot::PostNorm)?,
                router: need(Some(l), Slot::Router)?,
                shared: SharedExpert::new(&params, l)?,
            });
        }
        let embed = need(None, Slot::Embed)?;
        let final_norm = norm(None, Slot::FinalNorm)?;
        let head = params.param(None, Slot::Head)?;
        let rotary = Rotary::new(&config);
        let angles = RefCell::default();
        Ok(Self { config, precision, params, embed, layers, final_norm, head, rotary, angles })
    }

    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    pub fn precision(&self) -> Precision {
        self.precision
    }

    pub fn params(&self) -> &DenseParams {
        &self.params
    }

    /// The parameters, for the optimizer and for snapshots. After a change of masters call
    /// [`DenseParams::refresh`].
    pub fn params_mut(&mut self) -> &mut DenseParams {
        &mut self.params
    }

    /// Embeddings of `ids` `[B,S]` i64: f32 `[B,S,H]`.
    ///
    /// # Errors
    /// Torch if an id is outside the vocabulary.
    pub fn embed(&self, ids: &Tensor) -> Result<Tensor> {
        let x = Tensor::f_embedding(&self.embed.value, ids, -1, false, false)?;
        Ok(x.f_to_kind(Kind::Float)?)
    }

    /// Adds the embedding's gradient: `dx` f32 `[B,S,H]` for `ids` `[B,S]`, in token order.
    pub fn embed_backward(&self, ids: &Tensor, dx: &Tensor) -> Result<()> {
        let (rows, h) = (ids.numel() as i64, self.config.hidden as i64);
        let index = ids.f_reshape([rows])?;
        let mut grad = self.embed.grad().shallow_clone();
        let _ = grad.f_index_add_(0, &index, &dx.f_reshape([rows, h])?)?;
        Ok(())
    }

    /// One layer up to its experts: `x` f32 `[B,S,H]` from position 0.
    pub fn layer(&self, l: usize, x: &Tensor) -> Result<LayerOut> {
        self.layer_out(&self.layer_tape(l, x)?)
    }

    /// The same up to what [`DenseModel::layer_backward`] needs: [`DenseModel::layer_out`] gives the
    /// outputs.
    pub fn layer_tape(&self, l: usize, x: &Tensor) -> Result<LayerTape> {
        let layer = self.at(l)?;
        let x = x.f_contiguous()?;
        let angles = self.angles(x.size3()?.1 as usize);
        let attended = layer.attention.forward(&layer.input_norm.forward(&x)?, &angles)?;
        let o_th = layer.attention.output(&attended)?;
        let [h_th, y_th] = layer.post_norm.add_forward(&x, &o_th)?;
        Ok(LayerTape { layer: l, x, attended, h_th, y_th })
    }

    /// A layer's outputs, sharing memory with the tape where they can.
    pub fn layer_out(&self, tape: &LayerTape) -> Result<LayerOut> {
        let layer = self.at(tape.layer)?;
        let y32_th = tape.y_th.f_to_kind(Kind::Float)?;
        let logits_te = y32_th.f_linear(&layer.router.value, None::<&Tensor>)?;
        let h_th = match &layer.shared {
            Some(shared) => tape.h_th.f_add(&shared.forward(&tape.y_th, &y32_th)?)?,
            None => tape.h_th.shallow_clone(),
        };
        Ok(LayerOut { h_th, y_th: tape.y_th.f_to_kind(self.precision.kind())?, logits_te })
    }

    /// Gradient of a layer's input, f32 `[B,S,H]`, from those of its outputs: `dh_th` f32,
    /// `dy_th` f32 or compute type (whose memory it uses), `dlogits_te` f32. Parameter gradients are
    /// added to the flat gradient.
    pub fn layer_backward(
        &self,
        tape: LayerTape,
        dh_th: &Tensor,
        dy_th: Tensor,
        dlogits_te: &Tensor,
    ) -> Result<Tensor> {
        let LayerTape { layer, x, attended, h_th, y_th } = tape;
        let layer = self.at(layer)?;
        let mut dy_th = dy_th.f_to_kind(Kind::Float)?;
        let y32_th = y_th.f_to_kind(Kind::Float)?;
        layer.router.accumulate_product(dlogits_te, &y32_th)?;
        let _ = dy_th.f_addmm_(dlogits_te, &layer.router.value)?;
        if let Some(shared) = &layer.shared {
            shared.backward(&y_th, &y32_th, dh_th, &mut dy_th)?;
        }
        drop((y_th, y32_th));
        let dh_th = layer.post_norm.backward(&h_th, &dy_th, Some(dh_th))?;
        drop((h_th, dy_th));

        let angles = self.angles(x.size3()?.1 as usize);
        let n_th = layer.input_norm.forward(&x)?;
        let dn_th = layer.attention.backward(attended, &n_th, &dh_th, &angles)?;
        drop(n_th);
        let dx_th = layer.input_norm.backward(&x, &dn_th, Some(&dh_th))?;
        Ok(dx_th.f_view_as(&x)?)
    }

    /// Loss of the last layer's output `x` f32 `[B,S,H]` against `targets` `[B,S]` i64 (those that
    /// are [`loss::IGNORE`] do not count), and the gradient of `scale` times the sum. Gradients
    /// of head and final norm are added.
    ///
    /// # Errors
    /// Input if a target is outside the vocabulary.
    pub fn head_loss(&self, x: &Tensor, targets: &Tensor, scale: f64) -> Result<HeadLoss> {
        let x = x.f_contiguous()?;
        let targets: Vec<i64> = Vec::try_from(&targets.f_reshape([-1])?)?;
        let n_th = self.final_norm.forward(&x)?;
        let RowsLoss { nll_sum, targets, dx_th } =
            loss::rows_loss(&n_th, self.head_param(), &targets, scale)?;
        let dx = self.final_norm.backward(&x, &dx_th, None)?.f_view_as(&x)?;
        Ok(HeadLoss { nll_sum, targets, dx })
    }

    /// Logits of `x` f32 [..,H]: f32 `[T,V]`.
    pub fn head_logits(&self, x: &Tensor) -> Result<Tensor> {
        let n_th = self.final_norm.forward(&x.f_contiguous()?)?;
        let logits = n_th.f_linear(&self.head_param().value, None::<&Tensor>)?;
        Ok(logits.f_to_kind(Kind::Float)?)
    }

    /// -log p(target) of every row, f32 `[T]` (0 where the target is ignored).
    pub fn head_nll(&self, x: &Tensor, targets: &Tensor) -> Result<Tensor> {
        let targets: Vec<i64> = Vec::try_from(&targets.f_reshape([-1])?)?;
        let n_th = self.final_norm.forward(&x.f_contiguous()?)?;
        loss::nll_rows(&n_th, &self.head_param().value, &targets)
    }

    fn head_param(&self) -> &Param {
        self.head.as_ref().unwrap_or(&self.embed)
    }

    fn at(&self, l: usize) -> Result<&Layer> {
        self.layers.get(l).ok_or_else(|| Error::bug(format!("the model has no layer {l}")))
    }

    /// Angles of positions 0..len, kept because every layer and step asks for the same.
    fn angles(&self, len: usize) -> Rc<Angles> {
        let mut kept = self.angles.borrow_mut();
        if let Some(angles) = kept.get(&len) {
            return Rc::clone(angles);
        }
        if kept.len() >= 8 {
            kept.clear();
        }
        let mut angles = Angles::default();
        self.rotary.at(0..len, &mut angles);
        let angles = Rc::new(angles);
        kept.insert(len, Rc::clone(&angles));
        angles
    }
}

#[cfg(test)]
mod layer_tests;
#[cfg(test)]
mod tests;
