//! A model's configuration out of GGUF metadata, as llama.cpp's converter writes it. Every key
//! below the architecture's name is read, known to change nothing, or refused by name.

use super::header::Gguf;
use super::reader::{List, Value};
use crate::base::{Error, Result};
use crate::model::config::ModelConfig;
use crate::model::family::Family;
use std::collections::HashSet;

/// Keys of an architecture that change nothing in how a sequence is computed.
const INERT: [&str; 2] = ["vocab_size", "rope.scaling.finetuned"];

/// Metadata being read; remembers which keys were asked for.
struct Keys<'a> {
    gguf: &'a Gguf,
    arch: &'a str,
    seen: HashSet<String>,
}

impl<'a> Keys<'a> {
    fn get(&mut self, key: &str) -> Option<&'a Value> {
        let key = format!("{}.{key}", self.arch);
        let found = self.gguf.metadata.get(&key);
        self.seen.insert(key);
        found
    }

    fn wrong(&self, key: &str, expected: &str, found: &Value) -> Error {
        let arch = self.arch;
        Error::input(format!("key \"{arch}.{key}\" must be {expected}, found {}", shown(found)))
    }

    fn count(&mut self, key: &str) -> Result<Option<usize>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let whole = match value {
            Value::Whole(n) => usize::try_from(*n).ok(),
            // Written once a layer by some versions of the converter.
            Value::List(List::Whole(list)) => match list.first() {
                Some(first) if list.iter().all(|n| n == first) => usize::try_from(*first).ok(),
                _ => None,
            },
            _ => None,
        };
        let expected = "a whole number of 0 or more, the same in all layers";
        whole.map(Some).ok_or_else(|| self.wrong(key, expected, value))
    }

    fn required(&mut self, key: &str) -> Result<usize> {
        self.count(key)?.ok_or_else(|| self.missing(key))
    }

    fn missing(&self, key: &str) -> Error {
        Error::input(format!("key \"{}.{key}\" is missing", self.arch))
    }

    fn number(&mut self, key: &str) -> Result<Option<f64>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Number(number)) => Ok(Some(*number)),
            Some(other) => Err(self.wrong(key, "a number", other)),
        }
    }

    fn bool(&mut self, key: &str) -> Result<Option<bool>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(*value)),
            Some(other) => Err(self.wrong(key, "true or false", other)),
        }
    }

    /// A count of which only one value is supported.
    fn only(&mut self, key: &str, supported: usize) -> Result<()> {
        match self.count(key)? {
            Some(found) if found != supported => Err(Error::input(format!(
                "key \"{}.{key}\" = {found} is not supported, only {supported} is",
                self.arch
            ))),
            _ => Ok(()),
        }
    }

    fn finish(self) -> Result<()> {
        let prefix = format!("{}.", self.arch);
        for (key, value) in &self.gguf.metadata {
            let Some(own) = key.strip_prefix(&prefix) else { continue };
            if !self.seen.contains(key) && !INERT.contains(&own) {
                return Err(Error::input(format!(
                    "key \"{}\" = {} is not known for this architecture and may change the \
                     mathematics, so the model is refused",
                    key.escape_debug(),
                    shown(value)
                )));
            }
        }
        Ok(())
    }
}

fn shown(value: &Value) -> String {
    format!("{value:?}").chars().take(80).collect()
}

/// Reads the configuration.
///
/// # Errors
/// Input: another architecture, a missing key, or one that changes the mathematics in a way that
/// is not supported; each by name.
pub fn config(gguf: &Gguf) -> Result<ModelConfig> {
    let Some(Value::Text(arch)) = gguf.metadata.get("general.architecture") else {
        return Err(Error::input("key \"general.architecture\" is missing"));
    };
    let family = match arch.as_str() {
        "olmoe" => Family::Olmoe,
        "qwen2moe" => Family::Qwen2Moe,
        "qwen3moe" => Family::Qwen3Moe,
        "llama" => Family::Mixtral,
        other => {
            return Err(Error::input(format!(
                "GGUF architecture \"{}\" is not supported; supported are olmoe, qwen2moe, \
                 qwen3moe, and llama with experts",
                other.escape_debug()
            )));
        }
    };
    let mut keys = Keys { gguf, arch, seen: HashSet::new() };
    let mut config = ModelConfig::of_family(family);
    sizes(&mut keys, &mut config)?;
    switches(&mut keys, &mut config)?;
    keys.finish()?;
    config.bos = token(gguf, "tokenizer.ggml.bos_token_id")?;
    config.eos = token(gguf, "tokenizer.ggml.eos_token_id")?.into_iter().collect();
    if let Some(turn) = token(gguf, "tokenizer.ggml.eot_token_id")?
        && !config.eos.contains(&turn)
    {
        config.eos.push(turn);
    }
    config.pad = token(gguf, "tokenizer.ggml.padding_token_id")?;
    config.validate().map_err(|e| Error::input(e.message().to_owned()))?;
    Ok(config)
}

fn sizes(keys: &mut Keys<'_>, config: &mut ModelConfig) -> Result<()> {
    config.layers = keys.required("block_count")?;
    config.hidden = keys.required("embedding_length")?;
    config.heads = keys.required("attention.head_count")?;
    config.kv_heads = keys.count("attention.head_count_kv")?.unwrap_or(config.heads);
    let default = config.hidden / config.heads.max(1);
    config.head_dim = keys.count("attention.key_length")?.unwrap_or(default);
    keys.only("attention.value_length", config.head_dim)?;
    config.max_position = keys.required("context_length")?;
    config.experts = keys.count("expert_count")?.unwrap_or(0);
    if config.experts == 0 {
        return Err(Error::input(format!(
            "key \"{}.expert_count\" is missing: this model has no experts",
            keys.arch
        )));
    }
    config.top_k = keys.required("expert_used_count")?;
    let dense = keys.count("feed_forward_length")?;
    let width = keys.count("expert_feed_forward_length")?.or(dense);
    config.expert_width = width.ok_or_else(|| keys.missing("expert_feed_forward_length"))?;
    if config.family == Family::Qwen2Moe {
        config.shared_width = Some(keys.required("expert_shared_feed_forward_length")?);
    }
    let tensor = |name: &str| keys.gguf.tensors.iter().find(|tensor| tensor.name == name);
    let embedding = tensor("token_embd.weight").and_then(|tensor| tensor.shape.first().copied());
    let embedding = embedding.and_then(|rows| usize::try_from(rows).ok()).ok_or_else(|| {
        Error::input("tensor is missing from the file").with("tensor", "token_embd.weight")
    })?;
    config.vocab = embedding;
    config.tie_embeddings = tensor("output.weight").is_none();
    Ok(())
}

fn switches(keys: &mut Keys<'_>, config: &mut ModelConfig) -> Result<()> {
    let eps = keys.number("attention.layer_norm_rms_epsilon")?;
    config.norm_eps = eps.ok_or_else(|| keys.missing("attention.layer_norm_rms_epsilon"))?;
    config.rope_theta = keys.number("rope.freq_base")?.unwrap_or(10_000.0);
    keys.only("rope.dimension_count", config.head_dim)?;
    match keys.get("rope.scaling.type") {
        None => {}
        Some(Value::Text(kind)) if kind == "none" => {}
        Some(other) => return Err(keys.wrong("rope.scaling.type", "\"none\"", other)),
    }
    // llama.cpp computes it so, whatever the file says, where it says nothing.
    let norm = matches!(config.family, Family::Mixtral | Family::Qwen3Moe);
    config.norm_topk = keys.bool("expert_weights_norm")?.unwrap_or(norm);
    keys.only("expert_gating_func", 1)?;
    keys.only("expert_group_count", 1)?;
    keys.only("expert_group_used_count", 1)?;
    keys.only("leading_dense_block_count", 0)?;
    if config.family == Family::Olmoe {
        config.clip_qkv = keys.number("attention.clamp_kqv")?.filter(|clip| *clip > 0.0);
    }
    if let Some(window) = keys.count("attention.sliding_window")?
        && window != 0
        && window < config.max_position
    {
        return Err(Error::input(format!(
            "key \"{}.attention.sliding_window\" = {window} is not supported: attention here sees \
             the whole sequence",
            keys.arch
        )));
    }
    Ok(())
}

fn token(gguf: &Gguf, key: &str) -> Result<Option<u32>> {
    match gguf.metadata.get(key) {
        None => Ok(None),
        Some(Value::Whole(id)) if u32::try_from(*id).is_ok() => Ok(Some(*id as u32)),
        Some(other) => {
            Err(Error::input(format!("key \"{key}\" must be a token id, found {}", shown(other))))
        }
    }
}
