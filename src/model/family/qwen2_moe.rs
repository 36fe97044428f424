//! Qwen2-MoE: biases on q, k, v, and a shared expert scaled by a sigmoid gate.

use super::{ExpertNames, Family, FamilySpec, QkNorm, SharedNames};
use serde_json::json;

pub(super) const SPEC: FamilySpec = FamilySpec {
    family: Family::Qwen2Moe,
    model_type: "qwen2_moe",
    architecture: "Qwen2MoeForCausalLM",
    router: "mlp.gate.weight",
    experts: "mlp.experts",
    expert_names: ExpertNames::Each(["gate_proj", "up_proj", "down_proj"]),
    router_bias: None,
    shared: Some(SharedNames { expert: "mlp.shared_expert", gate: Some("mlp.shared_expert_gate") }),
    qk_norm: QkNorm::None,
    qkv_bias: true,
    norm_topk: false,
    experts_keys: &["num_experts", "num_local_experts"],
    expert_width_key: "moe_intermediate_size",
    rope_theta: 10_000.0,
    rope_share: 1.0,
    trainable: true,
    read: |keys, config| {
        config.norm_topk = keys.bool("norm_topk_prob")?.unwrap_or(false);
        config.qkv_bias = keys.bool("qkv_bias")?.unwrap_or(true);
        config.shared_width = Some(keys.required("shared_expert_intermediate_size")?);
        keys.sparse_everywhere()?;
        keys.optional_window()
    },
    write: |config, out| {
        out.insert("norm_topk_prob".into(), json!(config.norm_topk));
        out.insert("qkv_bias".into(), json!(config.qkv_bias));
        out.insert("shared_expert_intermediate_size".into(), json!(config.shared_width));
        out.insert("intermediate_size".into(), json!(config.shared_width));
        out.insert("decoder_sparse_step".into(), json!(1));
        out.insert("mlp_only_layers".into(), json!([]));
        out.insert("use_sliding_window".into(), json!(false));
    },
};
