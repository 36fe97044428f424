//! What a data file holds: one long text, or a text or a conversation a line.
//!
//! A text file is one document. In JSON lines each line is one; blank lines are passed over.

use super::files::TextFile;
use crate::base::{Error, Result};
use crate::text::chat::{field, messages};
use minijinja::Value;
use minijinja::value::ValueKind;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;
use std::path::Path;

/// How a data file is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Found out from the first line: a JSON object with `messages` is chat, another JSON
    /// object is JSON lines, anything else is text.
    #[default]
    Auto,
    Text,
    /// One JSON object a line, with the document under the text key.
    Jsonl,
    /// One JSON object a line, `{"messages": [{"role": .., "content": ..}, ..]}`.
    Chat,
}

/// A document, or the next part of one that is too long to be held at once.
#[derive(Debug, Clone, PartialEq)]
pub struct Document {
    pub body: Body,
    /// The line it was read from (of a text, the last line), from 1.
    pub line: u64,
    /// Whether the document begins, and whether it ends, with this part.
    pub begins: bool,
    pub ends: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Body {
    Text(String),
    /// The line's object: `messages`, and what else the chat template reads (`tools`). It keeps
    /// the order of its keys, which a template may print.
    Chat(Value),
}

impl Document {
    /// Roughly how much text it is, in bytes.
    pub fn size(&self) -> usize {
        match &self.body {
            Body::Text(text) => text.len(),
            Body::Chat(line) => messages(line)
                .iter()
                .map(|m| {
                    16 + field(m, "content").and_then(|c| c.as_str().map(str::len)).unwrap_or(256)
                })
                .sum(),
        }
    }

    /// The text that a tokenizer is trained on.
    pub fn text(&self) -> String {
        match &self.body {
            Body::Text(text) => text.clone(),
            Body::Chat(line) => messages(line)
                .iter()
                .filter_map(|m| field(m, "content")?.as_str().map(str::to_owned))
                .collect::<Vec<_>>()
                .join("\n"),
        }
    }
}

/// The documents of one file, in its order.
#[derive(Debug)]
pub struct Documents {
    file: TextFile,
    format: Format,
    text_key: String,
    /// Of a text file, the piece that comes next: the last piece is known by there being none.
    ahead: Option<String>,
    begun: bool,
}

impl Documents {
    /// Opens a data file; `Auto` is settled from its first line.
    ///
    /// # Errors
    /// When there is no such file, it is not UTF-8, or (with `Auto`) its first line is a JSON
    /// object with neither the text key nor messages.
    pub fn open(path: &Path, format: Format, text_key: &str) -> Result<Self> {
        let format = match format {
            Format::Auto => detect(path, text_key)?,
            known => known,
        };
        let file = TextFile::open(path)?;
        let text_key = text_key.to_owned();
        Ok(Self { file, format, text_key, ahead: None, begun: false })
    }

    /// The format, never `Auto`.
    pub fn format(&self) -> Format {
        self.format
    }

    /// The next document or part of one; `None` at the end.
    ///
    /// # Errors
    /// When a line is not UTF-8, not JSON, or lacks its key: named by file and line.
    pub fn read_next(&mut self) -> Result<Option<Document>> {
        match self.format {
            Format::Text | Format::Auto => self.next_of_text(),
            Format::Jsonl | Format::Chat => self.next_of_lines(),
        }
    }

    fn next_of_text(&mut self) -> Result<Option<Document>> {
        let begins = !self.begun;
        if begins {
            self.begun = true;
            self.ahead = self.file.next_piece()?;
        }
        let Some(text) = self.ahead.take() else { return Ok(None) };
        let line = self.file.line();
        self.ahead = self.file.next_piece()?;
        let ends = self.ahead.is_none();
        Ok(Some(Document { body: Body::Text(text), line, begins, ends }))
    }

    fn next_of_lines(&mut self) -> Result<Option<Document>> {
        loop {
            let line = self.file.line() + 1;
            let path = self.file.path().to_owned();
            let Some(text) = self.file.next_line()? else { return Ok(None) };
            if text.trim().is_empty() {
                continue;
            }
            let not_json = |e: serde_json::Error| {
                Error::input(format!("{}:{line} is not a line of JSON", path.display()))
                    .from_source(e)
            };
            let body = if self.format == Format::Chat {
                let chat: Value = serde_json::from_str(text).map_err(not_json)?;
                check_chat(&chat)
                    .map_err(|what| Error::input(format!("{}:{line} {what}", path.display())))?;
                Body::Chat(chat)
            } else {
                let mut object: Json = serde_json::from_str(text).map_err(not_json)?;
                let text = object.get_mut(&self.text_key).map(Json::take);
                match text {
                    Some(Json::String(text)) => Body::Text(text),
                    Some(_) => {
                        return Err(Error::input(format!(
                            "{}:{line} has no text under the key \"{}\" but another type",
                            path.display(),
                            self.text_key
                        )));
                    }
                    None => return Err(missing_key(&path, line, &object, &self.text_key)),
                }
            };
            return Ok(Some(Document { body, line, begins: true, ends: true }));
        }
    }
}

fn detect(path: &Path, text_key: &str) -> Result<Format> {
    let mut file = TextFile::open(path)?;
    let mut line = 0;
    while let Some(text) = file.next_line()? {
        line += 1;
        if text.trim().is_empty() {
            continue;
        }
        let named_jsonl = path.file_name().is_some_and(|name| {
            let name = name.to_string_lossy();
            name.trim_end_matches(".zst").ends_with(".jsonl")
        });
        return match serde_json::from_str::<Json>(text) {
            Ok(Json::Object(object)) if object.contains_key("messages") => Ok(Format::Chat),
            Ok(Json::Object(object)) if object.contains_key(text_key) => Ok(Format::Jsonl),
            Ok(object @ Json::Object(_)) => Err(missing_key(path, line, &object, text_key)),
            // A torn first line is better said than trained on.
            _ if named_jsonl => Ok(Format::Jsonl),
            _ => Ok(Format::Text),
        };
    }
    Ok(Format::Text)
}

fn missing_key(path: &Path, line: u64, object: &Json, text_key: &str) -> Error {
    let keys: Vec<&str> =
        object.as_object().map_or(Vec::new(), |o| o.keys().map(String::as_str).collect());
    Error::input(format!(
        "{}:{line} has no key \"{text_key}\" (it has: {}): set text_key of this file",
        path.display(),
        keys.join(", ")
    ))
    .with("key", "data.files")
}

fn check_chat(line: &Value) -> std::result::Result<(), String> {
    if field(line, "messages").is_none_or(|list| list.kind() != ValueKind::Seq) {
        return Err("has no list \"messages\"".to_owned());
    }
    let list = messages(line);
    if list.is_empty() {
        return Err("has no message in \"messages\"".to_owned());
    }
    for (i, message) in list.iter().enumerate() {
        if field(message, "role").is_none_or(|role| role.kind() != ValueKind::String) {
            return Err(format!("has a message {i} without a \"role\""));
        }
        if field(message, "content").is_none() && field(message, "tool_calls").is_none() {
            return Err(format!("has a message {i} without a \"content\""));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(text: &str, name: &str) -> (tempfile::TempDir, std::path::PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        (dir, path)
    }

    fn error(text: &str, format: Format) -> String {
        let (_dir, path) = write(text, "d.jsonl");
        let mut last = Documents::open(&path, format, "text").map(|mut documents| {
            loop {
                match documents.read_next() {
                    Ok(Some(_)) => {}
                    Ok(None) => panic!("no error"),
                    Err(e) => return e.to_string(),
                }
            }
        });
        let text = last.as_mut().map_or_else(|e| e.to_string(), std::mem::take);
        text.split_once("d.jsonl").map_or(text.clone(), |(_, rest)| rest.to_owned())
    }

    #[test]
    fn a_text_file_is_one_document() {
        let text = "a line of words\n".repeat(20_000);
        let (_dir, path) = write(&text, "a.txt");
        let mut documents = Documents::open(&path, Format::Auto, "text").unwrap();
        let mut parts = Vec::new();
        while let Some(part) = documents.read_next().unwrap() {
            parts.push(part);
        }
        assert!(parts.len() > 1);
        assert_eq!(parts.iter().filter(|p| p.begins).count(), 1);
        assert_eq!(parts.iter().filter(|p| p.ends).count(), 1);
        assert!(parts[0].begins && parts[parts.len() - 1].ends);
        assert_eq!(parts.iter().map(Document::text).collect::<String>(), text);
    }

    #[test]
    fn formats_are_told_from_the_first_line() {
        for (text, name, format) in [
            ("In the beginning\n", "a.jsonl.txt", Format::Text),
            ("\n{\"text\": \"x\"}\n", "a.txt", Format::Jsonl),
            ("{\"messages\": []}\n", "a", Format::Chat),
            ("{\"text\": ", "a.jsonl", Format::Jsonl),
            ("{ brace\n", "a.c", Format::Text),
        ] {
            let (_dir, path) = write(text, name);
            assert_eq!(Documents::open(&path, Format::Auto, "text").unwrap().format(), format);
        }
    }

    #[test]
    fn bad_lines_are_named() {
        let good = "{\"text\": \"x\"}\n";
        let torn = error(&format!("{good}{good}{{\"text\": "), Format::Auto);
        assert!(torn.starts_with(":3 is not a line of JSON: "), "{torn}");
        let key = error(&format!("{good}{{\"body\": 1, \"id\": 2}}"), Format::Auto);
        assert_eq!(
            key,
            ":2 has no key \"text\" (it has: body, id): set text_key of this file (key=data.files)"
        );
        assert!(error("{\"text\": 3}", Format::Auto).contains("another type"));
        assert_eq!(error("{\"messages\": []}", Format::Chat), ":1 has no message in \"messages\"");
        let role = error("{\"messages\": [{\"content\": \"hi\"}]}", Format::Chat);
        assert_eq!(role, ":1 has a message 0 without a \"role\"");
    }
}
