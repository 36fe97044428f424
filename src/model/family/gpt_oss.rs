//! gpt-oss: experts fused into one tensor a layer with biases and a clamped SwiGLU, attention
//! sinks, a sliding window on every other layer, yarn, biases everywhere.

use super::{ExpertNames, Family, FamilySpec, QkNorm};
use crate::base::Result;
use crate::model::config::{Activation, ModelConfig, Scoring, Yarn};
use crate::model::hf::config::Keys;
use serde_json::json;

pub(super) const SPEC: FamilySpec = FamilySpec {
    family: Family::GptOss,
    model_type: "gpt_oss",
    architecture: "GptOssForCausalLM",
    router: "mlp.router.weight",
    experts: "mlp.experts",
    expert_names: ExpertNames::Fused,
    router_bias: Some("mlp.router.bias"),
    shared: None,
    qk_norm: QkNorm::None,
    qkv_bias: true,
    norm_topk: true,
    experts_keys: &["num_local_experts", "num_experts"],
    expert_width_key: "intermediate_size",
    rope_theta: 150_000.0,
    rope_share: 1.0,
    trainable: false,
    read,
    write: |config, out| {
        let kind = |layer| match config.window(layer) {
            Some(_) => "sliding_attention",
            None => "full_attention",
        };
        let window = config.windows.iter().flatten().next();
        let kinds: Vec<&str> = (0..config.layers).map(kind).collect();
        out.insert("head_dim".into(), json!(config.head_dim));
        out.insert("attention_bias".into(), json!(config.o_bias));
        out.insert("layer_types".into(), json!(kinds));
        out.insert("sliding_window".into(), json!(window));
        if let Activation::ClampedSwiGlu { limit, alpha } = config.activation {
            out.insert("swiglu_limit".into(), json!(f64::from(limit)));
            out.insert("swiglu_alpha".into(), json!(f64::from(alpha)));
        }
    },
};

/// The window where neither the config nor its `layer_types` speak of another.
const WINDOW: usize = 128;

fn read(keys: &mut Keys, config: &mut ModelConfig) -> Result<()> {
    config.sinks = true;
    config.scoring = Scoring::SoftmaxOfChosen;
    config.qkv_bias = keys.bool("attention_bias")?.unwrap_or(true);
    config.o_bias = config.qkv_bias;
    let limit = keys.number("swiglu_limit")?.unwrap_or(7.0) as f32;
    let alpha = keys.number("swiglu_alpha")?.unwrap_or(1.702) as f32;
    config.activation = Activation::ClampedSwiGlu { limit, alpha };
    if !keys.has("rope_parameters") && !keys.has("rope_scaling") {
        config.yarn = Some(Yarn::new(32.0, 4096));
    }
    let window = keys.count("sliding_window")?.unwrap_or(WINDOW);
    let kinds = keys.layer_kinds(config.layers)?;
    let kind = |layer: usize| match &kinds {
        Some(kinds) => kinds[layer].as_str(),
        None if layer.is_multiple_of(2) => "sliding_attention",
        None => "full_attention",
    };
    for layer in 0..config.layers {
        config.windows.push(match kind(layer) {
            "sliding_attention" => Some(window),
            "full_attention" => None,
            other => {
                return Err(keys.error(format!(
                    "key \"layer_types\" holds \"{other}\", known are \"sliding_attention\" and \
                     \"full_attention\""
                )));
            }
        });
    }
    // The same as num_experts_per_tok and the yarn's original context, by older names.
    keys.only("experts_per_token", &json!(config.top_k))?;
    let original = config.yarn.map_or(config.max_position, |yarn| yarn.original);
    keys.only("initial_context_length", &json!(original))
}
