//! Qwen3-MoE: norms over each query and key head, head width independent of the hidden width.

use super::{ExpertNames, Family, FamilySpec, QkNorm};
use serde_json::json;

pub(super) const SPEC: FamilySpec = FamilySpec {
    family: Family::Qwen3Moe,
    model_type: "qwen3_moe",
    architecture: "Qwen3MoeForCausalLM",
    router: "mlp.gate.weight",
    experts: "mlp.experts",
    expert_names: ExpertNames::Each(["gate_proj", "up_proj", "down_proj"]),
    router_bias: None,
    shared: None,
    qk_norm: QkNorm::PerHead,
    qkv_bias: false,
    norm_topk: false,
    experts_keys: &["num_experts", "num_local_experts"],
    expert_width_key: "moe_intermediate_size",
    rope_theta: 10_000.0,
    rope_share: 1.0,
    trainable: true,
    read: |keys, config| {
        config.norm_topk = keys.bool("norm_topk_prob")?.unwrap_or(false);
        keys.only("attention_bias", &json!(false))?;
        keys.sparse_everywhere()?;
        keys.optional_window()
    },
    write: |config, out| {
        out.insert("norm_topk_prob".into(), json!(config.norm_topk));
        out.insert("attention_bias".into(), json!(false));
        // Width of a dense layer's MLP: none of the layers is dense, but the key is expected.
        out.insert("intermediate_size".into(), json!(config.expert_width));
        out.insert("decoder_sparse_step".into(), json!(1));
        out.insert("mlp_only_layers".into(), json!([]));
        out.insert("use_sliding_window".into(), json!(false));
    },
};
