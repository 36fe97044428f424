//! How many tokens an expert takes at most in a step, and which choices go over it.
//!
//! Law 5: positions are counted over the global step batch. First choices of all tokens come
//! before second choices, and among equals the lower token index comes first (GShard). So a
//! micro-batch needs to know how many choices come before its own: [`earlier_counts`].

use super::Selection;
use crate::base::{Error, Result};
use crate::model::kernels::view::elements;
use tch::Tensor;

/// Tokens that an expert takes at most: ⌈factor · K · tokens / E⌉ over the global step batch.
pub fn capacity(factor: f64, top_k: usize, tokens: u64, experts: usize) -> u64 {
    let even = (tokens * top_k as u64) as f64 / experts as f64;
    (factor * even).ceil().max(1.0) as u64
}

/// How often each expert is chosen and dispatched, by choice: [K · E], choice-major.
///
/// # Errors
/// [`crate::base::ErrorKind::Bug`] when a choice lies outside 0..E.
pub fn choice_counts(selection: &Selection, experts: usize) -> Result<Vec<u64>> {
    let top_k = selection.top_k();
    let mut counts = vec![0; top_k * experts];
    for_each_choice(selection, experts, |_, k, e, kept| {
        counts[k * experts + e] += u64::from(kept);
    })?;
    Ok(counts)
}

/// For each of the step's chunks (micro-batches, then ranks, in global token order) how many
/// choices come before its own, from the chunks' [`choice_counts`].
pub fn earlier_counts(chunks: &[Vec<u64>], experts: usize) -> Vec<Vec<u64>> {
    let len = chunks.first().map_or(0, Vec::len);
    let mut earlier = vec![vec![0; len]; chunks.len()];
    for e in 0..experts {
        let mut position = 0;
        for at in (e..len).step_by(experts) {
            for (chunk, before) in chunks.iter().zip(&mut earlier) {
                before[at] = position;
                position += chunk[at];
            }
        }
    }
    earlier
}

/// Drops the choices whose position in their expert is `capacity` or later. `before`: the
/// chunk's [`earlier_counts`]. Answers how many choices were dropped.
///
/// # Errors
/// [`crate::base::ErrorKind::Bug`] when `before` is not [K · E] or a choice lies outside 0..E.
pub fn apply_capacity(selection: &mut Selection, before: &[u64], capacity: u64) -> Result<u64> {
    let (tokens, top_k) = (selection.tokens(), selection.top_k());
    if top_k == 0 || !before.len().is_multiple_of(top_k) {
        return Err(Error::bug("counts must be [choices * experts]").with("got", before.len()));
    }
    let experts = before.len() / top_k;
    let mut next = before.to_vec();
    let mut keep = vec![0f32; tokens * top_k];
    let mut dropped = 0;
    for_each_choice(selection, experts, |t, k, e, kept| {
        if !kept {
            return;
        }
        let position = &mut next[k * experts + e];
        if *position < capacity {
            keep[t * top_k + k] = 1.0;
        } else {
            dropped += 1;
        }
        *position += 1;
    })?;
    selection.keep_tk = Some(Tensor::f_from_slice(&keep)?.f_view([tokens as i64, top_k as i64])?);
    Ok(dropped)
}

/// Calls `visit(token, choice, expert, kept)` for each choice, by token, then choice.
pub(super) fn for_each_choice(
    selection: &Selection,
    experts: usize,
    mut visit: impl FnMut(usize, usize, usize, bool),
) -> Result<()> {
    let top_k = selection.top_k().max(1);
    let chosen = Vec::<i64>::try_from(selection.experts_tk.f_flatten(0, -1)?)?;
    let keep: Option<&[f32]> = selection.keep_tk.as_ref().map(elements).transpose()?;
    for (i, &e) in chosen.iter().enumerate() {
        if e < 0 || e >= experts as i64 {
            return Err(Error::bug("a gate chose an expert that does not exist")
                .with("expert", e)
                .with("experts", experts));
        }
        let kept = keep.is_none_or(|keep| keep[i] != 0.0);
        visit(i / top_k, i % top_k, e as usize, kept);
    }
    Ok(())
}
