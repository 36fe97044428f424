//! `config.json` in and out. Every key is one of: read, known to change nothing, or refused by
//! name; so a checkpoint whose mathematics differ is never run wrong.

pub use super::keys::Keys;
use super::{encoding, rope};
use crate::base::{Error, Result};
use crate::model::config::{ModelConfig, Precision};
use crate::model::family::Family;
use serde_json::{Map, Value, json};
use std::path::Path;

/// Reads a folder's `config.json`, or the file itself.
pub(in crate::model) fn read(path: &Path) -> Result<ModelConfig> {
    let path = if path.is_dir() { path.join("config.json") } else { path.to_owned() };
    let text = std::fs::read_to_string(&path).map_err(|e| {
        Error::input(format!("cannot read the model config {}", path.display())).from_source(e)
    })?;
    parse(&text, &path)
}

/// Reads the text of a `config.json`; `path` is for messages.
pub fn parse(text: &str, path: &Path) -> Result<ModelConfig> {
    let value: Value = serde_json::from_str(text).map_err(|e| {
        Error::input("model config is not JSON").with("file", path.display()).from_source(e)
    })?;
    let Value::Object(map) = value else {
        return Err(Error::input("model config is not a JSON object").with("file", path.display()));
    };
    let mut keys = Keys::new(map, path);

    let model_type = keys.get("model_type");
    let model_type = model_type
        .as_ref()
        .and_then(Value::as_str)
        .ok_or_else(|| keys.error("key \"model_type\" is missing"))?;
    let family: Family = model_type.parse().map_err(|e: Error| e.with("file", path.display()))?;
    let spec = family.spec();

    let mut config = ModelConfig::of_family(family);
    config.vocab = keys.required("vocab_size")?;
    config.hidden = keys.required("hidden_size")?;
    config.layers = keys.required("num_hidden_layers")?;
    config.heads = keys.required("num_attention_heads")?;
    config.kv_heads = keys.count("num_key_value_heads")?.unwrap_or(config.heads);
    let head_dim = keys.count("head_dim")?;
    config.head_dim = head_dim.unwrap_or(config.hidden / config.heads.max(1));
    config.experts = keys.required_of(spec.experts_keys)?;
    config.top_k = keys.required("num_experts_per_tok")?;
    config.expert_width = keys.required(spec.expert_width_key)?;
    config.max_position = keys.required("max_position_embeddings")?;
    let eps = keys.number("rms_norm_eps")?;
    config.norm_eps = eps.ok_or_else(|| keys.error("key \"rms_norm_eps\" is missing"))?;
    rope::read(&mut keys, &mut config)?;
    encoding::read(&mut keys, family)?;
    config.tie_embeddings = keys.bool("tie_word_embeddings")?.unwrap_or(false);
    config.init_std = keys.number("initializer_range")?.unwrap_or(0.02);
    config.router_aux_coef = keys.number("router_aux_loss_coef")?.unwrap_or(0.01);
    config.bos = keys.tokens("bos_token_id")?.first().copied();
    config.eos = keys.tokens("eos_token_id")?;
    config.pad = keys.tokens("pad_token_id")?.first().copied();
    keys.only("hidden_act", &json!("silu"))?;
    keys.only("attention_dropout", &json!(0.0))?;
    (spec.read)(&mut keys, &mut config)?;
    if config.windows.is_empty() {
        keys.whole_attention(config.layers)?;
    }
    keys.finish()?;
    config
        .validate()
        .map_err(|e| Error::input(e.message().to_owned()).with("file", path.display()))?;
    Ok(config)
}

/// The keys that transformers expects for `config`.
pub(in crate::model) fn write(config: &ModelConfig, dtype: Precision) -> Value {
    let spec = config.family.spec();
    let dtype = match dtype {
        Precision::F32 => "float32",
        Precision::Bf16 => "bfloat16",
    };
    let mut out = Map::new();
    let mut put = |key: &str, value: Value| {
        out.insert(key.into(), value);
    };
    put("architectures", json!([spec.architecture]));
    put("model_type", json!(spec.model_type));
    // Both spellings: transformers 5 reads `dtype`, earlier ones `torch_dtype`.
    put("dtype", json!(dtype));
    put("torch_dtype", json!(dtype));
    put("vocab_size", json!(config.vocab));
    put("hidden_size", json!(config.hidden));
    put("num_hidden_layers", json!(config.layers));
    put("num_attention_heads", json!(config.heads));
    put("num_key_value_heads", json!(config.kv_heads));
    if config.head_dim * config.heads != config.hidden || config.family == Family::Qwen3Moe {
        put("head_dim", json!(config.head_dim));
    }
    put(spec.experts_keys[0], json!(config.experts));
    put("num_experts_per_tok", json!(config.top_k));
    put("max_position_embeddings", json!(config.max_position));
    put("rms_norm_eps", json!(config.norm_eps));
    put("tie_word_embeddings", json!(config.tie_embeddings));
    put("initializer_range", json!(config.init_std));
    put("router_aux_loss_coef", json!(config.router_aux_coef));
    put("output_router_logits", json!(false));
    put("hidden_act", json!("silu"));
    put("attention_dropout", json!(0.0));
    put("use_cache", json!(true));
    put("bos_token_id", json!(config.bos));
    put("eos_token_id", eos(config));
    put("pad_token_id", json!(config.pad));
    rope::write(config, &mut out);
    (spec.write)(config, &mut out);
    out.insert(spec.expert_width_key.into(), json!(config.expert_width));
    Value::Object(out)
}

/// The `generation_config.json` that goes with `config`: greedy unless the user says otherwise.
pub fn generation_config(config: &ModelConfig) -> Value {
    let mut out = Map::new();
    out.insert("_from_model_config".into(), json!(true));
    out.insert("bos_token_id".into(), json!(config.bos));
    out.insert("eos_token_id".into(), eos(config));
    out.insert("pad_token_id".into(), json!(config.pad));
    out.retain(|_, value| !value.is_null());
    Value::Object(out)
}

fn eos(config: &ModelConfig) -> Value {
    match config.eos.as_slice() {
        [] => Value::Null,
        [one] => json!(one),
        many => json!(many),
    }
}
