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
//! The layer with and without a tape runs the same operations, so both give the same bits.
//!
//! Legend: B sequences, S tokens of one, T = B·S tokens, H hidden, E experts, V vocabulary.

use super::attention::{Attended, Attention, Qkv};
use super::autograd;
use super::compute;
use super::config::{ModelConfig, Precision};
use super::family::Slot;
use super::loss::{self, RowsLoss};
use super::norm::rms_norm;
use super::params::{DenseParams, Param};
use super::rope::{Rope, Rotation};
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

/// A layer's outputs with the graphs behind them: one up to attention, one from its context on.
#[derive(Debug)]
pub struct LayerTape {
    layer: usize,
    /// The type in which experts take their input.
    kind: Kind,
    x: Tensor,
    qkv: Qkv,
    attended: Attended,
    /// The context as the second graph's input.
    context: Tensor,
    out: LayerOut,
}

impl LayerTape {
    /// The outputs without their graph, sharing memory with the tape where their type is the same.
    pub fn out(&self) -> Result<LayerOut> {
        Ok(LayerOut {
            h_th: self.out.h_th.f_detach()?,
            y_th: self.out.y_th.f_detach()?.f_to_kind(self.kind)?,
            logits_te: self.out.logits_te.f_detach()?,
        })
    }
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
    input_norm: Param,
    attention: Attention,
    post_norm: Param,
    router: Param,
    shared: Option<SharedExpert>,
}

/// The dense part of a model with its parameters.
#[derive(Debug)]
pub struct DenseModel {
    config: ModelConfig,
    precision: Precision,
    /// What products are computed in: [`compute::dense`] of the precision.
    kind: Kind,
    params: DenseParams,
    embed: Param,
    layers: Vec<Layer>,
    final_norm: Param,
    /// None where tied to the embedding.
    head: Option<Param>,
    rope: Rope,
    rotations: RefCell<HashMap<i64, Rc<Rotation>>>,
}

impl DenseModel {
    /// A model over `params`, which must be laid out for the same config and precision.
    pub fn new(config: ModelConfig, precision: Precision, params: DenseParams) -> Result<Self> {
        let need = |layer, slot| {
            params
                .param(layer, slot)?
                .ok_or_else(|| Error::bug(format!("dense parameters lack {slot:?}")))
        };
        let mut layers = Vec::with_capacity(config.layers);
        for l in 0..config.layers {
            layers.push(Layer {
                input_norm: need(Some(l), Slot::InputNorm)?,
                attention: Attention::new(&config, precision, &params, l)?,
                post_norm: need(Some(l), Slot::PostNorm)?,
                router: need(Some(l), Slot::Router)?,
                shared: SharedExpert::new(&params, l)?,
            });
        }
        let embed = need(None, Slot::Embed)?;
        let final_norm = need(None, Slot::FinalNorm)?;
        let head = params.param(None, Slot::Head)?;
        let rope = Rope::new(config.rope_theta, config.head_dim)?;
        let kind = compute::dense(precision).kind();
        let rotations = RefCell::default();
        Ok(Self {
            config,
            precision,
            kind,
            params,
            embed,
            layers,
            final_norm,
            head,
            rope,
            rotations,
        })
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
        tch::no_grad(|| {
            let x = Tensor::f_embedding(&self.embed.leaf, ids, -1, false, false)?;
            Ok(x.f_to_kind(Kind::Float)?)
        })
    }

    /// Adds the embedding's gradient: `dx` f32 `[B,S,H]` for `ids` `[B,S]`, in token order.
    pub fn embed_backward(&self, ids: &Tensor, dx: &Tensor) -> Result<()> {
        let (rows, h) = (ids.numel() as i64, self.config.hidden as i64);
        let index = ids.f_reshape([rows])?;
        let mut grad = self.embed.grad().shallow_clone();
        let _ = grad.f_index_add_(0, &index, &dx.f_reshape([rows, h])?)?;
        Ok(())
    }

    /// One layer up to its experts, without a graph: `x` f32 `[B,S,H]` from position 0.
    pub fn layer(&self, l: usize, x: &Tensor) -> Result<LayerOut> {
        let mut out = tch::no_grad(|| {
            let attention = &self.at(l)?.attention;
            let context = attention.attend(&self.project(l, x)?)?.context;
            self.after_attention(l, x, &context)
        })?;
        out.y_th = out.y_th.f_to_kind(self.precision.kind())?;
        Ok(out)
    }

    /// The same with the graph that [`DenseModel::layer_backward`] needs; bit-identical.
    pub fn layer_tape(&self, l: usize, x: &Tensor) -> Result<LayerTape> {
        tch::with_grad(|| {
            let x = x.f_detach()?.f_set_requires_grad(true)?;
            let qkv = self.project(l, &x)?;
            let attended = tch::no_grad(|| self.at(l)?.attention.attend(&qkv))?;
            let context = attended.context.f_detach()?.f_set_requires_grad(true)?;
            let out = self.after_attention(l, &x, &context)?;
            let kind = self.precision.kind();
            Ok(LayerTape { layer: l, kind, x, qkv, attended, context, out })
        })
    }

    /// Gradient of a layer's input, f32 `[B,S,H]`, from those of its outputs: `dh_th` f32,
    /// `dy_th` f32 or compute type, `dlogits_te` f32. Parameter gradients are added to the flat
    /// gradient.
    pub fn layer_backward(
        &self,
        tape: LayerTape,
        dh_th: &Tensor,
        dy_th: &Tensor,
        dlogits_te: &Tensor,
    ) -> Result<Tensor> {
        let LayerTape { layer, x, qkv, attended, context, out, .. } = tape;
        let params = self.layer_params(layer)?;
        let inputs: Vec<&Tensor> =
            [&x, &context].into_iter().chain(params.iter().map(|param| &param.leaf)).collect();
        // Adds the parameters' gradients; answers those of x and of the context.
        let backward = |outputs: [&Tensor; 3], grads: [&Tensor; 3]| -> Result<_> {
            let grads = autograd::grad(&outputs, &grads, &inputs, false)?;
            let mut grads = grads.into_iter();
            let of_inputs = [grads.next().flatten(), grads.next().flatten()];
            for (param, grad) in params.iter().zip(grads) {
                if let Some(grad) = grad {
                    tch::no_grad(|| param.accumulate(&grad))?;
                }
            }
            Ok(of_inputs)
        };
        let missing = || Error::bug("a layer's output does not depend on its input");
        let dy_th = dy_th.f_to_kind(out.y_th.f_kind()?)?;
        let outputs = [&out.h_th, &out.y_th, &out.logits_te];
        let [dx, d_context] = backward(outputs, [dh_th, &dy_th, dlogits_te])?;
        drop(out);
        let d_context = d_context.ok_or_else(missing)?;
        let attention = &self.at(layer)?.attention;
        let made = tch::no_grad(|| attention.attend_backward(&qkv, &attended, &d_context))?;
        let [more, _] = backward([&qkv.q, &qkv.k, &qkv.v], [&made.q, &made.k, &made.v])?;
        tch::no_grad(|| Ok(dx.ok_or_else(missing)?.f_add(&more.ok_or_else(missing)?)?))
    }

    /// Loss of the last layer's output `x` f32 `[B,S,H]` against `targets` `[B,S]` i64 (those that
    /// are [`loss::IGNORE`] do not count), and the gradient of `scale` times the sum. Gradients
    /// of head and final norm are added.
    ///
    /// # Errors
    /// Input if a target is outside the vocabulary.
    pub fn head_loss(&self, x: &Tensor, targets: &Tensor, scale: f64) -> Result<HeadLoss> {
        let (x, n) = tch::with_grad(|| -> Result<_> {
            let x = x.f_detach()?.f_set_requires_grad(true)?;
            let n = self.final_norm(&x)?;
            Ok((x, n))
        })?;
        let targets: Vec<i64> = Vec::try_from(&targets.f_reshape([-1])?)?;
        let RowsLoss { nll_sum, targets, dx_th } =
            tch::no_grad(|| loss::rows_loss(&n.f_detach()?, self.head_param(), &targets, scale))?;
        let inputs = [&x, &self.final_norm.leaf];
        let mut grads = autograd::grad(&[&n], &[&dx_th], &inputs, false)?.into_iter();
        let dx = grads.next().flatten().ok_or_else(|| Error::bug("head has no input gradient"))?;
        if let Some(grad) = grads.next().flatten() {
            tch::no_grad(|| self.final_norm.accumulate(&grad))?;
        }
        Ok(HeadLoss { nll_sum, targets, dx })
    }

    /// Logits of `x` f32 [..,H]: f32 `[T,V]`, without a graph.
    pub fn head_logits(&self, x: &Tensor) -> Result<Tensor> {
        tch::no_grad(|| {
            let logits = self.final_norm(x)?.f_linear(&self.head_param().leaf, None::<&Tensor>)?;
            Ok(logits.f_to_kind(Kind::Float)?)
        })
    }

    /// -log p(target) of every row, f32 `[T]` (0 where the target is ignored), without a graph.
    pub fn head_nll(&self, x: &Tensor, targets: &Tensor) -> Result<Tensor> {
        let targets: Vec<i64> = Vec::try_from(&targets.f_reshape([-1])?)?;
        tch::no_grad(|| loss::nll_rows(&self.final_norm(x)?, &self.head_param().leaf, &targets))
    }

    fn head_param(&self) -> &Param {
        self.head.as_ref().unwrap_or(&self.embed)
    }

    /// Final norm as rows `[T,H]` in the compute type.
    fn final_norm(&self, x: &Tensor) -> Result<Tensor> {
        let n = rms_norm(x, &self.final_norm.leaf, self.config.norm_eps, self.kind)?;
        Ok(n.f_reshape([-1, self.config.hidden as i64])?)
    }

    /// Queries, keys and values of a layer's input.
    fn project(&self, l: usize, x: &Tensor) -> Result<Qkv> {
        let layer = self.at(l)?;
        let (_, s, _) = x.size3()?;
        let n = rms_norm(x, &layer.input_norm.leaf, self.config.norm_eps, self.kind)?;
        layer.attention.project(&n, self.rotation(s)?.as_ref())
    }

    /// A layer from attention's context on.
    fn after_attention(&self, l: usize, x: &Tensor, context: &Tensor) -> Result<LayerOut> {
        let layer = self.at(l)?;
        self.tail(layer, &x.f_add(&layer.attention.output(context)?)?)
    }

    /// From the residual after attention, [..,H], to the layer's outputs.
    fn tail(&self, layer: &Layer, h: &Tensor) -> Result<LayerOut> {
        let (eps, kind) = (self.config.norm_eps, self.kind);
        let h_th = h.f_reshape([-1, self.config.hidden as i64])?;
        let y_th = rms_norm(&h_th, &layer.post_norm.leaf, eps, kind)?;
        let y32_th = y_th.f_to_kind(Kind::Float)?;
        let logits_te = y32_th.f_linear(&layer.router.leaf, None::<&Tensor>)?;
        let h_th = match &layer.shared {
            Some(shared) => h_th.f_add(&shared.forward(&y_th, &y32_th)?)?,
            None => h_th,
        };
        Ok(LayerOut { h_th, y_th, logits_te })
    }

    fn at(&self, l: usize) -> Result<&Layer> {
        self.layers.get(l).ok_or_else(|| Error::bug(format!("the model has no layer {l}")))
    }

    fn layer_params(&self, l: usize) -> Result<Vec<&Param>> {
        let layer = self.at(l)?;
        let mut all = vec![&layer.input_norm];
        all.extend(layer.attention.params());
        all.extend([&layer.post_norm, &layer.router]);
        all.extend(layer.shared.iter().flat_map(SharedExpert::params));
        Ok(all)
    }

    /// Rotation of positions 0..len, kept because every layer and step asks for the same.
    fn rotation(&self, len: i64) -> Result<Rc<Rotation>> {
        let mut kept = self.rotations.borrow_mut();
        if let Some(rotation) = kept.get(&len) {
            return Ok(Rc::clone(rotation));
        }
        if kept.len() >= 8 {
            kept.clear();
        }
        let rotation = Rc::new(self.rope.first(len)?);
        kept.insert(len, Rc::clone(&rotation));
        Ok(rotation)
    }
}

#[cfg(test)]
mod tests;
