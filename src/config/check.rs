//! Checks a table against the schema: unknown keys, wrong types and words, missing keys, bounds.
//!
//! The faults that hide others come first: an unknown key before the missing key that it was
//! meant to be.

use super::{nearest, schema};
use crate::base::units::{Bytes, Duration};
use serde_json::Value as Json;
use std::fmt;
use toml::Value;

/// What is wrong with one key. The message names the key.
#[derive(Debug, Clone, PartialEq)]
pub struct Fault {
    /// The key, dotted, an array's elements as `key[0]`; empty for the whole file.
    pub path: String,
    rank: Rank,
    message: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    Unknown,
    Kind,
    Missing,
    Bound,
}

impl Fault {
    /// A fault of the key `path`; `message` names it.
    pub fn new(path: impl Into<String>, message: impl Into<String>) -> Self {
        Self { path: path.into(), rank: Rank::Bound, message: message.into() }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// The first fault of a configuration's table, if it has one.
pub fn first_fault(table: &toml::Table) -> Option<Fault> {
    let mut walk = Walk { faults: Vec::new() };
    walk.table("", table, schema::schema());
    walk.faults.into_iter().min_by_key(|fault| fault.rank)
}

struct Walk {
    faults: Vec<Fault>,
}

impl Walk {
    fn fault(&mut self, rank: Rank, path: &str, message: String) {
        self.faults.push(Fault { path: path.to_owned(), rank, message });
    }

    fn table(&mut self, path: &str, table: &toml::Table, schema: &Json) {
        let none = serde_json::Map::new();
        let properties = schema.get("properties").and_then(Json::as_object).unwrap_or(&none);
        for (name, value) in table {
            let key = join(path, name);
            match properties.get(name) {
                Some(property) => self.value(&key, value, property),
                None => self.unknown(path, name, &key, properties),
            }
        }
        if self.replaced(path, table, schema) {
            return;
        }
        for (name, property) in properties {
            if table.contains_key(name) {
                continue;
            }
            let key = join(path, name);
            if property.get("properties").is_some() {
                self.table(&key, &toml::Table::new(), property);
            } else if required(schema).any(|r| r == name) {
                let means = property.get("description").and_then(Json::as_str).unwrap_or_default();
                let means = means.trim_end_matches('.');
                let message = format!("`{key}` is missing and has no default ({means})");
                self.fault(Rank::Missing, &key, message);
            }
        }
    }

    /// Whether the table has the key that stands instead of all its others.
    fn replaced(&mut self, path: &str, table: &toml::Table, schema: &Json) -> bool {
        let Some(instead) = schema.get("x-alternative").and_then(Json::as_str) else {
            return false;
        };
        if !table.contains_key(instead) {
            return false;
        }
        let instead_key = join(path, instead);
        for name in table.keys().filter(|name| *name != instead) {
            let key = join(path, name);
            let message =
                format!("`{key}` cannot stand beside `{instead_key}`: remove one of them");
            self.fault(Rank::Bound, &key, message);
        }
        true
    }

    fn unknown(
        &mut self,
        table: &str,
        name: &str,
        key: &str,
        properties: &serde_json::Map<String, Json>,
    ) {
        // Keys of this table that no dotted path reaches (those inside an array) count as well.
        let mut keys = schema::keys();
        keys.extend(properties.keys().map(|name| join(table, name)));
        let nearest = nearest::key(table, name, &keys).unwrap_or_default();
        self.fault(Rank::Unknown, key, format!("`{key}` is not a key: the nearest is `{nearest}`"));
    }

    fn value(&mut self, path: &str, value: &Value, schema: &Json) {
        if schema.get("properties").is_some() {
            match value.as_table() {
                Some(table) => self.table(path, table, schema),
                None => self.kind(path, value, "a table"),
            }
            return;
        }
        if let Some(variants) = tagged(schema) {
            return self.variant(path, value, variants);
        }
        if let Some(branch) = schema.get("anyOf").and_then(Json::as_array) {
            let table = branch.iter().find(|b| b.get("properties").is_some());
            match (value, table) {
                (Value::String(_), _) => {}
                (Value::Table(inner), Some(schema)) => self.table(path, inner, schema),
                _ => self.kind(path, value, "a path or a table"),
            }
            return;
        }
        let words = schema::words(schema);
        if !words.is_empty() {
            return self.word(path, value, &words);
        }
        self.scalar(path, value, schema);
    }

    /// A table with a `kind` that says which keys it has.
    fn variant(&mut self, path: &str, value: &Value, variants: &[Json]) {
        let Some(table) = value.as_table() else {
            return self.kind(path, value, "a table such as { kind = \"bytes\" }");
        };
        let tag_of = |variant: &Json| variant["properties"]["kind"]["const"].clone();
        let Some(kind) = table.get("kind") else {
            let message = format!("`{path}.kind` is missing and has no default");
            return self.fault(Rank::Missing, path, message);
        };
        match variants.iter().find(|v| tag_of(v).as_str() == kind.as_str()) {
            Some(variant) if kind.is_str() => self.table(path, table, variant),
            _ => {
                let tags: Vec<Json> = variants.iter().map(tag_of).collect();
                let words: Vec<&str> = tags.iter().filter_map(Json::as_str).collect();
                self.word(&join(path, "kind"), kind, &words);
            }
        }
    }

    fn word(&mut self, path: &str, value: &Value, words: &[&str]) {
        let Some(word) = value.as_str() else {
            return self.kind(path, value, &format!("one of {}", quoted(words)));
        };
        if words.contains(&word) {
            return;
        }
        let nearest = nearest::word(word, words).unwrap_or_default();
        let all = quoted(words);
        let message =
            format!("`{path}` cannot be \"{word}\": the nearest is \"{nearest}\" (of {all})");
        self.fault(Rank::Kind, path, message);
    }

    fn scalar(&mut self, path: &str, value: &Value, schema: &Json) {
        let positive = schema.get("x-positive").is_some();
        match schema.get("format").and_then(Json::as_str) {
            Some("bytes") => return self.parsed::<Bytes>(path, value, positive, "a size"),
            Some("duration") => {
                return self.parsed::<Duration>(path, value, positive, "a duration");
            }
            _ => {}
        }
        match (schema.get("type").and_then(Json::as_str), value) {
            (Some("integer"), Value::Integer(n)) => self.bounds(path, *n as f64, schema),
            (Some("number"), Value::Integer(n)) => self.bounds(path, *n as f64, schema),
            (Some("number"), Value::Float(x)) => self.bounds(path, *x, schema),
            (Some("boolean"), Value::Boolean(_)) => {}
            (Some("string"), Value::String(text)) => {
                if text.is_empty() {
                    self.fault(Rank::Bound, path, format!("`{path}` cannot be empty"));
                }
            }
            (Some("array"), Value::Array(list)) => self.list(path, list, schema),
            (Some("integer"), _) => self.kind(path, value, "a whole number"),
            (Some("number"), _) => self.kind(path, value, "a number"),
            (Some("boolean"), _) => self.kind(path, value, "true or false"),
            (Some("string"), _) => self.kind(path, value, "a string"),
            _ => self.kind(path, value, "a list"),
        }
    }

    fn list(&mut self, path: &str, list: &[Value], schema: &Json) {
        if list.is_empty() && schema.get("minItems").is_some() {
            self.fault(Rank::Bound, path, format!("`{path}` cannot be empty"));
        }
        for (i, item) in list.iter().enumerate() {
            self.value(&format!("{path}[{i}]"), item, &schema["items"]);
        }
    }

    fn parsed<T>(&mut self, path: &str, value: &Value, positive: bool, what: &str)
    where
        T: Default + PartialEq + serde::de::DeserializeOwned,
    {
        let is_size = value.as_integer().is_some_and(|n| n >= 0) && what == "a size";
        if !value.is_str() && !is_size {
            let example = if what == "a size" { "\"256MiB\"" } else { "\"2s\"" };
            return self.kind(path, value, &format!("{what} such as {example}"));
        }
        match value.clone().try_into::<T>() {
            Ok(parsed) if positive && parsed == T::default() => {
                self.fault(Rank::Bound, path, format!("`{path}` must be more than zero"));
            }
            Ok(_) => {}
            Err(e) => self.fault(Rank::Kind, path, format!("`{path}`: {}", e.message().trim())),
        }
    }

    fn bounds(&mut self, path: &str, x: f64, schema: &Json) {
        let bound = |name: &str| schema.get(name).and_then(Json::as_f64);
        let wrong = if !x.is_finite() {
            "a finite number".to_owned()
        } else if let Some(least) = bound("minimum").filter(|least| x < *least) {
            format!("at least {least}")
        } else if let Some(least) = bound("exclusiveMinimum").filter(|least| x <= *least) {
            format!("more than {least}")
        } else if let Some(most) = bound("maximum").filter(|most| x > *most) {
            format!("at most {most}")
        } else if let Some(most) = bound("exclusiveMaximum").filter(|most| x >= *most) {
            format!("less than {most}")
        } else {
            return;
        };
        self.fault(Rank::Bound, path, format!("`{path}` = {x} is impossible: it must be {wrong}"));
    }

    fn kind(&mut self, path: &str, value: &Value, expected: &str) {
        let found = match value {
            Value::String(text) => format!("the string \"{text}\""),
            Value::Integer(n) => format!("the number {n}"),
            Value::Float(x) => format!("the number {x}"),
            Value::Boolean(b) => format!("{b}"),
            Value::Datetime(d) => format!("the date {d}"),
            Value::Array(_) => "a list".to_owned(),
            Value::Table(_) => "a table".to_owned(),
        };
        self.fault(Rank::Kind, path, format!("`{path}` must be {expected}, not {found}"));
    }
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

fn quoted(words: &[&str]) -> String {
    words.iter().map(|word| format!("\"{word}\"")).collect::<Vec<_>>().join(", ")
}

/// The names that a table must have.
fn required(schema: &Json) -> impl Iterator<Item = &str> {
    let own = schema.get("required");
    let listed = own.or_else(|| schema.get("anyOf").and_then(|e| e.get(1)?.get("required")));
    listed.and_then(Json::as_array).into_iter().flatten().filter_map(Json::as_str)
}

/// The variants of a table that a `kind` key distinguishes.
fn tagged(schema: &Json) -> Option<&[Json]> {
    let variants = schema.get("oneOf")?.as_array()?;
    let tables = variants.iter().all(|v| v.get("properties").is_some());
    tables.then_some(variants.as_slice())
}
