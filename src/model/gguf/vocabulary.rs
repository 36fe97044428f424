//! The vocabulary and chat template of a GGUF file's metadata.

use super::header::Gguf;
use super::reader::{List, Value};
use crate::base::{Error, Result};
use crate::text::vocabulary::{Merging, Token, TokenKind, Vocabulary};

/// The vocabulary that the file carries.
///
/// # Errors
/// Input, naming the key: none, or lists that are missing or of unequal lengths, or a kind of
/// tokenizer that is not known.
pub fn vocabulary(gguf: &Gguf) -> Result<Vocabulary> {
    let get = |key: &str| gguf.metadata.get(&format!("tokenizer.{key}"));
    let text = |key: &str| match get(key) {
        Some(Value::Text(text)) => Some(text.clone()),
        _ => None,
    };
    let flag = |key: &str| match get(key) {
        Some(Value::Bool(value)) => Some(*value),
        _ => None,
    };
    let id = |key: &str| match get(key) {
        Some(Value::Whole(id)) => u32::try_from(*id).ok(),
        _ => None,
    };
    let Some(Value::List(List::Texts(texts))) = get("ggml.tokens") else {
        return Err(missing("ggml.tokens", "a list of texts"));
    };
    let kinds = kinds(get("ggml.token_type"), texts.len())?;
    let model = text("ggml.model").ok_or_else(|| missing("ggml.model", "a text"))?;
    let merging = match model.as_str() {
        "gpt2" => {
            let Some(Value::List(List::Texts(merges))) = get("ggml.merges") else {
                return Err(missing("ggml.merges", "a list of texts"));
            };
            let pre = text("ggml.pre").ok_or_else(|| missing("ggml.pre", "a text"))?;
            Merging::Bytes { merges: merges.clone(), pre }
        }
        "llama" => {
            let scores = match get("ggml.scores") {
                Some(Value::List(List::Numbers(scores))) if scores.len() == texts.len() => scores,
                _ => return Err(missing("ggml.scores", "a list of numbers, one a token")),
            };
            let space = flag("ggml.add_space_prefix").unwrap_or(true);
            Merging::Scores { scores: scores.clone(), space }
        }
        other => {
            return Err(Error::input(format!(
                "key \"tokenizer.ggml.model\" = \"{}\" is not supported, known are \"gpt2\" and \
                 \"llama\"",
                other.escape_debug()
            )));
        }
    };
    // llama.cpp's defaults: a SentencePiece vocabulary begins a text with bos, a BPE does not.
    let add_bos = flag("ggml.add_bos_token").unwrap_or(matches!(merging, Merging::Scores { .. }));
    let tokens = texts.iter().zip(kinds);
    Ok(Vocabulary {
        tokens: tokens.map(|(text, kind)| Token { text: text.clone(), kind }).collect(),
        merging,
        bos: id("ggml.bos_token_id"),
        eos: id("ggml.eos_token_id"),
        pad: id("ggml.padding_token_id"),
        unknown: id("ggml.unknown_token_id"),
        add_bos,
        chat_template: text("chat_template"),
    })
}

fn missing(key: &str, what: &str) -> Error {
    Error::input(format!("key \"tokenizer.{key}\" is missing or not {what}"))
}

fn kinds(value: Option<&Value>, tokens: usize) -> Result<Vec<TokenKind>> {
    let kinds = match value {
        None => return Ok(vec![TokenKind::Normal; tokens]),
        Some(Value::List(List::Whole(kinds))) if kinds.len() == tokens => kinds,
        Some(_) => return Err(missing("ggml.token_type", "a list of numbers, one a token")),
    };
    let kind = |number: &i64| match number {
        2 => TokenKind::Unknown,
        3 => TokenKind::Control,
        4 => TokenKind::UserDefined,
        5 => TokenKind::Unused,
        6 => TokenKind::Byte,
        _ => TokenKind::Normal,
    };
    Ok(kinds.iter().map(kind).collect())
}
