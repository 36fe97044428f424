//! The families of models, as data: names of tensors, names of config keys, and the switches
//! in which their layers differ.
//!
//! A layer is composed of parts (attention, norms, shared expert, router) that read these
//! switches; a further family is one file here with one `FamilySpec`, plus a part where it has
//! one that no other family has.
//!
//! ```text
//! config.json ─► FamilySpec ─► ModelConfig ─► tensor list (names, shapes) ─► DenseParams, experts
//! ```

mod deepseek_v3;
mod glm4_moe;
mod gpt_oss;
mod mixtral;
mod olmoe;
mod qwen2_moe;
mod qwen3_moe;
mod tensors;

pub use tensors::{DenseTensor, Slot, dense_tensors, expert_tensors, is_skipped};

use super::config::{ModelConfig, Scoring};
use super::hf::config::Keys;
use crate::base::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::fmt;
use std::str::FromStr;

/// A family of models, named as `model_type` in `config.json` names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Family {
    Olmoe,
    Mixtral,
    #[serde(rename = "qwen2_moe")]
    Qwen2Moe,
    #[serde(rename = "qwen3_moe")]
    Qwen3Moe,
    #[serde(rename = "deepseek_v3")]
    DeepseekV3,
    #[serde(rename = "glm4_moe")]
    Glm4Moe,
    GptOss,
}

/// Normalisation of queries and keys before rotation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QkNorm {
    None,
    /// One RMSNorm over the whole projection (OLMoE).
    Full,
    /// One RMSNorm over each head, shared by the heads (Qwen3).
    PerHead,
}

/// Names of a shared expert's tensors below `model.layers.L.`.
#[derive(Debug)]
pub struct SharedNames {
    /// Prefix of `gate_proj`, `up_proj`, `down_proj`.
    pub expert: &'static str,
    /// The sigmoid gate that scales its output, where there is one.
    pub gate: Option<&'static str>,
}

/// How the routed experts' tensors are named below [`FamilySpec::experts`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExpertNames {
    /// Three matrices an expert, `E.NAME.weight`: gate `[F,H]`, up `[F,H]`, down `[H,F]`.
    Each([&'static str; 3]),
    /// All experts of a layer in two tensors and two biases (gpt-oss): `gate_up_proj` `[E,H,2F]`
    /// with the columns of gate and up taking turns, `gate_up_proj_bias` `[E,2F]`, `down_proj`
    /// `[E,F,H]`, `down_proj_bias` `[E,H]`; with MXFP4, `_blocks` and `_scales` for each matrix,
    /// in rows of output features.
    Fused,
}

/// What sets a family apart.
#[derive(Debug)]
pub struct FamilySpec {
    pub family: Family,
    pub model_type: &'static str,
    pub architecture: &'static str,
    /// The router's weight below `model.layers.L.`.
    pub router: &'static str,
    /// Prefix of the routed experts below `model.layers.L.`.
    pub experts: &'static str,
    pub expert_names: ExpertNames,
    /// The router's second tensor: a bias on the logits, or a correction of the scores.
    pub router_bias: Option<&'static str>,
    pub shared: Option<SharedNames>,
    pub qk_norm: QkNorm,
    pub qkv_bias: bool,
    /// Whether chosen probabilities are renormalised where the config does not say.
    pub norm_topk: bool,
    /// Keys that hold the number of experts, the first being the one written.
    pub experts_keys: &'static [&'static str],
    pub expert_width_key: &'static str,
    /// `rope_theta` where the config does not say.
    pub rope_theta: f64,
    /// Share of a head that turns with position where the config does not say; 1 means that the
    /// family knows nothing else.
    pub rope_share: f64,
    /// Whether training differentiates all its parts.
    pub trainable: bool,
    /// Reads the keys that only this family has.
    pub read: fn(&mut Keys, &mut ModelConfig) -> Result<()>,
    /// Writes the keys that only this family has.
    pub write: fn(&ModelConfig, &mut Map<String, Value>),
}

impl Family {
    pub const ALL: [Self; 7] = [
        Self::Olmoe,
        Self::Mixtral,
        Self::Qwen2Moe,
        Self::Qwen3Moe,
        Self::DeepseekV3,
        Self::Glm4Moe,
        Self::GptOss,
    ];

    pub fn spec(self) -> &'static FamilySpec {
        match self {
            Self::Olmoe => &olmoe::SPEC,
            Self::Mixtral => &mixtral::SPEC,
            Self::Qwen2Moe => &qwen2_moe::SPEC,
            Self::Qwen3Moe => &qwen3_moe::SPEC,
            Self::DeepseekV3 => &deepseek_v3::SPEC,
            Self::Glm4Moe => &glm4_moe::SPEC,
            Self::GptOss => &gpt_oss::SPEC,
        }
    }
}

/// Keys that DeepSeek-V3 and GLM-4.5 share: sigmoid scores in groups, a shared expert, dense
/// first layers. Layers past `num_hidden_layers` predict further tokens and are not loaded.
fn read_sigmoid(keys: &mut Keys, config: &mut ModelConfig, groups: [usize; 2]) -> Result<()> {
    config.norm_topk = keys.bool("norm_topk_prob")?.unwrap_or(true);
    config.scoring = Scoring::Sigmoid {
        groups: keys.count("n_group")?.unwrap_or(groups[0]),
        top_groups: keys.count("topk_group")?.unwrap_or(groups[1]),
        scale: keys
            .number("routed_scaling_factor")?
            .ok_or_else(|| keys.missing("routed_scaling_factor"))?,
    };
    config.shared_width = Some(keys.required("n_shared_experts")? * config.expert_width);
    config.dense_layers = keys.required("first_k_dense_replace")?;
    config.dense_width = keys.required("intermediate_size")?;
    keys.only("scoring_func", &json!("sigmoid"))?;
    keys.only("topk_method", &json!("noaux_tc"))?;
    keys.only("moe_layer_freq", &json!(1))?;
    for key in ["num_nextn_predict_layers", "num_mtp_layers", "aux_loss_alpha", "seq_aux"] {
        keys.inert(key);
    }
    keys.inert("ep_size");
    Ok(())
}

fn write_sigmoid(config: &ModelConfig, out: &mut Map<String, Value>) {
    if let Scoring::Sigmoid { groups, top_groups, scale } = config.scoring {
        out.insert("n_group".into(), json!(groups));
        out.insert("topk_group".into(), json!(top_groups));
        out.insert("routed_scaling_factor".into(), json!(scale));
    }
    let shared = config.shared_width.unwrap_or(0) / config.expert_width.max(1);
    out.insert("norm_topk_prob".into(), json!(config.norm_topk));
    out.insert("n_shared_experts".into(), json!(shared));
    out.insert("first_k_dense_replace".into(), json!(config.dense_layers));
    out.insert("intermediate_size".into(), json!(config.dense_width));
    out.insert("num_nextn_predict_layers".into(), json!(0));
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.spec().model_type)
    }
}

impl FromStr for Family {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|family| family.spec().model_type == text);
        found.ok_or_else(|| {
            let known: Vec<_> = Self::ALL.iter().map(|family| family.spec().model_type).collect();
            Error::input(format!(
                "model family \"{text}\" is not supported; supported are {}",
                known.join(", ")
            ))
        })
    }
}
