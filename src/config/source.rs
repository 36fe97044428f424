//! The text a configuration comes from: which line each key stands on, and what `--set` put
//! over it, so that an error can name the place.

use super::check::Fault;
use super::schema;
use crate::base::{Error, Result};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use toml::de::{DeTable, DeValue};

/// A parsed file with the place of every key.
#[derive(Debug)]
pub struct Source {
    file: PathBuf,
    /// Dotted key (an array's elements as `key[0]`) to line, counted from 1.
    lines: BTreeMap<String, usize>,
    /// Dotted key to the `--set` argument that gave its value.
    overrides: BTreeMap<String, String>,
    pub table: toml::Table,
}

impl Source {
    /// Parses `text` as the content of `file`.
    ///
    /// # Errors
    /// `Config` with file and line when the text is not TOML.
    pub fn parse(text: &str, file: &Path) -> Result<Self> {
        let refuse = |e: toml::de::Error| {
            let line = e.span().map_or(1, |span| line_of(text, span.start));
            let why = e.message().lines().collect::<Vec<_>>().join("; ");
            Error::config(format!("{}:{line}: not valid TOML: {why}", file.display()))
        };
        let spanned = DeTable::parse(text).map_err(refuse)?;
        let table = toml::from_str(text).map_err(refuse)?;
        let mut lines = BTreeMap::new();
        note_lines("", spanned.get_ref(), text, &mut lines);
        Ok(Self { file: file.to_owned(), lines, overrides: BTreeMap::new(), table })
    }

    /// Puts each `a.b=value` over what the file says. A value that is not TOML is a string.
    ///
    /// # Errors
    /// `Config` when an argument has no `=` or goes through something that is no table.
    pub fn apply(&mut self, sets: &[String]) -> Result<()> {
        for set in sets {
            let Some((key, text)) = set.split_once('=') else {
                return Err(Error::config(format!(
                    "--set {set}: write it as --set KEY=VALUE, such as --set train.steps=10"
                )));
            };
            let key = key.trim();
            let (tables, name) = match key.rsplit_once('.') {
                Some((tables, name)) => (tables.split('.').collect(), name),
                None => (Vec::new(), key),
            };
            let mut at = &mut self.table;
            for table in tables {
                let inner = at.entry(table).or_insert_with(|| toml::Table::new().into());
                at = inner.as_table_mut().ok_or_else(|| {
                    Error::config(format!("--set {set}: `{table}` is a value, not a table"))
                })?;
            }
            at.insert(name.to_owned(), value_of(key, text.trim()));
            self.overrides.insert(key.to_owned(), set.clone());
        }
        Ok(())
    }

    /// The error for a fault: where its key was written, or the nearest thing around it.
    pub fn error(&self, fault: &Fault) -> Error {
        let mut path = fault.path.as_str();
        let file = self.file.display();
        loop {
            if let Some(set) = self.overrides.get(path) {
                return Error::config(format!("--set {set}: {fault}"));
            }
            if let Some(line) = self.lines.get(path) {
                return Error::config(format!("{file}:{line}: {fault}"));
            }
            match path.rfind(['.', '[']) {
                Some(end) => path = &path[..end],
                None => return Error::config(format!("{file}: {fault}")),
            }
        }
    }
}

fn value_of(key: &str, text: &str) -> toml::Value {
    let string = || toml::Value::String(text.to_owned());
    let parsed = toml::from_str::<toml::Table>(&format!("value = {text}"));
    let value = match parsed {
        Ok(mut table) if table.len() == 1 => table.remove("value"),
        _ => None,
    };
    // `--set name=7` means the text "7".
    let wants_text = schema::of_key(key)
        .is_some_and(|s| s.get("type").is_some_and(|t| t == "string") || s.get("enum").is_some());
    match value {
        Some(value) if value.is_str() || !wants_text => value,
        _ => string(),
    }
}

fn line_of(text: &str, offset: usize) -> usize {
    text.bytes().take(offset).filter(|b| *b == b'\n').count() + 1
}

fn note_lines(prefix: &str, table: &DeTable<'_>, text: &str, lines: &mut BTreeMap<String, usize>) {
    for (key, value) in table {
        let name = key.get_ref();
        let path = if prefix.is_empty() { name.to_string() } else { format!("{prefix}.{name}") };
        lines.insert(path.clone(), line_of(text, key.span().start));
        note_value(&path, value.get_ref(), text, lines);
    }
}

fn note_value(path: &str, value: &DeValue<'_>, text: &str, lines: &mut BTreeMap<String, usize>) {
    match value {
        DeValue::Table(table) => note_lines(path, table, text, lines),
        DeValue::Array(list) => {
            for (i, item) in list.iter().enumerate() {
                let path = format!("{path}[{i}]");
                lines.insert(path.clone(), line_of(text, item.span().start));
                note_value(&path, item.get_ref(), text, lines);
            }
        }
        _ => {}
    }
}
