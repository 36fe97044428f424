//! The gate of Switch Transformers (Fedus, Zoph and Shazeer, 2021): one expert a token, weighted
//! by its softmax probability, with a capacity and multiplicative jitter.

use super::{Gate, GateContext, Selection, top_choices, uniform};
use crate::base::Result;
use tch::Tensor;

/// Top-1. In training each logit is multiplied by a draw from [1 - jitter, 1 + jitter] (the
/// paper jitters the router's input; here a gate sees its logits), for choice and weight alike.
#[derive(Debug, Clone, PartialEq)]
pub struct Switch {
    pub capacity_factor: Option<f64>,
    pub jitter: f64,
}

impl Gate for Switch {
    fn name(&self) -> &'static str {
        "switch"
    }

    fn top_k(&self) -> usize {
        1
    }

    fn capacity_factor(&self) -> Option<f64> {
        self.capacity_factor
    }

    fn select(&mut self, ctx: &GateContext, logits_te: &Tensor) -> Result<Selection> {
        if !ctx.train || self.jitter == 0.0 {
            return Ok(Selection::dropless(top_choices(logits_te, 1)?));
        }
        let (tokens, experts) = logits_te.size2()?;
        let jitter = self.jitter as f32;
        let factors: Vec<f32> = (0..tokens as u64)
            .flat_map(|t| (0..experts as u64).map(move |e| (t, e)))
            .map(|(t, e)| 1.0 + jitter * (2.0 * uniform(ctx, t, e) - 1.0))
            .collect();
        let noise_te = Tensor::f_from_slice(&factors)?.f_view([tokens, experts])?;
        let experts_tk = top_choices(&logits_te.f_mul(&noise_te)?, 1)?;
        Ok(Selection { experts_tk, keep_tk: None, noise_te: Some(noise_te) })
    }

    fn weights(&self, logits_te: &Tensor, selection: &Selection) -> Result<Tensor> {
        let probs_te = self.probabilities(&selection.noisy(logits_te)?)?;
        selection.masked(probs_te.f_gather(-1, &selection.experts_tk, false)?)
    }
}
