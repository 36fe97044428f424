//! The gate of GShard (Lepikhin et al., 2020, algorithm 1): two experts a token, the second one
//! dispatched with a probability proportional to its weight.

use super::topk::to_one;
use super::{Gate, GateContext, Selection, top_choices, uniform};
use crate::base::Result;
use crate::model::kernels::view::elements;
use tch::{Kind, Tensor};

/// Top-2, weights scaled to sum to 1. In training the second choice is dispatched when twice its
/// weight exceeds a uniform draw; otherwise always.
#[derive(Debug, Clone, PartialEq)]
pub struct GShard {
    pub capacity_factor: Option<f64>,
}

impl GShard {
    fn pair_weights(&self, logits_te: &Tensor, experts_tk: &Tensor) -> Result<Tensor> {
        to_one(&self.probabilities(logits_te)?.f_gather(-1, experts_tk, false)?)
    }
}

impl Gate for GShard {
    fn name(&self) -> &'static str {
        "gshard"
    }

    fn top_k(&self) -> usize {
        2
    }

    fn capacity_factor(&self) -> Option<f64> {
        self.capacity_factor
    }

    fn select(&mut self, ctx: &GateContext, logits_te: &Tensor) -> Result<Selection> {
        let experts_tk = top_choices(logits_te, 2)?;
        if !ctx.train {
            return Ok(Selection::dropless(experts_tk));
        }
        let weights_tk = self.pair_weights(&logits_te.f_detach()?, &experts_tk)?;
        let weights: &[f32] = elements(&weights_tk)?;
        let keep: Vec<f32> = (weights.chunks(2).enumerate())
            .flat_map(|(t, pair)| {
                let second = 2.0 * pair[1] > uniform(ctx, t as u64, 0);
                [1.0, if second { 1.0 } else { 0.0 }]
            })
            .collect();
        let keep_tk = Tensor::f_from_slice(&keep)?.f_view_as(&weights_tk)?;
        Ok(Selection { experts_tk, keep_tk: Some(keep_tk.f_to_kind(Kind::Float)?), noise_te: None })
    }

    fn weights(&self, logits_te: &Tensor, selection: &Selection) -> Result<Tensor> {
        selection.masked(self.pair_weights(logits_te, &selection.experts_tk)?)
    }
}
