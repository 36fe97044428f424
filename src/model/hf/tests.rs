//! Configs as they are published, and configs that must be refused by name.

use super::config::parse;
use crate::base::Result;
use crate::model::config::{Activation, Latent, ModelConfig, Precision, Scoring};
use crate::model::family::{Family, QkNorm, dense_tensors, is_skipped};
use serde_json::{Value, json};
use std::path::Path;

fn read(config: &Value) -> Result<ModelConfig> {
    parse(&config.to_string(), Path::new("config.json"))
}

fn from(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

fn deepseek_v3() -> Value {
    from(
        r#"{
        "architectures": ["DeepseekV3ForCausalLM"], "attention_bias": false,
        "attention_dropout": 0.0, "auto_map": {"AutoConfig": "configuration_deepseek.X"},
        "aux_loss_alpha": 0.001, "bos_token_id": 0, "eos_token_id": 1, "ep_size": 1,
        "first_k_dense_replace": 3, "hidden_act": "silu", "hidden_size": 7168,
        "initializer_range": 0.02, "intermediate_size": 18432, "kv_lora_rank": 512,
        "max_position_embeddings": 163840, "model_type": "deepseek_v3",
        "moe_intermediate_size": 2048, "moe_layer_freq": 1, "n_group": 8,
        "n_routed_experts": 256, "n_shared_experts": 1, "norm_topk_prob": true,
        "num_attention_heads": 128, "num_experts_per_tok": 8, "num_hidden_layers": 61,
        "num_key_value_heads": 128, "num_nextn_predict_layers": 1, "pretraining_tp": 1,
        "q_lora_rank": 1536, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
        "quantization_config": {"activation_scheme": "dynamic", "fmt": "e4m3",
            "quant_method": "fp8", "weight_block_size": [128, 128]},
        "rms_norm_eps": 1e-06,
        "rope_scaling": {"beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 1.0,
            "mscale_all_dim": 1.0, "original_max_position_embeddings": 4096, "type": "yarn"},
        "rope_theta": 10000, "routed_scaling_factor": 2.5, "scoring_func": "sigmoid",
        "seq_aux": true, "tie_word_embeddings": false, "topk_group": 4,
        "topk_method": "noaux_tc", "torch_dtype": "bfloat16", "transformers_version": "4.33.1",
        "use_cache": true, "v_head_dim": 128, "vocab_size": 129280
    }"#,
    )
}

fn glm4_moe() -> Value {
    from(
        r#"{
        "architectures": ["Glm4MoeForCausalLM"], "attention_bias": true,
        "attention_dropout": 0.0, "pad_token_id": 151329,
        "eos_token_id": [151329, 151336, 151338], "head_dim": 128, "hidden_act": "silu",
        "hidden_size": 5120, "partial_rotary_factor": 0.5, "initializer_range": 0.02,
        "intermediate_size": 12288, "max_position_embeddings": 131072,
        "model_type": "glm4_moe", "moe_intermediate_size": 1536, "norm_topk_prob": true,
        "num_attention_heads": 96, "n_group": 1, "topk_group": 1, "n_routed_experts": 160,
        "n_shared_experts": 1, "routed_scaling_factor": 2.5, "num_experts_per_tok": 8,
        "first_k_dense_replace": 3, "num_hidden_layers": 92, "num_key_value_heads": 8,
        "num_nextn_predict_layers": 1, "rms_norm_eps": 1e-05, "rope_scaling": null,
        "rope_theta": 1000000, "tie_word_embeddings": false, "torch_dtype": "bfloat16",
        "transformers_version": "4.54.0", "use_cache": true, "use_qk_norm": true,
        "vocab_size": 151552
    }"#,
    )
}

fn gpt_oss() -> Value {
    let mut config = from(
        r#"{
        "architectures": ["GptOssForCausalLM"], "attention_bias": true,
        "attention_dropout": 0.0, "eos_token_id": 200002, "experts_per_token": 4,
        "head_dim": 64, "hidden_act": "silu", "hidden_size": 2880,
        "initial_context_length": 4096, "initializer_range": 0.02, "intermediate_size": 2880,
        "max_position_embeddings": 131072, "model_type": "gpt_oss",
        "num_attention_heads": 64, "num_experts_per_tok": 4, "num_hidden_layers": 24,
        "num_key_value_heads": 8, "num_local_experts": 32, "output_router_logits": false,
        "pad_token_id": 199999,
        "quantization_config": {"modules_to_not_convert": ["lm_head"],
            "quant_method": "mxfp4"},
        "rms_norm_eps": 1e-05,
        "rope_scaling": {"beta_fast": 32.0, "beta_slow": 1.0, "factor": 32.0,
            "original_max_position_embeddings": 4096, "rope_type": "yarn", "truncate": false},
        "rope_theta": 150000, "router_aux_loss_coef": 0.9, "sliding_window": 128,
        "swiglu_limit": 7.0, "tie_word_embeddings": false,
        "transformers_version": "4.55.0.dev0", "use_cache": true, "vocab_size": 201088
    }"#,
    );
    config["layer_types"] = json!(["sliding_attention", "full_attention"].repeat(12));
    config
}

fn qwen3_moe() -> Value {
    from(
        r#"{
        "architectures": ["Qwen3MoeForCausalLM"], "attention_bias": false,
        "attention_dropout": 0.0, "bos_token_id": 151643, "decoder_sparse_step": 1,
        "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu", "hidden_size": 2048,
        "initializer_range": 0.02, "intermediate_size": 6144,
        "max_position_embeddings": 40960, "max_window_layers": 48, "mlp_only_layers": [],
        "model_type": "qwen3_moe", "moe_intermediate_size": 768, "norm_topk_prob": true,
        "num_attention_heads": 32, "num_experts": 128, "num_experts_per_tok": 8,
        "num_hidden_layers": 48, "num_key_value_heads": 4, "output_router_logits": false,
        "rms_norm_eps": 1e-06, "rope_scaling": null, "rope_theta": 1000000.0,
        "router_aux_loss_coef": 0.001, "sliding_window": null, "tie_word_embeddings": false,
        "torch_dtype": "bfloat16", "transformers_version": "4.51.0", "use_cache": true,
        "use_sliding_window": false, "vocab_size": 151936
    }"#,
    )
}

#[test]
fn deepseek_v3_is_read_as_published() {
    let config = read(&deepseek_v3()).unwrap();
    let latent =
        Latent { q_rank: Some(1536), kv_rank: 512, nope: 128, rope: 64, value: 128, bias: false };
    assert_eq!(config.latent, Some(latent));
    assert_eq!((config.head_dim, config.rope_dim(), config.value_width()), (192, 64, 16384));
    assert!(config.rope_interleaved && config.norm_topk);
    assert_eq!(config.scoring, Scoring::Sigmoid { groups: 8, top_groups: 4, scale: 2.5 });
    assert_eq!((config.dense_layers, config.dense_width), (3, 18432));
    assert_eq!((config.shared_width, config.expert_width), (Some(2048), 2048));
    let yarn = config.yarn.unwrap();
    assert_eq!((yarn.factor, yarn.original, yarn.truncate), (40.0, 4096, true));
    assert!(is_skipped(&config, "model.layers.61.eh_proj.weight"));
    assert!(!is_skipped(&config, "model.layers.60.mlp.gate.weight"));
    assert!(!is_skipped(&config, "lm_head.weight"));
    // 671 billion parameters less the routed experts' 58 · 256 · 3 · 7168 · 2048.
    let dense: usize = dense_tensors(&config).iter().map(|t| t.elements()).sum();
    assert_eq!(dense / 1_000_000, 17_117);
}

#[test]
fn glm4_moe_is_read_as_published() {
    let config = read(&glm4_moe()).unwrap();
    assert_eq!(config.qk_norm, QkNorm::PerHead);
    assert!(config.qkv_bias && !config.o_bias && !config.rope_interleaved);
    assert_eq!((config.rope_dim(), config.rope_theta), (64, 1_000_000.0));
    assert_eq!(config.scoring, Scoring::Sigmoid { groups: 1, top_groups: 1, scale: 2.5 });
    assert_eq!((config.dense_layers, config.eos.len()), (3, 3));
    let mut plain = glm4_moe();
    plain["use_qk_norm"] = json!(false);
    plain["partial_rotary_factor"] = Value::Null;
    let config = read(&plain).unwrap();
    assert_eq!((config.qk_norm, config.rope_dim()), (QkNorm::None, 64));
}

#[test]
fn gpt_oss_is_read_as_published() {
    let config = read(&gpt_oss()).unwrap();
    assert!(config.sinks && config.qkv_bias && config.o_bias);
    assert_eq!(
        (config.window(0), config.window(1), config.window(22)),
        (Some(128), None, Some(128))
    );
    assert_eq!(config.activation, Activation::ClampedSwiGlu { limit: 7.0, alpha: 1.702 });
    assert_eq!(config.scoring, Scoring::SoftmaxOfChosen);
    assert!(!config.yarn.unwrap().truncate);
    // Without its own keys the family's defaults hold.
    let mut bare = gpt_oss();
    for key in ["rope_scaling", "rope_theta", "layer_types", "sliding_window", "swiglu_limit"] {
        bare.as_object_mut().unwrap().remove(key);
    }
    assert_eq!(read(&bare).unwrap(), config);
}

#[test]
fn published_configs_are_written_as_they_are_read() {
    for published in [deepseek_v3(), glm4_moe(), gpt_oss(), qwen3_moe()] {
        let config = read(&published).unwrap();
        assert_eq!(read(&config.to_hf_json(Precision::Bf16)).unwrap(), config);
    }
}

#[test]
fn what_changes_the_mathematics_is_refused_by_name() {
    let yarn = |key: &str, value: Value| {
        let mut yarn = json!({"rope_type": "yarn", "factor": 4.0});
        yarn[key] = value;
        yarn
    };
    let cases = [
        (qwen3_moe(), "rope_scaling", json!({"rope_type": "llama3"}), "llama3"),
        (qwen3_moe(), "rope_scaling", yarn("factor", Value::Null), "rope_scaling.factor"),
        (qwen3_moe(), "rope_scaling", yarn("short_factor", json!([1.0])), "short_factor"),
        (qwen3_moe(), "partial_rotary_factor", json!(0.5), "partial_rotary_factor"),
        (qwen3_moe(), "layer_types", json!(["sliding_attention"]), "layer_types"),
        (qwen3_moe(), "layer_types", json!(vec!["linear_attention"; 48]), "linear_attention"),
        (qwen3_moe(), "mlp_only_layers", json!([0]), "mlp_only_layers"),
        (qwen3_moe(), "quantization_config", json!({"quant_method": "gptq"}), "gptq"),
        (qwen3_moe(), "quantization_config", json!({"quant_method": "mxfp4"}), "mxfp4"),
        (qwen3_moe(), "attention_chunk_size", json!(8), "attention_chunk_size"),
        (deepseek_v3(), "scoring_func", json!("softmax"), "scoring_func"),
        (deepseek_v3(), "topk_method", json!("greedy"), "topk_method"),
        (deepseek_v3(), "moe_layer_freq", json!(2), "moe_layer_freq"),
        (deepseek_v3(), "n_group", json!(7), "7 groups"),
        (deepseek_v3(), "topk_group", json!(9), "9 of 8 groups"),
        (deepseek_v3(), "num_experts_per_tok", json!(129), "128 experts"),
        (deepseek_v3(), "num_key_value_heads", json!(8), "every head"),
        (deepseek_v3(), "first_k_dense_replace", json!(61), "dense_layers"),
        (deepseek_v3(), "n_shared_experts", json!(0), "shared_width"),
        (deepseek_v3(), "qk_head_dim", json!(100), "qk_head_dim"),
        (deepseek_v3(), "index_topk", json!(2048), "index_topk"),
        (
            deepseek_v3(),
            "quantization_config",
            json!({"quant_method": "fp8", "weight_block_size": [1, 128]}),
            "[128, 128]",
        ),
        (
            deepseek_v3(),
            "quantization_config",
            json!({"quant_method": "fp8", "weight_block_size": [128, 128], "fmt": "e5m2"}),
            "e5m2",
        ),
        (gpt_oss(), "layer_types", json!(vec!["chunked_attention"; 24]), "chunked_attention"),
        (gpt_oss(), "sliding_window", json!(0), "windows"),
        (gpt_oss(), "experts_per_token", json!(2), "experts_per_token"),
        (gpt_oss(), "hidden_act", json!("gelu"), "hidden_act"),
    ];
    for (mut config, key, value, named) in cases {
        config[key] = value;
        let error = read(&config).unwrap_err().to_string();
        assert!(error.contains(named) && error.contains("config.json"), "{key}: {error}");
    }
    let mut other = qwen3_moe();
    other["model_type"] = json!("deepseek_v32");
    assert!(read(&other).unwrap_err().to_string().contains("deepseek_v32"));
}

#[test]
fn only_what_is_differentiated_is_trained() {
    for family in Family::ALL {
        let trainable = ModelConfig::of_family(family).check_trainable();
        assert_eq!(trainable.is_ok(), family.spec().trainable);
    }
    let error = read(&gpt_oss()).unwrap().check_trainable().unwrap_err().to_string();
    assert!(error.contains("gpt_oss") && error.contains("mixtral"), "{error}");
    let mut long = qwen3_moe();
    read(&long).unwrap().check_trainable().unwrap();
    long["rope_scaling"] = json!({"type": "yarn", "factor": 4.0,
        "original_max_position_embeddings": 32768});
    let error = read(&long).unwrap().check_trainable().unwrap_err().to_string();
    assert!(error.contains("yarn"), "{error}");
}
