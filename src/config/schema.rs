//! The JSON schema of a configuration file, derived from the structs.
//!
//! Beside what JSON Schema knows, a key may carry `x-default` (in words, where the default
//! depends on other keys), `x-positive` (a size or duration that must not be zero) and
//! `x-alternative` (a key that stands instead of all others of its table).

use super::Config;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};
use std::sync::LazyLock;

static SCHEMA: LazyLock<Value> = LazyLock::new(|| {
    let settings = SchemaSettings::draft07().with(|s| s.inline_subschemas = true);
    let mut schema = settings.into_generator().into_root_schema_for::<Config>().to_value();
    tidy(&mut schema);
    // The line that editors look for at the top of a file is no key, so nothing is added for it.
    schema["title"] = json!("semoe configuration");
    schema
});

/// The schema that `semoe config schema` writes.
pub fn schema() -> &'static Value {
    &SCHEMA
}

/// The schema as the text of `configs/schema.json`.
pub fn text() -> String {
    format!("{:#}\n", *SCHEMA)
}

/// The schema of the key at `path` (table names, then the key), if there is such a key.
pub fn of_key(path: &str) -> Option<&'static Value> {
    let mut at = schema();
    for name in path.split('.') {
        at = at.get("properties")?.get(name)?;
    }
    Some(at)
}

/// Every key, dotted, in the order of the file.
pub fn keys() -> Vec<String> {
    fn walk(prefix: &str, schema: &Value, keys: &mut Vec<String>) {
        let Some(properties) = schema.get("properties").and_then(Value::as_object) else {
            return;
        };
        for (name, property) in properties {
            let key = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
            if property.get("properties").is_none() {
                keys.push(key.clone());
            }
            walk(&key, property, keys);
        }
    }
    let mut keys = Vec::new();
    walk("", schema(), &mut keys);
    keys
}

/// The words that a key may be, when its schema is a list of words.
pub fn words(schema: &Value) -> Vec<&str> {
    if let Some(word) = schema.get("const").and_then(Value::as_str) {
        return vec![word];
    }
    if let Some(list) = schema.get("enum").and_then(Value::as_array) {
        return list.iter().filter_map(Value::as_str).collect();
    }
    let variants = schema.get("oneOf").and_then(Value::as_array);
    variants.into_iter().flatten().flat_map(words).collect()
}

/// Turns what the derive gives into what a reader and an editor of TOML want.
fn tidy(schema: &mut Value) {
    match schema {
        Value::Object(object) => {
            tidy_object(object);
            for (name, inner) in object {
                match inner {
                    // A map from keys to schemas, no schema itself: a key may be named "format".
                    Value::Object(keys) if name == "properties" => {
                        keys.values_mut().for_each(tidy);
                    }
                    inner => tidy(inner),
                }
            }
        }
        Value::Array(list) => list.iter_mut().for_each(tidy),
        _ => {}
    }
}

fn tidy_object(object: &mut Map<String, Value>) {
    drop_null(object);
    if let Some(Value::String(text)) = object.get_mut("description") {
        *text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    }
    // Formats such as "uint64" mean nothing outside Rust.
    let foreign = |f: &Value| !matches!(f.as_str(), Some("bytes" | "duration"));
    if object.get("format").is_some_and(foreign) {
        object.shift_remove("format");
    }
    let spoken = object.contains_key("x-default") || object.contains_key("x-required");
    if spoken || object.get("default").is_some_and(|d| d.is_object() || d.is_null()) {
        object.shift_remove("default");
    }
    if object.contains_key("properties") {
        set_required(object);
    }
}

/// TOML has no null, so an optional key is one that may be absent.
fn drop_null(object: &mut Map<String, Value>) {
    if let Some(Value::Array(types)) = object.get_mut("type") {
        types.retain(|t| t != "null");
        if let [only] = types.as_slice() {
            let only = only.clone();
            object.insert("type".into(), only);
        }
    }
}

/// `required` is what carries `x-required`, and the tag of a table with several kinds.
fn set_required(object: &mut Map<String, Value>) {
    let mut required = Vec::new();
    if let Some(properties) = object.get_mut("properties").and_then(Value::as_object_mut) {
        for (name, property) in properties.iter_mut() {
            let Some(property) = property.as_object_mut() else { continue };
            let marked = property.contains_key("x-required");
            if marked || property.contains_key("const") {
                required.push(Value::from(name.as_str()));
            }
            if marked {
                property.shift_remove("default");
                property.shift_remove("x-required");
            }
        }
    }
    object.shift_remove("required");
    if required.is_empty() {
        return;
    }
    match object.get("x-alternative").cloned() {
        Some(instead) => {
            let either = json!([{ "required": [instead] }, { "required": required }]);
            object.insert("anyOf".into(), either);
        }
        None => {
            object.insert("required".into(), required.into());
        }
    }
}
