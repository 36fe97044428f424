//! Token cross-entropy over the vocabulary, in chunks of rows, so that the workspace does not
//! grow with the batch.
//!
//! Legend: T tokens, R rows of one chunk, H hidden, V vocabulary.

use super::params::Param;
use crate::base::{Error, Result};
use tch::{Kind, Tensor};

/// Targets with this value are not counted.
pub const IGNORE: i64 = -100;

/// Elements of logits that one chunk may hold.
const CHUNK_ELEMENTS: i64 = 16 << 20;

/// Rows of logits computed at a time for a vocabulary of `vocab`.
pub fn chunk_rows(vocab: i64) -> i64 {
    (CHUNK_ELEMENTS / vocab.max(1)).clamp(16, 4096)
}

/// Sum of -log p(target) over the counted rows, without gradients: `x_th` in the compute type,
/// `head_vh` likewise, `targets_t` i64 with [`IGNORE`].
pub fn nll_rows(x_th: &Tensor, head_vh: &Tensor, targets_t: &Tensor) -> Result<Tensor> {
    let (tokens, _) = x_th.size2()?;
    let rows = chunk_rows(head_vh.size2()?.0);
    let mut parts = Vec::new();
    let mut start = 0;
    while start < tokens {
        let len = rows.min(tokens - start);
        let logits = x_th.f_narrow(0, start, len)?.f_linear(head_vh, None::<&Tensor>)?;
        let logp = logits.f_log_softmax(-1, Kind::Float)?;
        let targets = targets_t.f_narrow(0, start, len)?;
        parts.push(logp.f_nll_loss(&targets, None::<&Tensor>, tch::Reduction::None, IGNORE)?);
        start += len;
    }
    Ok(Tensor::f_cat(&parts, 0)?)
}

/// Loss of one batch of rows and its gradient.
#[derive(Debug)]
pub struct RowsLoss {
    /// Sum of -log p(target) over the counted rows.
    pub nll_sum: f64,
    /// Rows counted.
    pub targets: usize,
    /// scale · d nll_sum / d x, compute type, `[T,H]`.
    pub dx_th: Tensor,
}

/// Cross-entropy of `x_th` against `targets_t` with the head `head` `[V,H]`; gradients are those of
/// `scale` times the sum, and the head's is added to `head`.
///
/// # Errors
/// Input if a target is outside the vocabulary.
pub fn rows_loss(x_th: &Tensor, head: &Param, targets_t: &[i64], scale: f64) -> Result<RowsLoss> {
    let (tokens, _) = x_th.size2()?;
    let head_vh = &head.leaf.f_detach()?;
    let (vocab, _) = head_vh.size2()?;
    if let Some(bad) = targets_t.iter().find(|t| **t != IGNORE && !(0..vocab).contains(*t)) {
        return Err(Error::input(format!("target {bad} is outside the vocabulary of {vocab}")));
    }
    let rows = chunk_rows(vocab);
    let dx_th = Tensor::f_empty_like(x_th)?;
    let mut nll_sum = 0.0;
    let mut start = 0;
    while start < tokens {
        let len = rows.min(tokens - start);
        let targets = &targets_t[start as usize..(start + len) as usize];
        let x_rh = x_th.f_narrow(0, start, len)?;
        let logits_rv = x_rh.f_linear(head_vh, None::<&Tensor>)?;
        let (nll, dlogits_rv) = softmax_loss(&logits_rv, targets, scale)?;
        nll_sum += nll;
        dx_th.f_narrow(0, start, len)?.f_copy_(&dlogits_rv.f_matmul(head_vh)?)?;
        head.accumulate(&dlogits_rv.f_transpose(0, 1)?.f_matmul(&x_rh)?)?;
        start += len;
    }
    let targets = targets_t.iter().filter(|t| **t != IGNORE).count();
    Ok(RowsLoss { nll_sum, targets, dx_th })
}

/// Sum of losses of a chunk and scale · (softmax - onehot), in the logits' kind.
fn softmax_loss(logits_rv: &Tensor, targets: &[i64], scale: f64) -> Result<(f64, Tensor)> {
    let logp = logits_rv.f_log_softmax(-1, Kind::Float)?;
    let counted: Vec<f32> =
        targets.iter().map(|t| if *t == IGNORE { 0.0 } else { scale as f32 }).collect();
    let index: Vec<i64> = targets.iter().map(|t| (*t).max(0)).collect();
    let index = Tensor::f_from_slice(&index)?.f_unsqueeze(1)?;
    let picked: Vec<f32> = Vec::try_from(&logp.f_gather(1, &index, false)?.f_squeeze_dim(1)?)?;
    let nll = picked
        .iter()
        .zip(targets)
        .filter(|(_, target)| **target != IGNORE)
        .map(|(logp, _)| -f64::from(*logp))
        .sum();
    let mut probs = logp.f_exp()?;
    let minus = Tensor::f_from_slice(&vec![-1.0f32; targets.len()])?.f_unsqueeze(1)?;
    let _ = probs.f_scatter_add_(1, &index, &minus)?;
    let weights = Tensor::f_from_slice(&counted)?.f_unsqueeze(1)?;
    Ok((nll, probs.f_mul_(&weights)?.f_to_kind(logits_rv.f_kind()?)?))
}
