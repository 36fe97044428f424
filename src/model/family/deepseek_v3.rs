//! DeepSeek-V3: latent attention with neighbouring elements turned, sigmoid scores corrected by a
//! bias and chosen in groups, shared experts, dense first layers.

use super::{ExpertNames, Family, FamilySpec, QkNorm, SharedNames, read_sigmoid, write_sigmoid};
use crate::base::Result;
use crate::model::config::{Latent, ModelConfig};
use crate::model::hf::config::Keys;
use serde_json::json;

pub(super) const SPEC: FamilySpec = FamilySpec {
    family: Family::DeepseekV3,
    model_type: "deepseek_v3",
    architecture: "DeepseekV3ForCausalLM",
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
    rope_share: 1.0,
    trainable: false,
    read,
    write: |config, out| {
        write_sigmoid(config, out);
        if let Some(latent) = config.latent {
            out.insert("head_dim".into(), json!(latent.rope));
            out.insert("qk_head_dim".into(), json!(config.head_dim));
            out.insert("q_lora_rank".into(), json!(latent.q_rank));
            out.insert("kv_lora_rank".into(), json!(latent.kv_rank));
            out.insert("qk_nope_head_dim".into(), json!(latent.nope));
            out.insert("qk_rope_head_dim".into(), json!(latent.rope));
            out.insert("v_head_dim".into(), json!(latent.value));
        }
        out.insert("attention_bias".into(), json!(config.o_bias));
        out.insert("rope_interleave".into(), json!(config.rope_interleaved));
    },
};

fn read(keys: &mut Keys, config: &mut ModelConfig) -> Result<()> {
    read_sigmoid(keys, config, [8, 4])?;
    config.rope_interleaved = keys.bool("rope_interleave")?.unwrap_or(true);
    config.o_bias = keys.bool("attention_bias")?.unwrap_or(false);
    let latent = Latent {
        q_rank: keys.count("q_lora_rank")?,
        kv_rank: keys.required("kv_lora_rank")?,
        nope: keys.required("qk_nope_head_dim")?,
        rope: keys.required("qk_rope_head_dim")?,
        value: keys.required("v_head_dim")?,
        bias: config.o_bias,
    };
    config.head_dim = latent.nope + latent.rope;
    config.latent = Some(latent);
    keys.only("qk_head_dim", &json!(config.head_dim))
}
