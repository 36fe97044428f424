//! Cross-entropy of rows of logits, whose gradient takes their place.

use super::dispatch::dispatched;
use super::float::Number;
use super::parallel::{Threads, parallel_each};
use super::softmax::exponentials;
use super::view::elements_mut;
use crate::base::{Error, Result};
use tch::{Kind, Tensor};

/// Rows of one unit of work.
const ROWS: usize = 4;

/// One row; answers its loss, 0 without a target.
#[inline(always)]
fn row_body<T: Number>(
    logits: &mut [T],
    exps: &mut [f32],
    target: Option<usize>,
    scale: f32,
) -> f32 {
    let Some(target) = target else {
        logits.fill(T::store(0.0));
        return 0.0;
    };
    for (exp, logit) in exps.iter_mut().zip(&*logits) {
        *exp = logit.load();
    }
    let of_target = exps[target];
    let (most, sum) = exponentials(exps, None);
    let factor = scale / sum;
    for (logit, exp) in logits.iter_mut().zip(&*exps) {
        *logit = T::store(exp * factor);
    }
    logits[target] = T::store(exps[target] * factor - scale);
    most + sum.ln() - of_target
}

dispatched! {
    fn row_f32(logits: &mut [f32], exps: &mut [f32], target: Option<usize>, scale: f32) -> f32 = row_body;
}
dispatched! {
    fn row_bf16(logits: &mut [u16], exps: &mut [f32], target: Option<usize>, scale: f32) -> f32 = row_body;
}

/// -log p(target) of each row of `logits_rv` [R, V] (f32 or bf16), 0 for a row without a target;
/// `logits_rv` becomes the gradient of `scale` times their sum.
///
/// # Errors
/// [`crate::base::ErrorKind::Bug`] when sizes differ or a target is no column; otherwise as
/// [`parallel_each`].
pub fn cross_entropy(
    logits_rv: &mut Tensor,
    targets: &[Option<usize>],
    scale: f32,
) -> Result<Vec<f32>> {
    match logits_rv.f_kind()? {
        Kind::BFloat16 => rows(logits_rv, targets, |l, e, target| row_bf16(l, e, target, scale)),
        _ => rows(logits_rv, targets, |l, e, target| row_f32(l, e, target, scale)),
    }
}

fn rows<T: Number>(
    logits_rv: &mut Tensor,
    targets: &[Option<usize>],
    row: impl Fn(&mut [T], &mut [f32], Option<usize>) -> f32 + Sync,
) -> Result<Vec<f32>> {
    let (count, vocab) = logits_rv.size2()?;
    let (count, vocab) = (count as usize, vocab as usize);
    if count != targets.len() || targets.iter().flatten().any(|target| *target >= vocab) {
        let text = "targets do not fit their logits";
        return Err(Error::bug(text).with("targets", targets.len()).with("rows", count));
    }
    let mut losses = vec![0f32; count];
    let logits = elements_mut::<T>(logits_rv)?.chunks_mut(ROWS * vocab);
    let jobs: Vec<_> = logits.zip(targets.chunks(ROWS)).zip(losses.chunks_mut(ROWS)).collect();
    parallel_each(Threads::Pool, jobs, |_, ((logits, targets), losses)| {
        let mut exps = vec![0f32; vocab];
        for ((logits, target), loss) in logits.chunks_mut(vocab).zip(targets).zip(losses) {
            *loss = row(logits, &mut exps, *target);
        }
    })?;
    Ok(losses)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Reduction;

    #[test]
    fn losses_and_gradients_are_those_of_libtorch() {
        for (kind, bound) in [(Kind::Float, 1e-6), (Kind::BFloat16, 4e-3)] {
            let made = Tensor::arange(7 * 100, (Kind::Float, tch::Device::Cpu)) * 0.737;
            let mut logits = (made.sin() * 4.0).view([7, 100]).to_kind(kind);
            let targets = [Some(3), None, Some(99), Some(0), Some(50), None, Some(7)];
            let plain: Vec<i64> = targets.map(|t| t.map_or(-100, |t| t as i64)).to_vec();
            let leaf = logits.to_kind(Kind::Float).set_requires_grad(true);
            let theirs = leaf.log_softmax(-1, Kind::Float).g_nll_loss(
                &Tensor::from_slice(&plain),
                None::<&Tensor>,
                Reduction::None,
                -100,
            );
            (theirs.sum(Kind::Float) * 0.25).backward();

            let ours = cross_entropy(&mut logits, &targets, 0.25).unwrap();
            let off = (Tensor::from_slice(&ours) - theirs).abs().max().double_value(&[]);
            assert!(off < 1e-5, "losses are off by {off}");
            let off = (logits.to_kind(Kind::Float) - leaf.grad()).abs().max().double_value(&[]);
            assert!(off < bound, "gradients are off by {off}");
        }
    }

    #[test]
    fn a_number_that_is_not_finite_shows_in_the_loss() {
        for bad in [f32::NAN, f32::INFINITY] {
            let mut logits = Tensor::from_slice(&[0.0, bad, 1.0]).view([1, 3]);
            assert!(cross_entropy(&mut logits, &[Some(0)], 1.0).unwrap()[0].is_nan());
        }
    }

    #[test]
    fn targets_that_do_not_fit_are_refused() {
        let mut logits = Tensor::zeros([2, 3], (Kind::Float, tch::Device::Cpu));
        assert!(cross_entropy(&mut logits, &[Some(0)], 1.0).is_err());
        assert!(cross_entropy(&mut logits, &[Some(0), Some(3)], 1.0).is_err());
    }
}
