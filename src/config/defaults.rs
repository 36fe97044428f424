//! The defaults that depend on other keys. Constant ones stand in the structs.
//!
//! Runs on a table that the schema check has accepted, so a key that is there has its type.

use super::check::Fault;
use super::model::Family;
use serde::Deserialize;
use std::path::Path;
use toml::{Table, Value};

/// Writes every file of `data.files` as a table: a plain path stands for `{ path = PATH }`.
pub fn expand_shorthand(table: &mut Table) {
    let files = table.get_mut("data").and_then(|data| data.get_mut("files"));
    for file in files.and_then(Value::as_array_mut).into_iter().flatten() {
        if let Value::String(path) = file {
            *file = Table::from_iter([("path".to_owned(), Value::String(path.clone()))]).into();
        }
    }
}

/// Fills in what is left out and follows from other keys.
///
/// # Errors
/// A fault when a default has no value: no tokenizer, or heads that do not divide the width.
pub fn derive(table: &mut Table, file: &Path) -> Result<(), Fault> {
    let stem = file.file_stem().map(|s| s.to_string_lossy().into_owned());
    put(table, "name", || stem.unwrap_or_else(|| "run".to_owned()).into());

    let seed = integer(table, "train.seed").unwrap_or(0);
    let batch = integer(table, "train.batch").unwrap_or(8);
    let lr = number(table, "train.lr").unwrap_or(3e-4);
    put(table, "train.micro_batch", || batch.into());
    put(table, "train.min_lr", || tenth(lr).into());
    put(table, "data.seed", || seed.into());

    match get(table, "model.from").and_then(Value::as_str).map(str::to_owned) {
        Some(from) => put(table, "data.tokenizer", || {
            let path = Path::new(&from).join("tokenizer.json").to_string_lossy().into_owned();
            Table::from_iter([
                ("kind".to_owned(), Value::from("file")),
                ("path".to_owned(), path.into()),
            ])
            .into()
        }),
        None => derive_shape(table, seed)?,
    }

    let keep_every = integer(table, "train.keep_every").unwrap_or(0);
    let steps = integer(table, "train.steps").unwrap_or(0);
    let kept = steps.checked_div(keep_every).unwrap_or(0);
    put(table, "storage.checkpoints", || kept.max(1).into());
    Ok(())
}

fn derive_shape(table: &mut Table, seed: i64) -> Result<(), Fault> {
    if get(table, "data.tokenizer").is_none() {
        return Err(Fault::new(
            "data.tokenizer",
            "`data.tokenizer` is missing: a new model needs one, such as { kind = \"bytes\" }",
        ));
    }
    let hidden = integer(table, "model.hidden").unwrap_or(0);
    let heads = integer(table, "model.heads").unwrap_or(1);
    if get(table, "model.head_dim").is_none() && hidden % heads != 0 {
        return Err(Fault::new(
            "model.heads",
            format!(
                "`model.heads` = {heads} does not divide `model.hidden` = {hidden}: change one, \
                 or give `model.head_dim`"
            ),
        ));
    }
    put(table, "model.head_dim", || (hidden / heads).into());
    put(table, "model.kv_heads", || heads.into());
    let seq = integer(table, "train.seq").unwrap_or(0);
    put(table, "model.max_position", || seq.into());
    put(table, "model.seed", || seed.into());

    let family = get(table, "model.family")
        .and_then(|word| Family::deserialize(word.clone()).ok())
        .unwrap_or_default();
    let renormalise = get(table, "actors.gate.renormalise").and_then(Value::as_bool);
    put(table, "model.norm_topk", || renormalise.unwrap_or(family.renormalises()).into());
    let kind = get(table, "actors.gate.kind").and_then(Value::as_str).unwrap_or("topk");
    if matches!(kind, "topk" | "bias-corrected") {
        let norm_topk = get(table, "model.norm_topk").cloned();
        put(table, "actors.gate.renormalise", || norm_topk.unwrap_or(Value::Boolean(false)));
    }
    Ok(())
}

/// A tenth without the last digits that binary division adds: 3e-5, not 2.9999999999999997e-5.
fn tenth(x: f64) -> f64 {
    format!("{:.12e}", x / 10.0).parse().unwrap_or(x / 10.0)
}

fn get<'a>(table: &'a Table, path: &str) -> Option<&'a Value> {
    let mut names = path.split('.');
    let mut at = table.get(names.next()?)?;
    for name in names {
        at = at.get(name)?;
    }
    Some(at)
}

fn integer(table: &Table, path: &str) -> Option<i64> {
    get(table, path).and_then(Value::as_integer)
}

fn number(table: &Table, path: &str) -> Option<f64> {
    get(table, path).and_then(|v| v.as_float().or_else(|| v.as_integer().map(|n| n as f64)))
}

fn put(table: &mut Table, path: &str, value: impl FnOnce() -> Value) {
    let mut at = table;
    let (parents, name) = path.rsplit_once('.').unwrap_or(("", path));
    for parent in parents.split('.').filter(|p| !p.is_empty()) {
        let inner = at.entry(parent).or_insert_with(|| Table::new().into());
        let Some(inner) = inner.as_table_mut() else { return };
        at = inner;
    }
    if !at.contains_key(name) {
        at.insert(name.to_owned(), value());
    }
}
