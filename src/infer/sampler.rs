//! From logits to a token.
//!
//! Law: the token depends on the logits, the tokens before, the settings, the seed and the
//! position; the draw is a function of seed and position, so it is the same however a run was
//! batched or cut.

use crate::base::{Error, ErrorKind, Result};
use serde::Serialize;

/// How tokens are chosen. Applied in this order: penalty, temperature, top-k, top-p, min-p.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Sampling {
    /// 0 takes the likeliest token.
    pub temperature: f32,
    /// Draw from the so many likeliest tokens; 0 is all.
    pub top_k: usize,
    /// Draw from the fewest tokens whose probabilities sum to this; 1 is all.
    pub top_p: f32,
    /// Leave out tokens less likely than this share of the likeliest; 0 leaves out none.
    pub min_p: f32,
    /// Logits of tokens that occurred are divided (positive) or multiplied by this (Keskar et
    /// al., 2019); 1 changes nothing.
    pub repetition_penalty: f32,
    pub seed: u64,
}

impl Sampling {
    /// The likeliest token each time.
    pub fn greedy() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            seed: 0,
        }
    }

    /// # Errors
    /// `Config`, naming the setting that means nothing.
    pub fn check(&self) -> Result<()> {
        let refuse = |name: &'static str, value: f32, bounds: &str| {
            Err(Error::config(format!("{name} must be {bounds}")).with(name, value))
        };
        let Self { temperature, top_p, min_p, repetition_penalty, .. } = *self;
        if !(0.0..=100.0).contains(&temperature) {
            return refuse("temperature", temperature, "0 to 100");
        }
        if !(top_p > 0.0 && top_p <= 1.0) {
            return refuse("top_p", top_p, "over 0 and at most 1");
        }
        if !(0.0..1.0).contains(&min_p) {
            return refuse("min_p", min_p, "at least 0 and under 1");
        }
        if !(repetition_penalty > 0.0 && repetition_penalty <= 100.0) {
            return refuse("repetition_penalty", repetition_penalty, "over 0 and at most 100");
        }
        Ok(())
    }
}

/// The sampler of one sequence. Its buffers are kept from token to token.
#[derive(Debug)]
pub struct Sampler {
    sampling: Sampling,
    /// Which tokens occurred; empty while nothing is penalised.
    seen: Vec<bool>,
    /// Logit and token of the candidates, best first as far as they were sorted.
    candidates: Vec<(f32, u32)>,
}

impl Sampler {
    pub fn new(sampling: Sampling) -> Self {
        Self { sampling, seen: Vec::new(), candidates: Vec::new() }
    }

    /// A token of the prompt, or one that was chosen.
    pub fn note(&mut self, token: u32) {
        if self.sampling.repetition_penalty == 1.0 {
            return;
        }
        let place = token as usize;
        if self.seen.len() <= place {
            self.seen.resize(place + 1, false);
        }
        self.seen[place] = true;
    }

    /// The token at `position` of the sequence. `logits` are those of the position before.
    ///
    /// # Errors
    /// `NonFinite` when no logit is a number.
    pub fn choose(&mut self, logits: &[f32], position: usize) -> Result<u32> {
        let Sampling { temperature, top_k, .. } = self.sampling;
        if temperature == 0.0 && self.sampling.repetition_penalty == 1.0 {
            return best(logits.iter().copied().zip(0..));
        }
        let mut candidates = std::mem::take(&mut self.candidates);
        candidates.clear();
        candidates.extend(
            logits.iter().zip(0..).map(|(logit, token)| (self.penalised(*logit, token), token)),
        );
        let chosen = if temperature == 0.0 {
            best(candidates.iter().copied())
        } else {
            candidates.retain(|(logit, _)| logit.is_finite());
            if top_k > 0 && top_k < candidates.len() {
                candidates.select_nth_unstable_by(top_k - 1, best_first);
                candidates.truncate(top_k);
            }
            candidates.sort_unstable_by(best_first);
            self.draw(&candidates, position)
        };
        self.candidates = candidates;
        chosen
    }

    fn penalised(&self, logit: f32, token: u32) -> f32 {
        let penalty = self.sampling.repetition_penalty;
        match self.seen.get(token as usize) {
            Some(true) if logit > 0.0 => logit / penalty,
            Some(true) => logit * penalty,
            _ => logit,
        }
    }

    /// Draws from candidates, sorted best first.
    fn draw(&self, candidates: &[(f32, u32)], position: usize) -> Result<u32> {
        let Sampling { temperature, top_p, min_p, seed, .. } = self.sampling;
        let Some((most, _)) = candidates.first().copied() else {
            return Err(not_numbers());
        };
        let weight = |logit: f32| f64::from((logit - most) / temperature).exp();
        let total: f64 = candidates.iter().map(|(logit, _)| weight(*logit)).sum();
        let mut kept = 0.0;
        let mut count = 0;
        for (logit, _) in candidates {
            let weight = weight(*logit);
            if count > 0 && (kept >= f64::from(top_p) * total || weight < f64::from(min_p)) {
                break;
            }
            kept += weight;
            count += 1;
        }
        let mut left = uniform(seed, position as u64) * kept;
        for (logit, token) in &candidates[..count] {
            left -= weight(*logit);
            if left < 0.0 {
                return Ok(*token);
            }
        }
        Ok(candidates[count - 1].1)
    }
}

fn best_first(a: &(f32, u32), b: &(f32, u32)) -> std::cmp::Ordering {
    b.0.total_cmp(&a.0).then(a.1.cmp(&b.1))
}

/// The likeliest token, the lowest of equals.
fn best(candidates: impl Iterator<Item = (f32, u32)>) -> Result<u32> {
    let mut found: Option<(f32, u32)> = None;
    for (logit, token) in candidates {
        if logit.is_finite() && found.is_none_or(|(most, _)| logit > most) {
            found = Some((logit, token));
        }
    }
    found.map(|(_, token)| token).ok_or_else(not_numbers)
}

fn not_numbers() -> Error {
    Error::new(ErrorKind::NonFinite, "no logit is a number: the checkpoint or its dtype is damaged")
}

/// A number in [0, 1) that is a function of its arguments.
fn uniform(seed: u64, counter: u64) -> f64 {
    (mix(mix(seed).wrapping_add(counter)) >> 11) as f64 / (1u64 << 53) as f64
}

/// SplitMix64's finaliser (Steele et al., 2014).
fn mix(n: u64) -> u64 {
    let z = n.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [f32; 5] = [1.0, 3.0, 2.0, 3.0, -4.0];

    fn drawn(sampling: Sampling, draws: usize) -> [usize; 5] {
        let mut sampler = Sampler::new(sampling);
        let mut counts = [0; 5];
        (0..draws).for_each(|at| counts[sampler.choose(&LOGITS, at).unwrap() as usize] += 1);
        counts
    }

    #[test]
    fn greedy_takes_the_first_of_equals() {
        assert_eq!(Sampler::new(Sampling::greedy()).choose(&LOGITS, 0).unwrap(), 1);
        let nan = Sampler::new(Sampling::greedy()).choose(&[f32::NAN; 3], 0).unwrap_err();
        assert_eq!(nan.kind(), ErrorKind::NonFinite);
    }

    #[test]
    fn draws_follow_the_probabilities() {
        let counts = drawn(Sampling { temperature: 1.0, ..Sampling::greedy() }, 20_000);
        let weights: Vec<f64> = LOGITS.iter().map(|l| f64::from(*l).exp()).collect();
        let total: f64 = weights.iter().sum();
        for (count, weight) in counts.iter().zip(weights) {
            assert!((*count as f64 / 20_000.0 - weight / total).abs() < 0.01, "{counts:?}");
        }
    }

    #[test]
    fn each_limit_leaves_out_what_it_should() {
        let hot = Sampling { temperature: 10.0, ..Sampling::greedy() };
        let only = |sampling, tokens: &[usize]| {
            let counts = drawn(sampling, 500);
            for (token, count) in counts.iter().enumerate() {
                assert_eq!(*count > 0, tokens.contains(&token), "{sampling:?}: {counts:?}");
            }
        };
        only(hot, &[0, 1, 2, 3, 4]);
        only(Sampling { top_k: 1, ..hot }, &[1]);
        only(Sampling { top_k: 3, ..hot }, &[1, 2, 3]);
        only(Sampling { temperature: 1.0, top_p: 0.5, ..hot }, &[1, 3]);
        only(Sampling { min_p: 0.9, ..hot }, &[1, 2, 3]);
    }

    #[test]
    fn what_occurred_is_penalised() {
        let mut sampler = Sampler::new(Sampling { repetition_penalty: 2.0, ..Sampling::greedy() });
        sampler.note(1);
        sampler.note(3);
        assert_eq!(sampler.choose(&LOGITS, 0).unwrap(), 2);
        sampler.note(4);
        assert_eq!(sampler.penalised(-4.0, 4), -8.0);
    }

    #[test]
    fn a_draw_is_a_function_of_seed_and_position() {
        let warm = Sampling { temperature: 2.0, seed: 7, ..Sampling::greedy() };
        let at = |seed, position| {
            Sampler::new(Sampling { seed, ..warm }).choose(&LOGITS, position).unwrap()
        };
        let one: Vec<u32> = (0..50).map(|position| at(7, position)).collect();
        let mut sampler = Sampler::new(warm);
        let all: Vec<u32> = (0..50).map(|at| sampler.choose(&LOGITS, at).unwrap()).collect();
        assert_eq!(one, all);
        assert_ne!(one, (0..50).map(|position| at(8, position)).collect::<Vec<_>>());
    }

    #[test]
    fn settings_without_meaning_are_refused() {
        let fine = Sampling::greedy();
        assert!(fine.check().is_ok());
        for bad in [
            Sampling { temperature: -1.0, ..fine },
            Sampling { temperature: f32::NAN, ..fine },
            Sampling { top_p: 0.0, ..fine },
            Sampling { min_p: 1.0, ..fine },
            Sampling { repetition_penalty: 0.0, ..fine },
        ] {
            assert!(bad.check().is_err(), "{bad:?}");
        }
    }
}
