//! Grouped-query attention in three steps that a cache can come between: project (with norms
//! and rotation by explicit positions), attend, output.
//!
//! Legend: B sequences, S tokens of one, H hidden, N query heads, G key/value heads, D head width.

use super::compute;
use super::config::{ModelConfig, Precision};
use super::family::{QkNorm, Slot};
use super::norm::rms_norm;
use super::params::{DenseParams, Param};
use super::rope::Rotation;
use crate::base::{Error, Result};
use tch::{Kind, Tensor};

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

/// Projected, normed and rotated queries `[B,N,S,D]`, keys and values `[B,G,S,D]`.
#[derive(Debug)]
pub struct Qkv {
    pub q: Tensor,
    pub k: Tensor,
    pub v: Tensor,
}

/// Which keys a query sees.
#[derive(Debug, Clone, Copy)]
pub enum Mask<'a> {
    /// Query i sees keys 0..=i: queries and keys are the same tokens.
    Causal,
    /// Every query sees every key (one new token over its cache).
    Full,
    /// Added to the scores, broadcast to `[B,N,Sq,Sk]`, or bool with true where a key is seen.
    Given(&'a Tensor),
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
        Ok(Qkv { q, k, v: v.f_transpose(1, 2)? })
    }

    /// Norm, clamp and rotation of one projection [B,S,N·D], giving `[B,N,S,D]`.
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
        Ok(rotation.apply(&x, self.kind)?.f_transpose(1, 2)?)
    }

    /// Attention of queries over keys and values (which may be longer, from a cache), [B,S,N·D].
    pub fn attend(&self, qkv: &Qkv, mask: Mask<'_>) -> Result<Tensor> {
        let (b, _, s, _) = qkv.q.size4()?;
        let k = self.repeat(&qkv.k)?;
        let v = self.repeat(&qkv.v)?;
        let (given, causal) = match mask {
            Mask::Causal => (None, true),
            Mask::Full => (None, false),
            Mask::Given(mask) => (Some(mask), false),
        };
        let out = Tensor::f_scaled_dot_product_attention(
            &qkv.q, &k, &v, given, 0.0, causal, None, false,
        )?;
        Ok(out.f_transpose(1, 2)?.f_reshape([b, s, self.heads * self.head_dim])?)
    }

    /// Each key/value head once for every query head of its group.
    fn repeat(&self, x: &Tensor) -> Result<Tensor> {
        let groups = self.heads / self.kv_heads;
        if groups == 1 {
            return Ok(x.shallow_clone());
        }
        let (b, g, s, d) = x.size4()?;
        let wide = x.f_unsqueeze(2)?.f_expand([b, g, groups, s, d], false)?;
        Ok(wide.f_reshape([b, g * groups, s, d])?)
    }

    /// Output projection of [B,S,N·D], giving `[B,S,H]` in the compute type.
    pub fn output(&self, context: &Tensor) -> Result<Tensor> {
        Ok(context.f_linear(&self.o.leaf, None::<&Tensor>)?)
    }
}
