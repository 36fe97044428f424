//! What a token's K experts gave, put together: one pass instead of four tensors.
//!
//! Sums run over the choices in their order, in f32 (laws 3 and 4).
//!
//! T tokens, K choices, H hidden.

use super::dispatch::dispatched;
use super::float::Number;
use super::parallel::{Threads, parallel_each};
use super::view::{elements, elements_mut};
use crate::base::{Error, Result};
use tch::{Device, Kind, Tensor};

/// Tokens of one unit of work.
const TOKENS: usize = 32;

/// One token: out = residual + Σ_k w_k · row_k.
#[inline(always)]
fn token_body<T: Number>(rows: &[T], weights: &[f32], residual: Option<&[f32]>, out: &mut [f32]) {
    out.fill(0.0);
    for (row, weight) in rows.chunks_exact(out.len()).zip(weights) {
        for (out, x) in out.iter_mut().zip(row) {
            *out += weight * x.load();
        }
    }
    if let Some(residual) = residual {
        for (out, x) in out.iter_mut().zip(residual) {
            *out += x;
        }
    }
}

dispatched! {
    fn token<T: Number>(rows: &[T], weights: &[f32], residual: Option<&[f32]>, out: &mut [f32]) = token_body;
}

/// h + Σ_k w_k · o_k, f32 `[T, H]`: `h_th` and the router weights `w_tk` f32, the experts' outputs `o`
/// [T·K, H] f32 or bf16.
///
/// # Errors
/// [`crate::base::ErrorKind::Bug`] when sizes differ; otherwise as [`parallel_each`].
pub fn combine(h_th: &Tensor, w_tk: &Tensor, o: &Tensor) -> Result<Tensor> {
    let w_tk = w_tk.f_contiguous()?;
    let (weights, residual) = (elements(&w_tk)?, Some(elements(h_th)?));
    match o.f_kind()? {
        Kind::BFloat16 => sums::<u16>(o, weights, residual, h_th.size2()?),
        _ => sums::<f32>(o, weights, residual, h_th.size2()?),
    }
}

/// Σ_k of the rows `x` [T·K, H] (f32 or bf16) of each token, f32 `[T, H]`.
///
/// # Errors
/// As [`combine`].
pub fn sum_choices(x: &Tensor, top_k: i64) -> Result<Tensor> {
    let (rows, hidden) = x.size2()?;
    let ones = vec![1.0; rows as usize];
    let size = (rows / top_k.max(1), hidden);
    match x.f_kind()? {
        Kind::BFloat16 => sums::<u16>(x, &ones, None, size),
        _ => sums::<f32>(x, &ones, None, size),
    }
}

fn sums<T: Number>(
    rows: &Tensor,
    weights: &[f32],
    residual: Option<&[f32]>,
    (tokens, hidden): (i64, i64),
) -> Result<Tensor> {
    let mut out = Tensor::f_empty([tokens, hidden], (Kind::Float, Device::Cpu))?;
    let (t, h) = (tokens.max(1) as usize, hidden.max(1) as usize);
    let (rows, k) = (elements::<T>(rows)?, weights.len() / t);
    let fits = residual.is_none_or(|residual| residual.len() == t * h);
    if !fits || k == 0 || weights.len() != t * k || rows.len() != t * k * h {
        let text = "experts' outputs do not fit their tokens";
        return Err(Error::bug(text).with("outputs", rows.len()).with("weights", weights.len()));
    }
    let mut residuals = residual.map(|residual| residual.chunks(TOKENS * h));
    let jobs: Vec<_> = (rows.chunks(TOKENS * k * h).zip(weights.chunks(TOKENS * k)))
        .zip(elements_mut::<f32>(&mut out)?.chunks_mut(TOKENS * h))
        .map(|job| (job, residuals.as_mut().and_then(Iterator::next)))
        .collect();
    let threads = Threads::for_elements(rows.len());
    parallel_each(threads, jobs, |_, (((rows, weights), out), residual)| {
        let tokens = rows.chunks(k * h).zip(weights.chunks(k)).zip(out.chunks_mut(h));
        for (i, ((rows, weights), out)) in tokens.enumerate() {
            token(rows, weights, residual.map(|residual| &residual[i * h..][..h]), out);
        }
    })?;
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::kernels::dispatch::levels;
    use crate::model::kernels::noise::noise;
    use crate::model::kernels::parallel::same_on_threads;

    #[test]
    fn sums_are_those_of_libtorch_on_every_level() {
        for (t, k, h) in [(1, 1, 1), (3, 2, 37), (70, 4, 24)] {
            for kind in [Kind::Float, Kind::BFloat16] {
                let o = noise(&[t * k, h], 1, kind);
                let (x_th, w_tk) = (noise(&[t, h], 2, Kind::Float), noise(&[t, k], 3, Kind::Float));
                let wide = o.to_kind(Kind::Double).view([t, k, h]);
                let sum = |x: Tensor| x.sum_dim_intlist([1i64].as_slice(), false, Kind::Double);
                let want = sum(&wide * w_tk.to_kind(Kind::Double).unsqueeze(-1)) + &x_th;
                for got in levels::each(|| combine(&x_th, &w_tk, &o).unwrap()) {
                    let off = (got.to_kind(Kind::Double) - &want).abs().max().double_value(&[]);
                    assert!(off < 2e-6, "off by {off}");
                }
                let want = sum(wide);
                let all = levels::each(|| sum_choices(&o, k).unwrap());
                for got in &all {
                    assert_eq!(*got, all[0]);
                    let off = (got.to_kind(Kind::Double) - &want).abs().max().double_value(&[]);
                    assert!(off < 2e-6, "off by {off}");
                }
            }
        }
    }

    #[test]
    fn threads_change_nothing() {
        let (t, k, h) = (333, 2, 129);
        let o = noise(&[t * k, h], 1, Kind::BFloat16);
        let (x_th, w_tk) = (noise(&[t, h], 2, Kind::Float), noise(&[t, k], 3, Kind::Float));
        same_on_threads(|| (combine(&x_th, &w_tk, &o).unwrap(), sum_choices(&o, k).unwrap()));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let zeros = |size: [i64; 2]| Tensor::zeros(size, (Kind::Float, Device::Cpu));
        assert!(combine(&zeros([3, 4]), &zeros([3, 2]), &zeros([5, 4])).is_err());
        assert!(combine(&zeros([3, 4]), &zeros([2, 2]), &zeros([6, 4])).is_err());
    }
}
