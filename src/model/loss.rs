//! Token cross-entropy over the vocabulary, in chunks of rows, so that the workspace does not
//! grow with the batch.
//!
//! Legend: T tokens, R rows of one chunk, H hidden, V vocabulary.

use super::kernels::cross_entropy::cross_entropy;
use super::params::Param;
use crate::base::{Error, Result};
use tch::Tensor;

/// Targets with this value are not counted.
pub const IGNORE: i64 = -100;

/// Elements of logits that one chunk may hold.
const CHUNK_ELEMENTS: i64 = 16 << 20;

/// Rows of logits computed at a time for a vocabulary of `vocab`.
pub fn chunk_rows(vocab: i64) -> i64 {
    (CHUNK_ELEMENTS / vocab.max(1)).clamp(16, 4096)
}

/// -log p(target) of each row, f32 `[T]`, without gradients: `x_th` in the compute type, `head_vh`
/// likewise; 0 where the target is [`IGNORE`].
///
/// # Errors
/// As [`rows_loss`].
pub fn nll_rows(x_th: &Tensor, head_vh: &Tensor, targets_t: &[i64]) -> Result<Tensor> {
    let mut losses = Vec::with_capacity(targets_t.len());
    for_chunks(x_th, head_vh, targets_t, |_, _, mut logits_rv, targets| {
        losses.extend(cross_entropy(&mut logits_rv, targets, 1.0)?);
        Ok(())
    })?;
    Ok(Tensor::f_from_slice(&losses)?)
}

/// Gives `work` each chunk: its first row, its rows, their logits and targets.
fn for_chunks(
    x_th: &Tensor,
    head_vh: &Tensor,
    targets_t: &[i64],
    mut work: impl FnMut(i64, Tensor, Tensor, &[Option<usize>]) -> Result<()>,
) -> Result<()> {
    let (vocab, _) = head_vh.size2()?;
    if x_th.size2()?.0 != targets_t.len() as i64 {
        return Err(Error::bug("each row of a head needs a target"));
    }
    let targets: Vec<Option<usize>> = targets_t
        .iter()
        .map(|target| match target {
            &IGNORE => Ok(None),
            target if (0..vocab).contains(target) => Ok(Some(*target as usize)),
            target => {
                Err(Error::input(format!("target {target} is outside the vocabulary of {vocab}")))
            }
        })
        .collect::<Result<_>>()?;
    let mut start = 0;
    for targets in targets.chunks(chunk_rows(vocab) as usize) {
        let x_rh = x_th.f_narrow(0, start, targets.len() as i64)?;
        let logits_rv = x_rh.f_linear(head_vh, None::<&Tensor>)?;
        work(start, x_rh, logits_rv, targets)?;
        start += targets.len() as i64;
    }
    Ok(())
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
    let head_vh = &head.value;
    let dx_th = Tensor::f_empty_like(x_th)?;
    let mut nll_sum = 0.0;
    for_chunks(x_th, head_vh, targets_t, |start, x_rh, mut logits_rv, targets| {
        let losses = cross_entropy(&mut logits_rv, targets, scale as f32)?;
        nll_sum += losses.into_iter().map(f64::from).sum::<f64>();
        let dlogits_rv = logits_rv;
        let dx_rh = dx_th.f_narrow(0, start, targets.len() as i64)?;
        let _ = dlogits_rv.f_mm_out(&dx_rh, head_vh)?;
        head.accumulate_product(&dlogits_rv, &x_rh)
    })?;
    let targets = targets_t.iter().filter(|t| **t != IGNORE).count();
    Ok(RowsLoss { nll_sum, targets, dx_th })
}
