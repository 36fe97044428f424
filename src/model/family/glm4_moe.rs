//! GLM-4.5: half of each head turned, biases on q, k, v, norms over heads where the config says
//! so, sigmoid scores corrected by a bias, shared experts, dense first layers.

use super::{ExpertNames, Family, FamilySpec, QkNorm, SharedNames, read_sigmoid, write_sigmoid};
use serde_json::json;

pub(super) const SPEC: FamilySpec = FamilySpec {
    family: Family::Glm4Moe,
    model_type: "glm4_moe",
    architecture: "Glm4MoeForCausalLM",
    router: "mlp.gate.weight",
    experts: "mlp.experts",
    expert_names: ExpertNames::Each(["gate_proj", "up_proj", "down_proj"]),
    router_bias: Some("mlp.gate.e_score_correction_bias"),
    shared: Some(SharedNames { expert: "mlp.shared_experts", gate: None }),
    qk_norm: QkNorm::None,
    qkv_bias: false,
    norm_topk: true,
    experts_keys: &["n_routed_experts"],
    expert_width_key: "moe_intermediate_size",
    rope_theta: 10_000.0,
    rope_share: 0.5,
    trainable: false,
    read: |keys, config| {
        read_sigmoid(keys, config, [1, 1])?;
        config.qkv_bias = keys.bool("attention_bias")?.unwrap_or(false);
        if keys.bool("use_qk_norm")?.unwrap_or(false) {
            config.qk_norm = QkNorm::PerHead;
        }
        Ok(())
    },
    write: |config, out| {
        write_sigmoid(config, out);
        out.insert("head_dim".into(), json!(config.head_dim));
        out.insert("attention_bias".into(), json!(config.qkv_bias));
        out.insert("use_qk_norm".into(), json!(config.qk_norm == QkNorm::PerHead));
        out.insert("partial_rotary_factor".into(), json!(config.rope_share));
    },
};
