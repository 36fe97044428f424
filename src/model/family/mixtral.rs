//! Mixtral: grouped-query attention, chosen probabilities always renormalised.

use super::{ExpertNames, Family, FamilySpec, QkNorm};
use serde_json::json;

pub(super) const SPEC: FamilySpec = FamilySpec {
    family: Family::Mixtral,
    model_type: "mixtral",
    architecture: "MixtralForCausalLM",
    router: "block_sparse_moe.gate.weight",
    experts: "block_sparse_moe.experts",
    expert_names: ExpertNames::Each(["w1", "w3", "w2"]),
    router_bias: None,
    shared: None,
    qk_norm: QkNorm::None,
    qkv_bias: false,
    norm_topk: true,
    experts_keys: &["num_local_experts", "num_experts"],
    expert_width_key: "intermediate_size",
    rope_theta: 1_000_000.0,
    rope_share: 1.0,
    trainable: true,
    read: |keys, _| {
        keys.only("router_jitter_noise", &json!(0.0))?;
        keys.no_window("sliding_window")
    },
    write: |_, out| {
        out.insert("router_jitter_noise".into(), json!(0.0));
        out.insert("sliding_window".into(), json!(null));
    },
};
