//! Which of a conversation's text is the assistant's.
//!
//! Three ways, the first that the template allows:
//! 1. The template says so itself, in `{% generation %}` blocks.
//! 2. Rendering prefixes: an answer is what `messages[..=i]` has beyond the prompt for it, where
//!    both are beginnings of the whole.
//! 3. Rendering with another answer: what differs is the answer (templates that drop the
//!    reasoning of earlier turns, or refuse an unfinished conversation).

use super::field;
use crate::base::{Error, Result};
use minijinja::Value;
use std::ops::Range;

/// Marks for `{% generation %}`: characters of the private use area, which no text has.
const OPEN: char = '\u{f8f0}';
const CLOSE: char = '\u{f8f1}';
/// Stands for an answer in the third way. It neither begins nor ends like a text.
const STAND_IN: &str = "\u{f8f2}answer\u{f8f3}";

/// Whether a message is the assistant's.
pub fn is_answer(message: &Value) -> bool {
    field(message, "role").is_some_and(|role| role.as_str() == Some("assistant"))
}

/// Writes `{% generation %}` and `{% endgeneration %}`, which Jinja does not know, as
/// expressions that print a mark, with their whitespace control.
pub fn mark_generations(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at);
        let Some(end) = tag.find("%}") else { break };
        let inner = &tag[2..end];
        let trimmed = inner.trim_matches(|c: char| c == '-' || c == '+' || c.is_whitespace());
        let mark = match trimmed {
            "generation" => Some(OPEN),
            "endgeneration" => Some(CLOSE),
            _ => None,
        };
        let mut tag_end = end + 2;
        if let Some(mark) = mark {
            let left = if inner.starts_with('-') { "-" } else { "" };
            let right = if inner.ends_with('-') { "-" } else { "" };
            // A block tag loses the spaces before it on its line and the line end after it; an
            // expression keeps them.
            let line = before.rfind('\n').map_or(0, |n| n + 1);
            let blank = before[line..].chars().all(|c| c == ' ' || c == '\t');
            out.push_str(if blank { &before[..line] } else { before });
            out.push_str(&format!("{{{{{left} \"{mark}\" {right}}}}}"));
            if tag[tag_end..].starts_with('\n') {
                tag_end += 1;
            }
        } else {
            out.push_str(before);
            out.push_str(&tag[..tag_end]);
        }
        rest = &tag[tag_end..];
    }
    out.push_str(rest);
    out
}

/// The text without the marks.
pub fn without_marks(text: &str) -> String {
    text.replace([OPEN, CLOSE], "")
}

/// The text of a conversation, and the byte ranges in it that are the assistant's, in order.
///
/// # Errors
/// When rendering the whole fails, or no way tells the answers apart.
pub fn find(
    messages: &[Value],
    render: impl Fn(&[Value], bool) -> Result<String>,
) -> Result<(String, Vec<Range<usize>>)> {
    let whole = render(messages, false)?;
    if whole.contains(OPEN) {
        return Ok(read_marks(&whole));
    }
    let mut spans: Vec<Range<usize>> = Vec::new();
    for i in 0..messages.len() {
        if !is_answer(&messages[i]) {
            continue;
        }
        let difference = by_difference(messages, i, &whole, &render);
        let span = by_prefix(messages, i, &whole, difference.as_ref(), &render)
            .or(difference)
            .ok_or_else(|| {
                Error::input(format!(
                    "the chat template does not show where the answer in message {i} is: mark it \
                     with {{% generation %}} in the template"
                ))
            })?;
        if span.is_empty() {
            continue;
        }
        match spans.last_mut() {
            // Ranges that touch or overlap (a tool call that a second message goes on) are one.
            Some(last) if span.start <= last.end => last.end = last.end.max(span.end),
            _ => spans.push(span),
        }
    }
    Ok((whole, spans))
}

fn read_marks(marked: &str) -> (String, Vec<Range<usize>>) {
    let mut text = String::with_capacity(marked.len());
    let mut spans = Vec::new();
    let mut open = None;
    for c in marked.chars() {
        match c {
            OPEN => open = Some(text.len()),
            CLOSE => spans.extend(open.take().map(|start| start..text.len())),
            c => text.push(c),
        }
    }
    (text, spans)
}

fn by_prefix(
    messages: &[Value],
    i: usize,
    whole: &str,
    difference: Option<&Range<usize>>,
    render: &impl Fn(&[Value], bool) -> Result<String>,
) -> Option<Range<usize>> {
    let until = render(&messages[..=i], false).ok()?;
    let prompt = render(&messages[..i], true).ok()?;
    let before = render(&messages[..i], false).ok()?;
    if !whole.starts_with(&until) || !until.starts_with(&before) {
        return None;
    }
    // A prompt may open a block (`<think>`) that this answer has not, or be spaced in another
    // way than a finished turn: then the answer begins where they part, and not in its header.
    let mut start = common_prefix(&prompt, &until);
    if start < prompt.len() {
        start = start.max(difference.map_or(0, |range| range.start));
    }
    (start >= before.len() && start < until.len()).then_some(start..until.len())
}

fn by_difference(
    messages: &[Value],
    i: usize,
    whole: &str,
    render: &impl Fn(&[Value], bool) -> Result<String>,
) -> Option<Range<usize>> {
    // Alone, the stand-in takes the place of reasoning and tool calls too; a template that wants
    // those for what follows gets them.
    let alone = [("role", "assistant"), ("content", STAND_IN)];
    let alone = Value::from_pairs(alone);
    for message in [Some(alone), with_content(&messages[i], STAND_IN)].into_iter().flatten() {
        let mut others = messages.to_vec();
        others[i] = message;
        let Ok(other) = render(&others, false) else { continue };
        if !other.contains(STAND_IN) {
            continue;
        }
        let start = common_prefix(whole, &other);
        let most = whole.len().min(other.len()) - start;
        return Some(start..whole.len() - common_suffix(whole, &other).min(most));
    }
    None
}

/// `message` with another content, unless it has none.
fn with_content(message: &Value, content: &str) -> Option<Value> {
    field(message, "content")?.as_str().filter(|text| !text.trim().is_empty())?;
    let fields: Vec<(Value, Value)> = message
        .try_iter()
        .ok()?
        .map(|key| {
            let value = match key.as_str() {
                Some("content") => Value::from(content),
                _ => message.get_item(&key).unwrap_or_default(),
            };
            (key, value)
        })
        .collect();
    Some(Value::from_pairs(fields))
}

/// Bytes that two texts begin with alike, up to a character's boundary.
fn common_prefix(a: &str, b: &str) -> usize {
    a.chars().zip(b.chars()).take_while(|(x, y)| x == y).map(|(x, _)| x.len_utf8()).sum()
}

fn common_suffix(a: &str, b: &str) -> usize {
    a.chars()
        .rev()
        .zip(b.chars().rev())
        .take_while(|(x, y)| x == y)
        .map(|(x, _)| x.len_utf8())
        .sum()
}
