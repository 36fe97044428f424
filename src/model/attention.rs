//! Grouped-query attention in three steps: project (with norms and rotation by explicit positions)
//! and output under autograd, attend between them by kernels of our own.
//!
//! Legend: B sequences, S tokens of one, H hidden, N query heads, G key/value heads, D head width.

use super::compute;
use super::config::{ModelConfig, Precision};
use super::family::{QkNorm, Slot};
use super::kernels::vector::{AttentionTape, Element, Heads, attention, attention_backward};
use super::kernels::view::{elements, elements_mut};
use super::norm::rms_norm;
use super::params::{DenseParams, Param};
use super::rope::Rotation;
use crate::base::{Error, Result};
use tch::{Device, Kind, Tensor};

/// Attention of one layer.
#[derive(Debug)]
pub struct Attention {
    heads: i64,
    kv_heads: i64,
    head_dim: i64,
    kind: Kind,
    eps: f64,
    clip: Option<f64>,
    norm: QkNorm,
    qkv: Param,
    bias: Option<Param>,
    q_norm: Option<Param>,
    k_norm: Option<Param>,
    o: Param,
}

/// Projected, normed and rotated queries `[B,S,N,D]`, keys and values `[B,S,G,D]`, or the gradients
/// of these.
#[derive(Debug)]
pub struct Qkv {
    pub q: Tensor,
    pub k: Tensor,
    pub v: Tensor,
}

/// What attention gives, and what its backward pass needs of it.
#[derive(Debug)]
pub struct Attended {
    /// Compute type `[B,S,N·D]`.
    pub context: Tensor,
    /// Logarithm of each row's sum of exponentials, f32 `[B,N,S]`.
    log_sums: Tensor,
}

impl Attention {
    pub(in crate::model) fn new(
        config: &ModelConfig,
        precision: Precision,
        params: &DenseParams,
        layer: usize,
    ) -> Result<Self> {
        let layer = Some(layer);
        let missing = || Error::bug("attention has no weights");
        Ok(Self {
            heads: config.heads as i64,
            kv_heads: config.kv_heads as i64,
            head_dim: config.head_dim as i64,
            kind: compute::dense(precision).kind(),
            eps: config.norm_eps,
            clip: config.clip_qkv,
            norm: config.qk_norm,
            qkv: params.span(layer, &[Slot::Q, Slot::K, Slot::V])?.ok_or_else(missing)?,
            bias: params.span(layer, &[Slot::QBias, Slot::KBias, Slot::VBias])?,
            q_norm: params.param(layer, Slot::QNorm)?,
            k_norm: params.param(layer, Slot::KNorm)?,
            o: params.param(layer, Slot::O)?.ok_or_else(missing)?,
        })
    }

    /// Its parameters, in the fixed order in which gradients are added.
    pub(in crate::model) fn params(&self) -> Vec<&Param> {
        let optional = [&self.bias, &self.q_norm, &self.k_norm].into_iter().flatten();
        [&self.qkv, &self.o].into_iter().chain(optional).collect()
    }

    /// Queries, keys and values of `x` `[B,S,H]` (compute type) at the rotation's positions.
    pub fn project(&self, x: &Tensor, rotation: &Rotation) -> Result<Qkv> {
        let (b, s, _) = x.size3()?;
        let bias = self.bias.as_ref().map(|bias| &bias.leaf);
        let mut qkv = x.f_linear(&self.qkv.leaf, bias)?;
        if let Some(clip) = self.clip
            && self.norm != QkNorm::Full
        {
            qkv = qkv.f_clamp(-clip, clip)?;
        }
        let (n, g, d) = (self.heads, self.kv_heads, self.head_dim);
        let parts = qkv.f_split_with_sizes([n * d, g * d, g * d].as_slice(), -1)?;
        let q = self.turn(&parts[0], self.q_norm.as_ref(), [b, s, n, d], rotation)?;
        let k = self.turn(&parts[1], self.k_norm.as_ref(), [b, s, g, d], rotation)?;
        let mut v = parts[2].f_reshape([b, s, g, d])?;
        if let Some(clip) = self.clip
            && self.norm == QkNorm::Full
        {
            v = v.f_clamp(-clip, clip)?;
        }
        Ok(Qkv { q, k, v: v.f_contiguous()? })
    }

    /// Norm, clamp and rotation of one projection [B,S,N·D], giving `[B,S,N,D]`.
    fn turn(
        &self,
        x: &Tensor,
        norm: Option<&Param>,
        shape: [i64; 4],
        rotation: &Rotation,
    ) -> Result<Tensor> {
        let x = match (self.norm, norm) {
            (QkNorm::Full, Some(norm)) => {
                // OLMoE clamps after its norm.
                let mut x = rms_norm(x, &norm.leaf, self.eps, self.kind)?;
                if let Some(clip) = self.clip {
                    x = x.f_clamp(-clip, clip)?;
                }
                x.f_reshape(shape)?
            }
            (QkNorm::PerHead, Some(norm)) => {
                rms_norm(&x.f_reshape(shape)?, &norm.leaf, self.eps, self.kind)?
            }
            _ => x.f_reshape(shape)?,
        };
        rotation.apply(&x, self.kind)
    }

    /// Causal attention of each sequence over itself, without a graph.
    pub fn attend(&self, qkv: &Qkv) -> Result<Attended> {
        match self.kind {
            Kind::BFloat16 => self.attend_in::<u16>(qkv),
            _ => self.attend_in::<f32>(qkv),
        }
    }

    fn attend_in<T: Element>(&self, qkv: &Qkv) -> Result<Attended> {
        let (b, s, _, _) = qkv.q.size4()?;
        let size = [b, s, self.heads * self.head_dim];
        let mut context = Tensor::f_empty(size, (self.kind, Device::Cpu))?;
        let mut log_sums = Tensor::f_empty([b, self.heads, s], (Kind::Float, Device::Cpu))?;
        let inputs = [elements::<T>(&qkv.q)?, elements(&qkv.k)?, elements(&qkv.v)?];
        let out = elements_mut(&mut context)?;
        attention(self.shape(b, s), inputs, out, elements_mut(&mut log_sums)?)?;
        Ok(Attended { context, log_sums })
    }

    /// Gradients of what `attend` was given, from that of the context (compute type).
    pub fn attend_backward(&self, qkv: &Qkv, made: &Attended, d_out: &Tensor) -> Result<Qkv> {
        match self.kind {
            Kind::BFloat16 => self.attend_backward_in::<u16>(qkv, made, d_out),
            _ => self.attend_backward_in::<f32>(qkv, made, d_out),
        }
    }

    fn attend_backward_in<T: Element>(
        &self,
        qkv: &Qkv,
        made: &Attended,
        d_out: &Tensor,
    ) -> Result<Qkv> {
        let (b, s, _, _) = qkv.q.size4()?;
        let like = |x: &Tensor| Tensor::f_empty(x.size(), (self.kind, Device::Cpu));
        let mut grads = Qkv { q: like(&qkv.q)?, k: like(&qkv.k)?, v: like(&qkv.v)? };
        let d_out = d_out.f_contiguous()?;
        let tape = AttentionTape {
            heads: self.shape(b, s),
            q: elements::<T>(&qkv.q)?,
            k: elements(&qkv.k)?,
            v: elements(&qkv.v)?,
            out: elements(&made.context)?,
            log_sums: elements(&made.log_sums)?,
            d_out: elements(&d_out)?,
        };
        let Qkv { q, k, v } = &mut grads;
        attention_backward(tape, [elements_mut(q)?, elements_mut(k)?, elements_mut(v)?])?;
        Ok(grads)
    }

    fn shape(&self, sequences: i64, tokens: i64) -> Heads {
        Heads {
            sequences: sequences as usize,
            tokens: tokens as usize,
            query_heads: self.heads as usize,
            kv_heads: self.kv_heads as usize,
            dim: self.head_dim as usize,
        }
    }

    /// Output projection of [B,S,N·D], giving `[B,S,H]` in the compute type.
    pub fn output(&self, context: &Tensor) -> Result<Tensor> {
        Ok(context.f_linear(&self.o.leaf, None::<&Tensor>)?)
    }
}
