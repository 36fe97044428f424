//! Top-k softmax: the gate of the Hugging Face families.

use super::{Gate, GateContext, Selection, top_choices};
use crate::base::Result;
use tch::{Kind, Tensor};

/// The `top_k` largest softmax probabilities; with `renormalise` they are scaled to sum to 1.
#[derive(Debug, Clone, PartialEq)]
pub struct TopK {
    pub top_k: usize,
    pub renormalise: bool,
    pub capacity_factor: Option<f64>,
}

impl Gate for TopK {
    fn name(&self) -> &'static str {
        "topk"
    }

    fn top_k(&self) -> usize {
        self.top_k
    }

    fn capacity_factor(&self) -> Option<f64> {
        self.capacity_factor
    }

    fn select(&mut self, _ctx: &GateContext, logits_te: &Tensor) -> Result<Selection> {
        Ok(Selection::dropless(top_choices(logits_te, self.top_k)?))
    }

    fn weights(&self, logits_te: &Tensor, selection: &Selection) -> Result<Tensor> {
        let probs_te = self.probabilities(logits_te)?;
        let weights_tk = probs_te.f_gather(-1, &selection.experts_tk, false)?;
        let weights_tk = if self.renormalise { to_one(&weights_tk)? } else { weights_tk };
        selection.masked(weights_tk)
    }
}

/// Rows scaled to sum to 1.
pub(super) fn to_one(weights_tk: &Tensor) -> Result<Tensor> {
    let sum_t1 = weights_tk.f_sum_dim_intlist([-1i64].as_slice(), true, Kind::Float)?;
    Ok(weights_tk.f_div(&sum_t1)?)
}
