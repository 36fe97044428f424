//! What a model is: its sizes and the few switches in which the families differ.
//!
//! A `ModelConfig` says all that the mathematics needs; a `config.json` that says more than
//! that is refused by name (see [`crate::model::hf::config`]), never run wrong.

use super::expert::ExpertShape;
pub use super::expert::Precision;
use super::family::{Family, QkNorm};
use crate::base::{Error, Result};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// A decoder-only Mixture-of-Experts transformer. Every layer is attention followed by experts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelConfig {
    pub family: Family,
    /// V: rows of the embedding table and of the output head.
    pub vocab: usize,
    /// H: width of the residual stream.
    pub hidden: usize,
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    pub head_dim: usize,
    /// E: routed experts a layer.
    pub experts: usize,
    /// K: experts a token.
    pub top_k: usize,
    /// F: inner width of a routed expert.
    pub expert_width: usize,
    /// Inner width of the shared expert, where the family has one.
    pub shared_width: Option<usize>,
    pub rope_theta: f64,
    pub norm_eps: f64,
    /// Longest sequence the model is meant for, in tokens.
    pub max_position: usize,
    pub tie_embeddings: bool,
    /// Whether the chosen experts' probabilities are divided by their sum.
    pub norm_topk: bool,
    pub qk_norm: QkNorm,
    pub qkv_bias: bool,
    /// Queries, keys and values are clamped to `[-c, c]` before rotation (OLMoE).
    pub clip_qkv: Option<f64>,
    /// Standard deviation of freshly drawn weights.
    pub init_std: f64,
    /// Coefficient of the load-balancing loss that the checkpoint carries, for export.
    pub router_aux_coef: f64,
    pub bos: Option<u32>,
    /// Tokens that end a text; the first is written where one is expected.
    pub eos: Vec<u32>,
    pub pad: Option<u32>,
}

impl ModelConfig {
    /// A config of `family` with that family's switches and small defaults for the sizes,
    /// to be filled in by the caller.
    pub fn of_family(family: Family) -> Self {
        let spec = family.spec();
        Self {
            family,
            vocab: 0,
            hidden: 0,
            layers: 0,
            heads: 0,
            kv_heads: 0,
            head_dim: 0,
            experts: 0,
            top_k: 0,
            expert_width: 0,
            shared_width: None,
            rope_theta: 10_000.0,
            norm_eps: 1e-5,
            max_position: 0,
            tie_embeddings: false,
            norm_topk: spec.norm_topk,
            qk_norm: spec.qk_norm,
            qkv_bias: spec.qkv_bias,
            clip_qkv: None,
            init_std: 0.02,
            router_aux_coef: 0.01,
            bos: None,
            eos: Vec::new(),
            pad: None,
        }
    }

    /// Reads `config.json` of a checkpoint folder (or the file itself).
    ///
    /// # Errors
    /// Input: unreadable, another family, a missing key, or a key that changes the mathematics
    /// in a way that is not supported; each by name.
    pub fn from_hf(path: &Path) -> Result<Self> {
        super::hf::config::read(path)
    }

    /// The `config.json` that transformers reads, `dtype` being that of the weights written.
    pub fn to_hf_json(&self, dtype: Precision) -> serde_json::Value {
        super::hf::config::write(self, dtype)
    }

    /// Rejects sizes that no model can have.
    ///
    /// # Errors
    /// Config, naming the field and what would work.
    pub fn validate(&self) -> Result<()> {
        let positive = [
            ("vocab", self.vocab),
            ("hidden", self.hidden),
            ("layers", self.layers),
            ("heads", self.heads),
            ("kv_heads", self.kv_heads),
            ("head_dim", self.head_dim),
            ("experts", self.experts),
            ("top_k", self.top_k),
            ("expert_width", self.expert_width),
            ("max_position", self.max_position),
        ];
        for (name, value) in positive {
            if value == 0 {
                return Err(Error::config(format!("model {name} must be at least 1")));
            }
            if value > 1 << 28 {
                return Err(Error::config(format!("model {name} of {value} is out of range")));
            }
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            return Err(Error::config(format!(
                "model kv_heads of {} must divide heads of {}",
                self.kv_heads, self.heads
            )));
        }
        if !self.head_dim.is_multiple_of(2) {
            return Err(Error::config(format!(
                "model head_dim of {} must be even, rotary embedding turns pairs",
                self.head_dim
            )));
        }
        if self.top_k > self.experts {
            return Err(Error::config(format!(
                "model top_k of {} exceeds experts of {}",
                self.top_k, self.experts
            )));
        }
        if self.layers > u16::MAX as usize || self.experts > u16::MAX as usize {
            return Err(Error::config("model layers and experts must be at most 65535"));
        }
        let has_shared = self.family.spec().shared.is_some();
        match (has_shared, self.shared_width) {
            (true, None | Some(0)) => {
                return Err(Error::config(format!(
                    "model shared_width is required for family {}",
                    self.family
                )));
            }
            (false, Some(_)) => {
                return Err(Error::config(format!(
                    "model shared_width is set, but family {} has no shared expert",
                    self.family
                )));
            }
            _ => {}
        }
        if !(self.norm_eps > 0.0 && self.rope_theta > 0.0 && self.init_std >= 0.0) {
            return Err(Error::config(
                "model norm_eps and rope_theta must be positive and init_std at least 0",
            ));
        }
        Ok(())
    }

    /// Width of all query heads together.
    pub fn q_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Width of all key (or value) heads together.
    pub fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Shape and slot layout of a routed expert.
    pub fn expert_shape(&self, precision: Precision) -> ExpertShape {
        ExpertShape::new(self.hidden, self.expert_width, precision)
    }
}
