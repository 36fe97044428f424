//! OLMoE: norms over the whole query and key projections, optional clamping of q, k, v.

use super::{ExpertNames, Family, FamilySpec, QkNorm};
use crate::model::config::ModelConfig;
use serde_json::json;

pub(super) const SPEC: FamilySpec = FamilySpec {
    family: Family::Olmoe,
    model_type: "olmoe",
    architecture: "OlmoeForCausalLM",
    router: "mlp.gate.weight",
    experts: "mlp.experts",
    expert_names: ExpertNames::Each(["gate_proj", "up_proj", "down_proj"]),
    router_bias: None,
    shared: None,
    qk_norm: QkNorm::Full,
    qkv_bias: false,
    norm_topk: false,
    experts_keys: &["num_experts", "num_local_experts"],
    expert_width_key: "intermediate_size",
    rope_theta: 10_000.0,
    rope_share: 1.0,
    trainable: true,
    read: |keys, config| {
        config.norm_topk = keys.bool("norm_topk_prob")?.unwrap_or(false);
        config.clip_qkv = keys.number("clip_qkv")?;
        keys.only("attention_bias", &json!(false))
    },
    write: |config, out| {
        out.insert("norm_topk_prob".into(), json!(config.norm_topk));
        out.insert("clip_qkv".into(), json!(config.clip_qkv));
        out.insert("attention_bias".into(), json!(false));
    },
};

impl ModelConfig {
    /// The shape of OLMoE-1B-7B (Muennighoff et al., 2024), the size that benchmarks speak of.
    pub fn olmoe_1b_7b() -> Self {
        Self {
            vocab: 50304,
            hidden: 2048,
            layers: 16,
            heads: 16,
            kv_heads: 16,
            head_dim: 128,
            experts: 64,
            top_k: 8,
            expert_width: 1024,
            max_position: 4096,
            norm_eps: 1e-5,
            ..Self::of_family(Family::Olmoe)
        }
    }
}
