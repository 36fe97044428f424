//! `docs/configuration.md`, written from the schema so that it cannot go stale.

use super::schema;
use serde_json::Value;
use std::fmt::Write;

const HEAD: &str = "# Configuration

<!-- Written by `semoe config reference`; `make fix` renews it. -->

One TOML file describes a run. `semoe config show FILE` prints the whole effective configuration,
`--set a.b=value` overrides any key, and an unknown key, a wrong type or an impossible value is
refused before any work starts. Start a file with `#:schema ./schema.json` and an editor that knows
TOML completes and checks it. Sizes are written `\"256MiB\"` or `\"1.5GB\"`, durations `\"500ms\"`,
`\"2s\"` or `\"10m\"`. A key without a default must be given.
";

/// The reference as Markdown.
pub fn markdown() -> String {
    let mut out = HEAD.to_owned();
    table("", schema::schema(), &mut out);
    out
}

/// A table's own keys, then its tables in turn.
fn table(path: &str, schema: &Value, out: &mut String) {
    let none = serde_json::Map::new();
    let properties = schema.get("properties").and_then(Value::as_object).unwrap_or(&none);
    let (tables, keys): (Vec<_>, Vec<_>) =
        properties.iter().partition(|(_, property)| property.get("properties").is_some());
    if !keys.is_empty() {
        heading(path, schema, out);
    }
    rows(&keys, out);
    for (name, property) in &keys {
        nested(name, property, out);
    }
    for (name, inner) in tables {
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        table(&path, inner, out);
    }
}

fn heading(path: &str, schema: &Value, out: &mut String) {
    let title = if path.is_empty() { "Top level".to_owned() } else { format!("`[{path}]`") };
    let _ = write!(out, "\n## {title}\n\n{}\n", text(schema, "description"));
}

fn rows(keys: &[(&String, &Value)], out: &mut String) {
    if keys.is_empty() {
        return;
    }
    out.push_str("\n| key | value | default | meaning |\n|---|---|---|---|\n");
    for (name, property) in keys {
        let kind = kind(property).replace('|', "\\|");
        let (default, means) = (default(property), meaning(property));
        let _ = writeln!(out, "| `{name}` | {kind} | {default} | {means} |");
    }
}

/// The tables that one key may hold: the elements of a list, the kinds of a tagged table.
fn nested(name: &str, property: &Value, out: &mut String) {
    let branches = property.pointer("/items/anyOf").or_else(|| property.get("oneOf"));
    for branch in branches.and_then(Value::as_array).into_iter().flatten() {
        let Some(inner) = branch.get("properties").and_then(Value::as_object) else { continue };
        let kind = branch.pointer("/properties/kind/const").and_then(Value::as_str);
        let keys: Vec<_> =
            inner.iter().filter(|(key, _)| kind.is_none() || *key != "kind").collect();
        if keys.is_empty() {
            continue;
        }
        let of = kind.map(|kind| format!(" with `kind = \"{kind}\"`")).unwrap_or_default();
        let _ = write!(out, "\nKeys of a table in `{name}`{of}:\n");
        rows(&keys, out);
    }
}

fn kind(property: &Value) -> String {
    let words = schema::words(property);
    if !words.is_empty() {
        return words.iter().map(|w| format!("`\"{w}\"`")).collect::<Vec<_>>().join(" | ");
    }
    if let Some(variants) = property.get("oneOf").and_then(Value::as_array) {
        let kinds = variants.iter().filter_map(|v| v.pointer("/properties/kind/const"));
        let kinds: Vec<String> = kinds.map(|k| format!("`{{ kind = {k} }}`")).collect();
        return kinds.join(" | ");
    }
    match property.get("format").and_then(Value::as_str) {
        Some("bytes") => return "size".to_owned(),
        Some("duration") => return "duration".to_owned(),
        _ => {}
    }
    let name = match property.get("type").and_then(Value::as_str) {
        Some("integer") => "whole number",
        Some("number") => "number",
        Some("boolean") => "true or false",
        Some("array") => "list of paths or tables",
        _ => "string",
    };
    let bound = |key: &str, sign: &str| {
        property.get(key).and_then(Value::as_f64).map(|b| format!(" {sign} {b}"))
    };
    let least = bound("minimum", "≥").or_else(|| bound("exclusiveMinimum", ">"));
    let most = bound("maximum", "≤").or_else(|| bound("exclusiveMaximum", "<"));
    let bounds: Vec<String> =
        [least, most].into_iter().flatten().filter(|b| b != " ≥ 0" || name == "number").collect();
    format!("{name}{}", bounds.join(","))
}

fn default(property: &Value) -> String {
    if let Some(words) = property.get("x-default").and_then(Value::as_str) {
        return words.to_owned();
    }
    property.get("default").map_or_else(|| "required".to_owned(), |value| format!("`{value}`"))
}

/// The description, and what each word means where the words have descriptions.
fn meaning(property: &Value) -> String {
    let mut means = text(property, "description").to_owned();
    let variants = property.get("oneOf").and_then(Value::as_array);
    for variant in variants.into_iter().flatten() {
        let word = variant.get("const").or_else(|| variant.pointer("/properties/kind/const"));
        if let (Some(word), Some(text)) = (word, variant.get("description").and_then(Value::as_str))
        {
            let word = word.as_str().unwrap_or_default();
            let _ = write!(means, " `{word}`: {text}");
        }
    }
    means
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}
