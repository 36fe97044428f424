//! A tokenizer out of a bare vocabulary: tokens with their kinds, and merges or scores, as files
//! carry that hold no `tokenizer.json`.
//!
//! Law: what comes out encodes as the `tokenizer.json` that the vocabulary was made from; a way of
//! splitting text that is not known is refused by name.

use super::tokenizer::Tokenizer;
use crate::base::{Error, Result};
use serde_json::{Map, Value, json};
use std::collections::HashMap;

/// What a token is for (the kinds of SentencePiece and GGUF).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenKind {
    Normal,
    Unknown,
    /// Marks a place, as bos does; never part of a text.
    Control,
    /// Found in a text as it is written, before any merging.
    UserDefined,
    /// Fills the vocabulary up; no text has it.
    Unused,
    /// One byte, written `<0x0A>`.
    Byte,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    pub text: String,
    pub kind: TokenKind,
}

/// How a text becomes tokens.
#[derive(Debug, Clone, PartialEq)]
pub enum Merging {
    /// GPT-2's: pieces of text, cut as `pre` names, are bytes that `merges` join, first first.
    Bytes { merges: Vec<String>, pre: String },
    /// SentencePiece's BPE: the pair whose token has the best score joins first. With `space`, a
    /// text gets a space in front.
    Scores { scores: Vec<f32>, space: bool },
}

/// A vocabulary.
#[derive(Debug, Clone, PartialEq)]
pub struct Vocabulary {
    /// By id.
    pub tokens: Vec<Token>,
    pub merging: Merging,
    pub bos: Option<u32>,
    pub eos: Option<u32>,
    pub pad: Option<u32>,
    pub unknown: Option<u32>,
    pub add_bos: bool,
    pub chat_template: Option<String>,
}

/// GPT-2's pattern is built into the crate's byte level; these are the others, as their models'
/// `tokenizer.json` has them.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// SentencePiece's mark for a space.
const SPACE: &str = "▁";

impl Vocabulary {
    /// The tokenizer.
    ///
    /// # Errors
    /// Input: a way of splitting that is not known, merges or special tokens of which no token is.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        let mut whole = json!({
            "version": "1.0", "truncation": null, "padding": null,
            "added_tokens": self.added(), "post_processor": self.post_processor()?,
        });
        match &self.merging {
            Merging::Bytes { merges, pre } => self.by_bytes(merges, pre, &mut whole)?,
            Merging::Scores { scores, space } => self.by_scores(scores, *space, &mut whole)?,
        }
        let mut config = json!({
            "tokenizer_class": "PreTrainedTokenizerFast",
            "add_bos_token": self.add_bos,
            "clean_up_tokenization_spaces": false,
        });
        for (name, id) in
            [("bos_token", self.bos), ("eos_token", self.eos), ("pad_token", self.pad)]
        {
            if let Some(id) = id {
                config[name] = json!(self.text(name, id)?);
            }
        }
        if let Some(template) = &self.chat_template {
            config["chat_template"] = json!(template);
        }
        Tokenizer::from_json(&whole.to_string(), Some(config))
    }

    fn text(&self, what: &str, id: u32) -> Result<&str> {
        let token = self.tokens.get(id as usize).map(|token| token.text.as_str());
        token.ok_or_else(|| {
            let count = self.tokens.len();
            Error::input(format!("{what} has id {id}, the vocabulary has {count} tokens"))
        })
    }

    /// Tokens that are found as they are written.
    fn added(&self) -> Vec<Value> {
        let tokens = self.tokens.iter().enumerate();
        let tokens = tokens.filter(|(_, token)| {
            use TokenKind::{Control, Unknown, UserDefined};
            matches!(token.kind, Control | UserDefined | Unknown) && !token.text.is_empty()
        });
        let entry = |(id, token): (usize, &Token)| {
            json!({
                "id": id, "content": token.text, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false,
                "special": token.kind != TokenKind::UserDefined,
            })
        };
        tokens.map(entry).collect()
    }

    fn post_processor(&self) -> Result<Value> {
        let (true, Some(bos)) = (self.add_bos, self.bos) else { return Ok(Value::Null) };
        let text = self.text("bos_token", bos)?;
        let special = json!({ "SpecialToken": { "id": text, "type_id": 0 } });
        let sequence = |id: &str| json!({ "Sequence": { "id": id, "type_id": 0 } });
        Ok(json!({
            "type": "TemplateProcessing",
            "single": [special, sequence("A")],
            "pair": [special, sequence("A"), special, sequence("B")],
            "special_tokens": { text: { "id": text, "ids": [bos], "tokens": [text] } },
        }))
    }

    /// Ids by text. Of a text that is there twice the first counts, as for SentencePiece.
    fn ids(&self) -> Map<String, Value> {
        let mut ids = Map::new();
        for (id, token) in self.tokens.iter().enumerate() {
            if token.kind != TokenKind::Unused {
                ids.entry(token.text.clone()).or_insert_with(|| json!(id));
            }
        }
        ids
    }

    fn by_bytes(&self, merges: &[String], pre: &str, whole: &mut Value) -> Result<()> {
        let byte_level = |regex: bool| {
            json!({
                "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
                "use_regex": regex,
            })
        };
        let split = |pattern: &str| {
            json!({ "type": "Sequence", "pretokenizers": [
                { "type": "Split", "pattern": { "Regex": pattern }, "behavior": "Isolated",
                  "invert": false },
                byte_level(false),
            ]})
        };
        let (pre_tokenizer, normalizer, ignore_merges) = match pre {
            "gpt-2" | "olmo" => (byte_level(true), Value::Null, false),
            "llama3" | "llama-v3" | "llama-bpe" => (split(LLAMA3), Value::Null, true),
            "qwen2" => (split(QWEN2), json!({ "type": "NFC" }), false),
            other => {
                return Err(Error::input(format!(
                    "pre-tokenizer \"{}\" is not supported; supported are gpt-2, olmo, llama-bpe \
                     and qwen2",
                    other.escape_debug()
                )));
            }
        };
        let ids = self.ids();
        let mut pairs = Vec::with_capacity(merges.len());
        for merge in merges {
            // A token of the byte level has no space of its own.
            let pair = merge.split_once(' ').filter(|(left, right)| {
                ids.contains_key(*left)
                    && ids.contains_key(*right)
                    && ids.contains_key(&format!("{left}{right}"))
            });
            let (left, right) = pair.ok_or_else(|| {
                Error::input(format!(
                    "merge \"{}\" does not join two tokens to a third",
                    merge.chars().take(80).collect::<String>().escape_debug()
                ))
            })?;
            pairs.push(json!([left, right]));
        }
        whole["normalizer"] = normalizer;
        whole["pre_tokenizer"] = pre_tokenizer;
        whole["decoder"] = byte_level(true);
        whole["model"] = json!({
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "ignore_merges": ignore_merges, "vocab": ids, "merges": pairs,
        });
        Ok(())
    }

    fn by_scores(&self, scores: &[f32], space: bool, whole: &mut Value) -> Result<()> {
        let unknown = match self.unknown {
            Some(id) => Some(self.text("the unknown token", id)?),
            None => None,
        };
        let mut normalizers = Vec::new();
        let mut decoders = vec![
            json!({ "type": "Replace", "pattern": { "String": SPACE }, "content": " " }),
            json!({ "type": "ByteFallback" }),
            json!({ "type": "Fuse" }),
        ];
        if space {
            normalizers.push(json!({ "type": "Prepend", "prepend": SPACE }));
            decoders.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
        }
        normalizers
            .push(json!({ "type": "Replace", "pattern": { "String": " " }, "content": SPACE }));
        whole["normalizer"] = json!({ "type": "Sequence", "normalizers": normalizers });
        whole["pre_tokenizer"] = Value::Null;
        whole["decoder"] = json!({ "type": "Sequence", "decoders": decoders });
        whole["model"] = json!({
            "type": "BPE", "dropout": null, "unk_token": unknown,
            "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": true,
            "byte_fallback": true, "ignore_merges": false, "vocab": self.ids(),
            "merges": self.merges_of(scores),
        });
        Ok(())
    }

    /// The merges that scores stand for, best first: every way to cut a token into two tokens, as
    /// transformers converts SentencePiece's models.
    fn merges_of(&self, scores: &[f32]) -> Vec<Value> {
        let ids: HashMap<&str, usize> =
            self.tokens.iter().enumerate().rev().map(|(id, t)| (t.text.as_str(), id)).collect();
        let mut merges = Vec::new();
        for (token, &score) in self.tokens.iter().zip(scores) {
            if token.kind != TokenKind::Normal {
                continue;
            }
            let cuts = token.text.char_indices().skip(1).map(|(at, _)| token.text.split_at(at));
            let mut found: Vec<_> = cuts
                .filter_map(|(left, right)| {
                    Some((*ids.get(left)?, *ids.get(right)?, left, right, score))
                })
                .collect();
            found.sort_by_key(|(left, right, ..)| std::cmp::Reverse((*left, *right)));
            merges.extend(found);
        }
        let chars = |text: &str| text.chars().count();
        merges.sort_by(|(_, _, l1, r1, s1), (_, _, l2, r2, s2)| {
            let by_score = s2.total_cmp(s1);
            by_score.then_with(|| (chars(l2), chars(r2)).cmp(&(chars(l1), chars(r1))))
        });
        merges.into_iter().map(|(_, _, left, right, _)| json!([left, right])).collect()
    }
}
