//! `config.json` in and out. Every key is one of: read, known to change nothing, or refused by
//! name; so a checkpoint whose mathematics differ is never run wrong.

use crate::base::{Error, Result};
use crate::model::config::{ModelConfig, Precision};
use crate::model::family::Family;
use serde_json::{Map, Value, json};
use std::collections::HashSet;
use std::path::{Path, PathBuf};

/// Keys that change nothing in how a sequence is computed, whatever they hold.
const INERT: &[&str] = &[
    "_attn_implementation_autoset",
    "_experts_implementation",
    "_name_or_path",
    "architectures",
    "auto_map",
    "chunk_size_feed_forward",
    "dtype",
    "id2label",
    "label2id",
    "max_window_layers",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "pretraining_tp",
    "problem_type",
    "return_dict",
    "torch_dtype",
    "transformers_version",
    "use_cache",
];

/// A `config.json` being read; remembers which keys were asked for.
pub struct Keys {
    path: PathBuf,
    map: Map<String, Value>,
    seen: HashSet<String>,
}

impl Keys {
    fn error(&self, message: impl Into<String>) -> Error {
        Error::input(message).with("file", self.path.display())
    }

    fn get(&mut self, key: &str) -> Option<Value> {
        self.seen.insert(key.to_owned());
        self.map.get(key).filter(|value| !value.is_null()).cloned()
    }

    fn wrong(&self, key: &str, expected: &str, found: &Value) -> Error {
        self.error(format!("key \"{key}\" must be {expected}, found {found}"))
    }

    /// An optional count.
    pub fn count(&mut self, key: &str) -> Result<Option<usize>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let count = value.as_u64().and_then(|n| usize::try_from(n).ok());
        count.map(Some).ok_or_else(|| self.wrong(key, "a whole number of 0 or more", &value))
    }

    /// A count that must be there.
    pub fn required(&mut self, key: &str) -> Result<usize> {
        self.count(key)?.ok_or_else(|| self.error(format!("key \"{key}\" is missing")))
    }

    fn required_of(&mut self, keys: &[&str]) -> Result<usize> {
        let mut found = None;
        for key in keys {
            if let Some(value) = self.count(key)? {
                if found.is_some_and(|earlier| earlier != value) {
                    return Err(self.error(format!("keys {} disagree", keys.join(" and "))));
                }
                found = Some(value);
            }
        }
        found.ok_or_else(|| self.error(format!("key \"{}\" is missing", keys[0])))
    }

    /// An optional number.
    pub fn number(&mut self, key: &str) -> Result<Option<f64>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_f64().map(Some).ok_or_else(|| self.wrong(key, "a number", &value))
    }

    /// An optional truth value.
    pub fn bool(&mut self, key: &str) -> Result<Option<bool>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_bool().map(Some).ok_or_else(|| self.wrong(key, "true or false", &value))
    }

    /// A key that changes the mathematics and of which only one value is supported.
    pub fn only(&mut self, key: &str, supported: &Value) -> Result<()> {
        let Some(value) = self.get(key) else { return Ok(()) };
        let same_number = value.as_f64().is_some() && value.as_f64() == supported.as_f64();
        if value == *supported || same_number {
            return Ok(());
        }
        Err(self.error(format!("key \"{key}\" = {value} is not supported, only {supported} is")))
    }

    /// Qwen's switches that would make some layers dense.
    pub fn sparse_everywhere(&mut self) -> Result<()> {
        self.only("decoder_sparse_step", &json!(1))?;
        self.only("mlp_only_layers", &json!([]))?;
        // Width of those dense layers, of which there are none.
        self.count("intermediate_size").map(drop)
    }

    /// A sliding window that would shorten attention: refused unless it cannot bite.
    pub fn no_window(&mut self, key: &str) -> Result<()> {
        let Some(value) = self.count(key)? else { return Ok(()) };
        let longest = self.count("max_position_embeddings")?.unwrap_or(usize::MAX);
        if value == 0 || value >= longest {
            return Ok(());
        }
        Err(self.error(format!(
            "key \"{key}\" = {value} is not supported: attention here sees the whole sequence"
        )))
    }

    /// Qwen's window, which counts only where `use_sliding_window` is true.
    pub fn optional_window(&mut self) -> Result<()> {
        if self.bool("use_sliding_window")?.unwrap_or(false) {
            return self.no_window("sliding_window");
        }
        self.get("sliding_window");
        Ok(())
    }

    /// `rope_theta`, at the top or inside `rope_parameters`; any scaling is refused.
    fn rope_theta(&mut self) -> Result<f64> {
        let mut theta = self.number("rope_theta")?;
        for key in ["rope_parameters", "rope_scaling"] {
            let Some(value) = self.get(key) else { continue };
            let Value::Object(rope) = &value else {
                return Err(self.wrong(key, "an object", &value));
            };
            for (name, value) in rope {
                let fine = match name.as_str() {
                    "rope_type" | "type" => value == "default",
                    "partial_rotary_factor" => value.as_f64() == Some(1.0),
                    "rope_theta" => {
                        let inner = value.as_f64().filter(|theta| *theta > 0.0);
                        theta = inner.or(theta);
                        inner.is_some()
                    }
                    _ => value.is_null(),
                };
                if !fine {
                    return Err(self.error(format!(
                        "key \"{key}.{name}\" = {value} is not supported, only plain rotary \
                         embedding is"
                    )));
                }
            }
        }
        Ok(theta.unwrap_or(10_000.0))
    }

    /// One token id, or a list of them.
    fn tokens(&mut self, key: &str) -> Result<Vec<u32>> {
        let Some(value) = self.get(key) else { return Ok(Vec::new()) };
        let list = match &value {
            Value::Array(list) => list.clone(),
            one => vec![one.clone()],
        };
        let ids: Option<Vec<u32>> =
            list.iter().map(|id| id.as_u64().and_then(|id| u32::try_from(id).ok())).collect();
        ids.ok_or_else(|| self.wrong(key, "a token id or a list of them", &value))
    }

    /// Refuses every key that was neither read nor is known to change nothing.
    fn finish(self) -> Result<()> {
        for (key, value) in &self.map {
            let known = self.seen.contains(key) || INERT.contains(&key.as_str());
            if known || value.is_null() {
                continue;
            }
            let shown: String = value.to_string().chars().take(80).collect();
            return Err(self.error(format!(
                "key \"{key}\" = {shown} is not known for this family and may change the \
                 mathematics, so the model is refused"
            )));
        }
        Ok(())
    }
}

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
    let mut keys = Keys { path: path.to_owned(), map, seen: HashSet::new() };

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
    config.rope_theta = keys.rope_theta()?;
    config.tie_embeddings = keys.bool("tie_word_embeddings")?.unwrap_or(false);
    config.init_std = keys.number("initializer_range")?.unwrap_or(0.02);
    config.router_aux_coef = keys.number("router_aux_loss_coef")?.unwrap_or(0.01);
    config.bos = keys.tokens("bos_token_id")?.first().copied();
    config.eos = keys.tokens("eos_token_id")?;
    config.pad = keys.tokens("pad_token_id")?.first().copied();
    keys.only("hidden_act", &json!("silu"))?;
    keys.only("attention_dropout", &json!(0.0))?;
    if let Some(Value::Array(kinds)) = keys.get("layer_types")
        && let Some(other) = kinds.iter().find(|kind| *kind != "full_attention")
    {
        return Err(
            keys.error(format!("key \"layer_types\" holds {other}, which is not supported"))
        );
    }
    (spec.read)(&mut keys, &mut config)?;
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
    // Both spellings: transformers 5 reads `dtype` and `rope_parameters`, earlier ones the others.
    put("dtype", json!(dtype));
    put("torch_dtype", json!(dtype));
    put("rope_theta", json!(config.rope_theta));
    put("rope_parameters", json!({ "rope_theta": config.rope_theta, "rope_type": "default" }));
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
