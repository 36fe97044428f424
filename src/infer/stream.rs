//! Text out of tokens as they come: whole characters only, and nothing past a stop string.

use crate::base::Result;
use crate::text::tokenizer::Tokenizer;
use std::sync::Arc;

/// The text of one answer.
#[derive(Debug)]
pub struct TextStream {
    tokenizer: Arc<Tokenizer>,
    ids: Vec<u32>,
    /// Tokens before `from` are decoded and told; those up to `told` give the context in which
    /// the next ones are decoded, for a token's text may depend on its neighbour.
    from: usize,
    told: usize,
    stops: Vec<String>,
    /// Decoded, but it may be the beginning of a stop string.
    held: String,
    stopped: bool,
}

impl TextStream {
    pub fn new(tokenizer: Arc<Tokenizer>, stops: Vec<String>) -> Self {
        let stops = stops.into_iter().filter(|stop| !stop.is_empty()).collect();
        Self {
            tokenizer,
            ids: Vec::new(),
            from: 0,
            told: 0,
            stops,
            held: String::new(),
            stopped: false,
        }
    }

    /// Whether a stop string has come.
    pub fn is_stopped(&self) -> bool {
        self.stopped
    }

    /// The text that may be shown now that `token` has come.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn push(&mut self, token: u32) -> Result<String> {
        if self.stopped {
            return Ok(String::new());
        }
        self.ids.push(token);
        let before = self.tokenizer.decode(&self.ids[self.from..self.told], true)?;
        let with = self.tokenizer.decode(&self.ids[self.from..], true)?;
        // A character whose bytes are not all there decodes to a replacement: it waits.
        let fresh = match with.strip_prefix(before.as_str()) {
            Some(fresh) if !fresh.ends_with(char::REPLACEMENT_CHARACTER) => fresh,
            _ => return Ok(String::new()),
        };
        if !fresh.is_empty() {
            self.held.push_str(fresh);
            (self.from, self.told) = (self.told, self.ids.len());
        }
        Ok(self.release())
    }

    /// What is left at the end of the answer.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn finish(&mut self) -> Result<String> {
        if self.stopped {
            return Ok(String::new());
        }
        let before = self.tokenizer.decode(&self.ids[self.from..self.told], true)?;
        let with = self.tokenizer.decode(&self.ids[self.from..], true)?;
        self.held.push_str(with.strip_prefix(before.as_str()).unwrap_or_default());
        let text = self.release();
        Ok(text + &std::mem::take(&mut self.held))
    }

    /// Cuts at a stop string, else lets go of all that cannot be the beginning of one.
    fn release(&mut self) -> String {
        if let Some(at) = self.stops.iter().filter_map(|stop| self.held.find(stop)).min() {
            self.held.truncate(at);
            self.stopped = true;
            return std::mem::take(&mut self.held);
        }
        let keep = self.stops.iter().map(|stop| overlap(&self.held, stop)).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - keep);
        std::mem::replace(&mut self.held, rest)
    }
}

/// Bytes at the end of `text` that are a beginning of `stop`.
fn overlap(text: &str, stop: &str) -> usize {
    let starts = stop.char_indices().map(|(at, _)| at).skip(1);
    starts.filter(|at| text.ends_with(&stop[..*at])).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(text: &[u8], stops: &[&str]) -> (Vec<String>, String, bool) {
        let tokenizer = Arc::new(Tokenizer::bytes().unwrap());
        let stops = stops.iter().map(|stop| (*stop).to_owned()).collect();
        let mut stream = TextStream::new(tokenizer, stops);
        let parts = text.iter().map(|byte| stream.push(u32::from(*byte)).unwrap()).collect();
        let rest = stream.finish().unwrap();
        (parts, rest, stream.is_stopped())
    }

    #[test]
    fn characters_come_whole() {
        let (parts, rest, _) = told("aß€".as_bytes(), &[]);
        assert_eq!(parts, ["a", "", "ß", "", "", "€"]);
        assert_eq!(rest, "");
        // A character that never ends is shown as broken, and not lost.
        let (parts, rest, _) = told(&[b'a', 0xe2, 0x82], &[]);
        assert_eq!(parts.concat(), "a");
        assert!(rest.starts_with('\u{fffd}'), "{rest:?}");
    }

    #[test]
    fn nothing_past_a_stop_string_is_told() {
        let (parts, rest, stopped) = told(b"one END two", &["END", "##"]);
        assert_eq!((parts.concat() + &rest).as_str(), "one ");
        assert!(stopped);
        // What looked like its beginning comes once it turns out otherwise.
        let (parts, rest, stopped) = told(b"EN EEND", &["END!"]);
        assert_eq!(parts, ["", "", "EN ", "", "E", "", ""]);
        assert_eq!((rest.as_str(), stopped), ("END", false));
    }
}
