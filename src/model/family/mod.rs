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

mod mixtral;
mod olmoe;
mod qwen2_moe;
mod qwen3_moe;
mod tensors;

pub use tensors::{DenseTensor, Slot, dense_tensors, expert_tensors};

use super::config::ModelConfig;
use super::hf::config::Keys;
use crate::base::{Error, Result};
use serde::{Deserialize, Serialize};
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
    /// The sigmoid gate that scales its output.
    pub gate: &'static str,
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
    /// Names of the gate, up and down projections of a routed expert.
    pub projections: [&'static str; 3],
    pub shared: Option<SharedNames>,
    pub qk_norm: QkNorm,
    pub qkv_bias: bool,
    /// Whether chosen probabilities are renormalised where the config does not say.
    pub norm_topk: bool,
    /// Keys that hold the number of experts, the first being the one written.
    pub experts_keys: &'static [&'static str],
    pub expert_width_key: &'static str,
    /// Reads the keys that only this family has.
    pub read: fn(&mut Keys, &mut ModelConfig) -> Result<()>,
    /// Writes the keys that only this family has.
    pub write: fn(&ModelConfig, &mut serde_json::Map<String, serde_json::Value>),
}

impl Family {
    pub const ALL: [Self; 4] = [Self::Olmoe, Self::Mixtral, Self::Qwen2Moe, Self::Qwen3Moe];

    pub fn spec(self) -> &'static FamilySpec {
        match self {
            Self::Olmoe => &olmoe::SPEC,
            Self::Mixtral => &mixtral::SPEC,
            Self::Qwen2Moe => &qwen2_moe::SPEC,
            Self::Qwen3Moe => &qwen3_moe::SPEC,
        }
    }
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
