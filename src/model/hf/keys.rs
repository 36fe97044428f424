//! The keys of a `config.json` while it is read: which were asked for, so that the rest can be
//! refused by name.

use crate::base::{Error, Result};
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
    pub(super) fn new(map: Map<String, Value>, path: &Path) -> Self {
        Self { path: path.to_owned(), map, seen: HashSet::new() }
    }

    pub fn error(&self, message: impl Into<String>) -> Error {
        Error::input(message).with("file", self.path.display())
    }

    pub(super) fn get(&mut self, key: &str) -> Option<Value> {
        self.seen.insert(key.to_owned());
        self.map.get(key).filter(|value| !value.is_null()).cloned()
    }

    pub(super) fn wrong(&self, key: &str, expected: &str, found: &Value) -> Error {
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
        self.count(key)?.ok_or_else(|| self.missing(key))
    }

    pub fn missing(&self, key: &str) -> Error {
        self.error(format!("key \"{key}\" is missing"))
    }

    pub(super) fn required_of(&mut self, keys: &[&str]) -> Result<usize> {
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

    /// Whether a key is there and not null.
    pub fn has(&self, key: &str) -> bool {
        self.map.get(key).is_some_and(|value| !value.is_null())
    }

    /// A key that matters elsewhere (training, placement) and not to how a sequence is computed.
    pub fn inert(&mut self, key: &str) {
        self.seen.insert(key.to_owned());
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

    /// The kind of attention of each of `layers` layers, where the config says.
    pub fn layer_kinds(&mut self, layers: usize) -> Result<Option<Vec<String>>> {
        let Some(value) = self.get("layer_types") else { return Ok(None) };
        let expected = format!("a list of {layers} names");
        let names = value.as_array().filter(|list| list.len() == layers).and_then(|list| {
            list.iter().map(|name| name.as_str().map(str::to_owned)).collect::<Option<Vec<_>>>()
        });
        names.map(Some).ok_or_else(|| self.wrong("layer_types", &expected, &value))
    }

    /// Refuses every kind of attention but that over the whole sequence.
    pub fn whole_attention(&mut self, layers: usize) -> Result<()> {
        let kinds = self.layer_kinds(layers)?.unwrap_or_default();
        match kinds.iter().find(|kind| *kind != "full_attention") {
            Some(other) => Err(self.error(format!(
                "key \"layer_types\" holds \"{other}\", which is not supported for this family"
            ))),
            None => Ok(()),
        }
    }

    /// One token id, or a list of them.
    pub(super) fn tokens(&mut self, key: &str) -> Result<Vec<u32>> {
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
    pub(super) fn finish(self) -> Result<()> {
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
