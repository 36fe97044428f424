//! The exponentials of a softmax over one row.

use super::dispatch::dispatched;
use super::float::exp;

/// Partial results of a row, one a lane: part of the definition of its sums.
const LANES: usize = 16;

dispatched! {
    /// Scores become exponentials of their distance from the largest, which may be `sink` (a logit
    /// that takes part and has no value); answers the largest and the sum.
    pub fn exponentials(scores: &mut [f32], sink: Option<f32>) -> (f32, f32) = body;
}

#[inline(always)]
fn body(scores: &mut [f32], sink: Option<f32>) -> (f32, f32) {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let mut most = [f32::NEG_INFINITY; LANES];
    let (chunks, rest) = scores.as_chunks::<LANES>();
    for chunk in chunks {
        for (most, score) in most.iter_mut().zip(chunk) {
            *most = larger(*most, *score);
        }
    }
    let most =
        rest.iter().chain(&most).fold(sink.unwrap_or(f32::NEG_INFINITY), |a, b| larger(a, *b));
    let mut sums = [0.0f32; LANES];
    let (chunks, rest) = scores.as_chunks_mut::<LANES>();
    for chunk in chunks {
        for (sum, score) in sums.iter_mut().zip(chunk) {
            *score = exp(*score - most);
            *sum += *score;
        }
    }
    for (sum, score) in sums.iter_mut().zip(rest) {
        *score = exp(*score - most);
        *sum += *score;
    }
    (most, sums.iter().sum::<f32>() + sink.map_or(0.0, |sink| exp(sink - most)))
}
