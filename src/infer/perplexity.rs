//! How well a checkpoint foretells a text: the mean surprise of a token, and its exponential.
//!
//! The text is cut into windows that know nothing of one another; the first token of a window is
//! given, each of the others is foretold from those before it.

use super::generator::Generator;
use super::sampler::Sampling;
use super::session::Said;
use crate::base::{Error, Result};
use serde::Serialize;

/// What a text came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Perplexity {
    /// Tokens that were foretold.
    pub tokens: u64,
    /// Σ −ln p(token), in nats.
    pub surprise: f64,
}

impl Perplexity {
    /// Mean surprise of a token, in nats.
    pub fn loss(&self) -> f64 {
        self.surprise / self.tokens.max(1) as f64
    }

    /// exp of the mean surprise.
    pub fn value(&self) -> f64 {
        self.loss().exp()
    }
}

/// Foretells `ids` in windows of `window` tokens; `on` hears how many windows are done, of how many.
///
/// # Errors
/// `Config` for a window of fewer than two tokens, `Input` for a text of fewer; as
/// [`Generator::run`], and whatever `on` answers.
pub fn perplexity(
    generator: &mut Generator,
    ids: &[u32],
    window: usize,
    mut on: impl FnMut(usize, usize) -> Result<()>,
) -> Result<Perplexity> {
    if window < 2 {
        return Err(Error::config("a window must have at least 2 tokens").with("window", window));
    }
    let windows: Vec<&[u32]> = ids.chunks(window).filter(|window| window.len() > 1).collect();
    if windows.is_empty() {
        return Err(Error::input("a text of one token foretells nothing: give a longer one"));
    }
    let mut found = Perplexity::default();
    for (done, tokens) in windows.iter().enumerate() {
        let mut job = generator.job(tokens.to_vec(), Sampling::greedy(), 0);
        job.logits = true;
        generator.run(vec![job], |said| {
            if let Said::Logits { position, logits, .. } = said
                && let Some(token) = tokens.get(position + 1)
            {
                found.tokens += 1;
                found.surprise += surprise(logits, *token as usize);
            }
            Ok(())
        })?;
        on(done + 1, windows.len())?;
    }
    Ok(found)
}

/// `−ln softmax(logits)[token]`.
fn surprise(logits: &[f32], token: usize) -> f64 {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|logit| f64::from(logit - most).exp()).sum();
    sum.ln() - f64::from(logits[token] - most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn surprise_is_the_logarithm_of_the_share() {
        let logits = [1.0f32, 2.0, 4.0];
        let shares: f64 = logits.iter().map(|l| f64::from(*l).exp()).sum();
        let want = (shares / f64::from(2.0f32).exp()).ln();
        assert!((surprise(&logits, 1) - want).abs() < 1e-12);
        // As many equal choices as the perplexity says.
        let even = Perplexity { tokens: 3, surprise: 3.0 * surprise(&[0.5; 8], 2) };
        assert!((even.value() - 8.0).abs() < 1e-9);
    }
}
