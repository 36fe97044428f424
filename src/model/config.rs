//! What a model is: its sizes and the few switches in which the families differ.
//!
//! A `ModelConfig` says all that the mathematics needs; a `config.json` that says more than
//! that is refused by name (see [`crate::model::hf::config`]), never run wrong.

use super::expert::ExpertShape;
pub use super::expert::Precision;
use super::family::{Family, QkNorm};
pub use super::kernels::linear::Activation;
pub use super::switches::{Latent, Scoring, Yarn};
use crate::base::{Error, Result};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// A decoder-only Mixture-of-Experts transformer. Every layer is attention followed by experts,
/// or by a dense MLP in the first `dense_layers`.
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
    /// Layers, counted from the first, that have a dense MLP of `dense_width` and no experts.
    #[serde(default)]
    pub dense_layers: usize,
    #[serde(default)]
    pub dense_width: usize,
    pub rope_theta: f64,
    /// Share of a head's elements that turn with position, from the first on.
    #[serde(default = "whole")]
    pub rope_share: f64,
    /// Whether neighbouring elements turn together, instead of one of each half.
    #[serde(default)]
    pub rope_interleaved: bool,
    #[serde(default)]
    pub yarn: Option<Yarn>,
    pub norm_eps: f64,
    /// Longest sequence the model is meant for, in tokens.
    pub max_position: usize,
    pub tie_embeddings: bool,
    /// Whether the chosen experts' probabilities are divided by their sum.
    pub norm_topk: bool,
    pub qk_norm: QkNorm,
    pub qkv_bias: bool,
    /// Whether attention's output projection has a bias.
    #[serde(default)]
    pub o_bias: bool,
    /// Keys and values as one latent a token.
    #[serde(default)]
    pub latent: Option<Latent>,
    /// Whether each head has a logit that takes probability and gives nothing.
    #[serde(default)]
    pub sinks: bool,
    /// Keys that a query of each layer sees, itself among them; empty where all layers see all.
    #[serde(default)]
    pub windows: Vec<Option<usize>>,
    #[serde(default = "softmax")]
    pub scoring: Scoring,
    #[serde(default = "swiglu")]
    pub activation: Activation,
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

fn whole() -> f64 {
    1.0
}

fn softmax() -> Scoring {
    Scoring::Softmax
}

fn swiglu() -> Activation {
    Activation::SwiGlu
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
            dense_layers: 0,
            dense_width: 0,
            rope_theta: spec.rope_theta,
            rope_share: spec.rope_share,
            rope_interleaved: false,
            yarn: None,
            norm_eps: 1e-5,
            max_position: 0,
            tie_embeddings: false,
            norm_topk: spec.norm_topk,
            qk_norm: spec.qk_norm,
            qkv_bias: spec.qkv_bias,
            o_bias: false,
            latent: None,
            sinks: false,
            windows: Vec::new(),
            scoring: Scoring::Softmax,
            activation: Activation::SwiGlu,
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
        let turned = self.rope_dim();
        if turned == 0 || !turned.is_multiple_of(2) {
            return Err(Error::config(format!(
                "model has {turned} rotated elements a head, rotary embedding turns pairs"
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
        self.validate_layers()?;
        self.validate_scoring()?;
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

    fn validate_layers(&self) -> Result<()> {
        if self.dense_layers >= self.layers {
            return Err(Error::config(format!(
                "model dense_layers of {} leave no layer of {} with experts",
                self.dense_layers, self.layers
            )));
        }
        if self.dense_layers > 0 && self.dense_width == 0 {
            return Err(Error::config("model dense_width must be at least 1 for dense layers"));
        }
        let given = self.windows.len();
        if given != 0 && given != self.layers || self.windows.contains(&Some(0)) {
            return Err(Error::config(format!(
                "model windows must be at least 1 and as many as the layers, {given} are given \
                 for {}",
                self.layers
            )));
        }
        if let Some(latent) = &self.latent {
            let widths = [latent.kv_rank, latent.rope, latent.nope, latent.value];
            if widths.contains(&0) || latent.q_rank == Some(0) {
                return Err(Error::config("model latent widths must be at least 1"));
            }
            if self.head_dim != latent.nope + latent.rope || self.kv_heads != self.heads {
                return Err(Error::config(format!(
                    "model head_dim of {} must be the latent's nope {} and rope {} together, \
                     and every head has keys of its own",
                    self.head_dim, latent.nope, latent.rope
                )));
            }
        }
        Ok(())
    }

    fn validate_scoring(&self) -> Result<()> {
        let Scoring::Sigmoid { groups, top_groups, .. } = self.scoring else { return Ok(()) };
        if groups == 0 || !self.experts.is_multiple_of(groups) || self.experts / groups < 2 {
            return Err(Error::config(format!(
                "model experts of {} must divide into {groups} groups of at least 2",
                self.experts
            )));
        }
        if top_groups == 0 || top_groups > groups {
            return Err(Error::config(format!(
                "model cannot choose {top_groups} of {groups} groups of experts"
            )));
        }
        let open = top_groups * (self.experts / groups);
        if self.top_k > open {
            return Err(Error::config(format!(
                "model top_k of {} exceeds the {open} experts of the chosen groups",
                self.top_k
            )));
        }
        Ok(())
    }

    /// Refuses what can be run but not trained: training differentiates fewer kinds of layers.
    ///
    /// # Errors
    /// Config, naming the family or the switch.
    pub fn check_trainable(&self) -> Result<()> {
        if !self.family.spec().trainable {
            let names = Family::ALL.into_iter().filter(|family| family.spec().trainable);
            let names: Vec<String> = names.map(|family| family.to_string()).collect();
            return Err(Error::config(format!(
                "a model of family {} can be run but not trained; training knows {}",
                self.family,
                names.join(", ")
            )));
        }
        if self.yarn.is_some() {
            return Err(Error::config(
                "a model with yarn rotary embedding can be run but not trained; remove the \
                 scaling from its config.json to train at the original context",
            ));
        }
        Ok(())
    }

    /// Elements of a query or key head that turn with position.
    pub fn rope_dim(&self) -> usize {
        let share = (self.head_dim as f64 * self.rope_share) as usize;
        self.latent.map_or(share, |latent| latent.rope)
    }

    /// Keys that a query of `layer` sees, itself among them; None where it sees all.
    pub fn window(&self, layer: usize) -> Option<usize> {
        self.windows.get(layer).copied().flatten()
    }

    /// Whether `layer` has a dense MLP and no experts.
    pub fn is_dense(&self, layer: usize) -> bool {
        layer < self.dense_layers
    }

    /// Width of all query heads together.
    pub fn q_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Width of all heads' values together, which the output projection reads.
    pub fn value_width(&self) -> usize {
        self.heads * self.latent.map_or(self.head_dim, |latent| latent.value)
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
