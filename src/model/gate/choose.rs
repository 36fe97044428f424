//! The best K of E, with ties broken by index: the same on every machine.

use crate::base::{Error, Result};
use crate::model::kernels::view::elements;
use tch::Tensor;

/// Indices of the `k` largest scores of each row [T, K], largest first, the lower index first
/// among equals; NaN comes last. `scores_te`: [T, E], f32.
///
/// # Errors
/// [`crate::base::ErrorKind::Bug`] when the scores have the wrong shape or type, or k > E.
pub fn top_choices(scores_te: &Tensor, k: usize) -> Result<Tensor> {
    let size = scores_te.size();
    let &[tokens, experts] = size.as_slice() else {
        return Err(
            Error::bug("gate scores must be [tokens, experts]").with("got", format!("{size:?}"))
        );
    };
    if k == 0 || k > experts as usize {
        return Err(Error::bug("top-k must lie between 1 and the number of experts")
            .with("k", k)
            .with("experts", experts));
    }
    let contiguous = scores_te.f_contiguous()?;
    let scores: &[f32] = elements(&contiguous)?;
    let mut chosen = Vec::with_capacity(tokens as usize * k);
    for row in scores.chunks(experts as usize) {
        choose_row(row, k, &mut chosen);
    }
    Ok(Tensor::f_from_slice(&chosen)?.f_view([tokens, k as i64])?)
}

/// Appends the row's best `k` by insertion: k is small.
fn choose_row(row: &[f32], k: usize, chosen: &mut Vec<i64>) {
    let start = chosen.len();
    let key = |e: i64| {
        let score = row[e as usize];
        if score.is_nan() { f32::NEG_INFINITY } else { score }
    };
    for e in 0..row.len() as i64 {
        let full = chosen.len() - start == k;
        if full && key(chosen[chosen.len() - 1]) >= key(e) {
            continue;
        }
        if full {
            chosen.pop();
        }
        let mut at = chosen.len();
        while at > start && key(chosen[at - 1]) < key(e) {
            at -= 1;
        }
        chosen.insert(at, e);
    }
}
