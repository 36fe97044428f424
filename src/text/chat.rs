//! Conversations to tokens through the model's own chat template, with the loss on the answers.
//!
//! The template is Hugging Face's Jinja (`chat_template.jinja`, or `chat_template` of
//! `tokenizer_config.json`), rendered with the globals that transformers gives it. What of the
//! text is the assistant's is found by rendering, never by guessing at markers: see `spans`.

mod dates;
mod spans;

use super::tokenizer::Tokenizer;
use crate::base::{Error, Result, checksum};
use minijinja::{Environment, ErrorKind, Value, context};
use serde::Serialize;
use serde_json::Value as Json;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

/// A chat template, ready to render.
#[derive(Debug)]
pub struct ChatTemplate {
    env: Environment<'static>,
    source: String,
    bos: String,
    eos: String,
}

const NAME: &str = "chat template";

impl ChatTemplate {
    /// Reads the template of a model folder; `None` when it has none. `now` is what a template
    /// that asks for the date is told: a run passes the time of its creation, so that its data
    /// stays the same on another day.
    ///
    /// # Errors
    /// When a file is malformed or the template is no Jinja.
    pub fn load(dir: &Path, tokenizer: &Tokenizer, now: SystemTime) -> Result<Option<Self>> {
        let dir = if dir.is_dir() { dir } else { dir.parent().unwrap_or(Path::new(".")) };
        let file = dir.join("chat_template.jinja");
        match std::fs::read_to_string(&file) {
            Ok(source) => return Self::new(source, tokenizer, now).map(Some),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(Error::io(format!("reading {}", file.display()), e)),
        }
        Self::of_tokenizer(tokenizer, now)
    }

    /// The template of a tokenizer's own configuration; `None` when it has none.
    ///
    /// # Errors
    /// When the template is no Jinja.
    pub fn of_tokenizer(tokenizer: &Tokenizer, now: SystemTime) -> Result<Option<Self>> {
        let Some(source) = tokenizer.config().get("chat_template").and_then(template_text) else {
            return Ok(None);
        };
        Self::new(source, tokenizer, now).map(Some)
    }

    /// # Errors
    /// When `source` is no Jinja.
    pub fn new(source: String, tokenizer: &Tokenizer, now: SystemTime) -> Result<Self> {
        // Jinja reads every line end as a line feed, whatever the file was written on.
        let lines = source.replace("\r\n", "\n");
        let mut env = Environment::new();
        let syntax = minijinja::syntax::SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build()
            .map_err(|e| Error::bug("setting the template's syntax").from_source(e))?;
        env.set_syntax(syntax);
        env.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        env.add_function("raise_exception", |what: String| -> Result<String, minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, what))
        });
        let seconds = now.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        env.add_function("strftime_now", move |format: String| dates::strftime(&format, seconds));
        env.add_filter("tojson", tojson);
        env.add_template_owned(NAME, spans::mark_generations(&lines))
            .map_err(|e| Error::input("the chat template cannot be read").from_source(e))?;
        let (bos, eos) = (tokenizer.bos_text().to_owned(), tokenizer.eos_text().to_owned());
        Ok(Self { env, source, bos, eos })
    }

    /// The template as it was given, to be exported with the model.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Equal for templates that render alike.
    pub fn fingerprint(&self) -> u32 {
        checksum::crc32c(self.source.as_bytes())
    }

    /// The text of a conversation. With `prompt`, it ends where the assistant's answer begins.
    ///
    /// # Errors
    /// When the template refuses the conversation (`raise_exception`) or fails.
    pub fn render(&self, line: &Value, prompt: bool) -> Result<String> {
        let text = self.render_marked(line, &messages(line), prompt)?;
        Ok(spans::without_marks(&text))
    }

    /// The text with what `{% generation %}` blocks enclose between marks.
    fn render_marked(&self, line: &Value, messages: &[Value], prompt: bool) -> Result<String> {
        let other = |key| field(line, key).unwrap_or(Value::from(()));
        let template = self
            .env
            .get_template(NAME)
            .map_err(|e| Error::bug("the chat template is gone").from_source(e))?;
        template
            .render(context! {
                messages => messages.to_vec(),
                tools => other("tools"),
                documents => other("documents"),
                add_generation_prompt => prompt,
                bos_token => self.bos.as_str(),
                eos_token => self.eos.as_str(),
            })
            .map_err(|e| Error::input("the chat template cannot render it").from_source(e))
    }

    /// The tokens of a conversation, each with whether it is a target: those of the
    /// assistant's messages are.
    ///
    /// # Errors
    /// When the template refuses the conversation, or it cannot be told which of its text is
    /// the assistant's.
    pub fn encode(&self, tokenizer: &Tokenizer, line: &Value) -> Result<Vec<(u32, bool)>> {
        let messages = messages(line);
        let (text, spans) =
            spans::find(&messages, |messages, prompt| self.render_marked(line, messages, prompt))?;
        let mut tokens = Vec::new();
        // Spans are in order and apart, and so are the tokens.
        let mut spans = spans.into_iter().peekable();
        let mut answered = false;
        for (id, range) in tokenizer.encode_with_offsets(&text)? {
            while spans.next_if(|span| span.end <= range.start).is_some() {}
            let inside = spans.peek().is_some_and(|span| span.start <= range.start);
            // The token that ends a turn follows the answer; without it nothing learns to stop.
            let ends_turn = answered && tokenizer.is_special(id);
            tokens.push((id, inside || ends_turn));
            answered = inside;
        }
        self.close(tokenizer, &messages, &text, &mut tokens);
        Ok(tokens)
    }

    /// Puts eos behind a conversation whose template did not: a target when the assistant spoke
    /// last and nothing else says that it is done.
    fn close(
        &self,
        tokenizer: &Tokenizer,
        messages: &[Value],
        text: &str,
        tokens: &mut Vec<(u32, bool)>,
    ) {
        let Some(eos) = tokenizer.eos() else { return };
        if !self.eos.is_empty() && text.trim_end().ends_with(&self.eos) {
            return;
        }
        let spoke_last = messages.last().is_some_and(spans::is_answer);
        let last_special = tokens.iter().rev().find(|(id, _)| tokenizer.is_special(*id));
        let stopped = last_special.is_some_and(|&(_, target)| target);
        tokens.push((eos, spoke_last && !stopped));
    }
}

/// The conversation of a chat line; empty when it has none.
pub fn messages(line: &Value) -> Vec<Value> {
    let list = field(line, "messages").and_then(|list| Some(list.try_iter().ok()?.collect()));
    list.unwrap_or_default()
}

/// What `object` has under `key`, unless that is nothing.
pub fn field(object: &Value, key: &str) -> Option<Value> {
    object.get_attr(key).ok().filter(|value| !value.is_undefined() && !value.is_none())
}

/// `chat_template` is a text, or a list of named ones.
fn template_text(value: &Json) -> Option<String> {
    if let Some(text) = value.as_str() {
        return Some(text.to_owned());
    }
    let named = value.as_array()?;
    let default = named.iter().find(|t| t.get("name").and_then(Json::as_str) == Some("default"));
    default.or(named.first())?.get("template")?.as_str().map(str::to_owned)
}

/// Python's `json.dumps(value, ensure_ascii=False, indent=indent)`, as transformers defines the
/// filter; minijinja's own escapes for HTML.
fn tojson(
    value: minijinja::Value,
    kwargs: minijinja::value::Kwargs,
) -> Result<String, minijinja::Error> {
    let bad = |e: serde_json::Error| {
        minijinja::Error::new(ErrorKind::InvalidOperation, "tojson failed").with_source(e)
    };
    let indent: Option<usize> = kwargs.get("indent")?;
    let mut out = Vec::new();
    if let Some(indent) = indent {
        let spaces = " ".repeat(indent);
        let style = serde_json::ser::PrettyFormatter::with_indent(spaces.as_bytes());
        let mut serializer = serde_json::Serializer::with_formatter(&mut out, style);
        value.serialize(&mut serializer).map_err(bad)?;
    } else {
        let mut serializer = serde_json::Serializer::with_formatter(&mut out, PythonStyle);
        value.serialize(&mut serializer).map_err(bad)?;
    }
    Ok(String::from_utf8_lossy(&out).into_owned())
}

/// `{"a": 1, "b": [1, 2]}`: a space after each comma and colon.
struct PythonStyle;

impl serde_json::ser::Formatter for PythonStyle {
    fn begin_array_value<W: ?Sized + std::io::Write>(
        &mut self,
        out: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        out.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(
        &mut self,
        out: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        out.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(
        &mut self,
        out: &mut W,
    ) -> std::io::Result<()> {
        out.write_all(b": ")
    }
}

#[cfg(test)]
mod tests;
