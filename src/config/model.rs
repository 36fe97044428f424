//! `[model]`: the shape of a new model, or the folder of an existing one; never both.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::path::PathBuf;

/// Where the model comes from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Model {
    /// An existing folder in the Hugging Face layout, which gives the shape.
    Checkpoint(From),
    /// A new model, initialised from a seed.
    Scratch(Shape),
}

/// `model.from` alone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct From {
    /// The folder.
    pub from: PathBuf,
}

impl Model {
    /// The folder to continue from, if there is one.
    pub fn from(&self) -> Option<&PathBuf> {
        match self {
            Self::Checkpoint(checkpoint) => Some(&checkpoint.from),
            Self::Scratch(_) => None,
        }
    }

    /// The shape of a new model; none when a checkpoint gives it.
    pub fn shape(&self) -> Option<&Shape> {
        match self {
            Self::Checkpoint(_) => None,
            Self::Scratch(shape) => Some(shape),
        }
    }
}

/// The definition a model follows, by its Hugging Face name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Family {
    /// Query and key normalised over their full width.
    #[default]
    Olmoe,
    /// Plain attention; router weights always renormalised.
    Mixtral,
    /// Biases on query, key and value; a shared expert with a gate of its own.
    Qwen2Moe,
    /// Query and key normalised per head.
    Qwen3Moe,
}

impl Family {
    /// Whether the family divides the chosen experts' router weights by their sum, when the
    /// configuration does not say.
    pub fn renormalises(self) -> bool {
        matches!(self, Self::Mixtral | Self::Qwen3Moe)
    }
}

/// The shape of a new model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Shape {
    /// The definition that the model follows.
    pub family: Family,
    /// Size of the vocabulary; left out, it is the tokenizer's.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1), extend("x-default" = "the tokenizer's"))]
    pub vocab: Option<usize>,
    /// Width of the residual stream.
    #[schemars(range(min = 1), extend("x-required" = true))]
    pub hidden: usize,
    /// Number of transformer layers, each with a Mixture-of-Experts block.
    #[schemars(range(min = 1, max = 65535), extend("x-required" = true))]
    pub layers: usize,
    /// Number of attention heads (query heads).
    #[schemars(range(min = 1), extend("x-required" = true))]
    pub heads: usize,
    /// Number of key/value heads; divides `heads`.
    #[schemars(range(min = 1), extend("x-default" = "model.heads"))]
    pub kv_heads: usize,
    /// Width of one attention head.
    #[schemars(range(min = 1), extend("x-default" = "model.hidden / model.heads"))]
    pub head_dim: usize,
    /// Number of routed experts in each layer.
    #[schemars(range(min = 1, max = 65535), extend("x-required" = true))]
    pub experts: usize,
    /// Inner width of a routed expert.
    #[schemars(range(min = 1), extend("x-required" = true))]
    pub expert_width: usize,
    /// Experts chosen for each token.
    #[schemars(range(min = 1), extend("x-required" = true))]
    pub top_k: usize,
    /// Inner width of the shared expert; required by `qwen2_moe`, refused by the others.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1), extend("x-default" = "none"))]
    pub shared_width: Option<usize>,
    /// Longest sequence that the model is declared for.
    #[schemars(range(min = 1), extend("x-default" = "train.seq"))]
    pub max_position: usize,
    /// Base of the rotary position embedding.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub rope_theta: f64,
    /// Added to the variance in RMSNorm.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub norm_eps: f64,
    /// Whether the output projection is the embedding table.
    pub tie_embeddings: bool,
    /// Whether the chosen experts' router weights are divided by their sum.
    #[schemars(extend("x-default" = "the family's: true for mixtral and qwen3_moe"))]
    pub norm_topk: bool,
    /// Standard deviation of the initial weights.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub init_std: f64,
    /// Seed of the initial weights.
    #[schemars(extend("x-default" = "train.seed"))]
    pub seed: u64,
}

impl Default for Shape {
    fn default() -> Self {
        Self {
            family: Family::default(),
            vocab: None,
            hidden: 0,
            layers: 0,
            heads: 0,
            kv_heads: 0,
            head_dim: 0,
            experts: 0,
            expert_width: 0,
            top_k: 0,
            shared_width: None,
            max_position: 0,
            rope_theta: 10_000.0,
            norm_eps: 1e-5,
            tie_embeddings: false,
            norm_topk: false,
            init_std: 0.02,
            seed: 0,
        }
    }
}

/// One table with the keys of both cases: what the reader of a file sees.
impl JsonSchema for Model {
    fn schema_name() -> Cow<'static, str> {
        "Model".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let mut schema = Shape::json_schema(generator);
        let from = json_schema!({
            "description": "Folder of an existing checkpoint in the Hugging Face layout to \
                            continue from. It gives the shape, so no other key of this table \
                            may stand beside it.",
            "type": "string",
            "x-default": "none: a new model of the shape below",
        });
        let object = schema.ensure_object();
        object.insert("x-alternative".into(), "from".into());
        if let Some(properties) = object.get_mut("properties").and_then(|p| p.as_object_mut()) {
            let shape = std::mem::take(properties);
            properties.insert("from".into(), from.into());
            properties.extend(shape);
        }
        schema
    }
}
