//! Loss-free balancing (Wang et al., 2024; DeepSeek-V3): a bias an expert, which steers the
//! choice and never the weight, and moves against the load's error after each step.

use super::topk::to_one;
use super::{Gate, GateContext, Selection, top_choices};
use crate::base::{Error, Result};
use serde_json::{Value, json};
use tch::{Kind, Tensor};

/// Sigmoid scores; the `top_k` largest of score + bias are chosen, weighted by their scores
/// (scaled to sum to 1 with `renormalise`) times `scale`.
#[derive(Debug, Clone, PartialEq)]
pub struct BiasCorrected {
    pub top_k: usize,
    pub renormalise: bool,
    /// DeepSeek-V3's `routed_scaling_factor`.
    pub scale: f64,
    /// How far a bias moves a step.
    pub rate: f64,
    bias_le: Vec<Vec<f32>>,
}

impl BiasCorrected {
    /// A gate with all biases zero.
    pub fn new(layers: usize, experts: usize, top_k: usize, renormalise: bool, rate: f64) -> Self {
        let bias_le = vec![vec![0.0; experts]; layers];
        Self { top_k, renormalise, scale: 1.0, rate, bias_le }
    }

    /// The biases, by layer and expert.
    pub fn biases(&self) -> &[Vec<f32>] {
        &self.bias_le
    }
}

impl Gate for BiasCorrected {
    fn name(&self) -> &'static str {
        "bias-corrected"
    }

    fn top_k(&self) -> usize {
        self.top_k
    }

    fn select(&mut self, ctx: &GateContext, logits_te: &Tensor) -> Result<Selection> {
        let Some(bias_e) = self.bias_le.get(ctx.layer) else {
            return Err(Error::bug("a gate was asked for a layer that it does not have")
                .with("layer", ctx.layer)
                .with("layers", self.bias_le.len()));
        };
        let scores_te = logits_te.f_detach()?.f_sigmoid()?;
        let biased_te = scores_te.f_add(&Tensor::f_from_slice(bias_e)?)?;
        Ok(Selection::dropless(top_choices(&biased_te, self.top_k)?))
    }

    fn weights(&self, logits_te: &Tensor, selection: &Selection) -> Result<Tensor> {
        let scores_te = logits_te.f_sigmoid()?;
        let weights_tk = scores_te.f_gather(-1, &selection.experts_tk, false)?;
        let weights_tk = if self.renormalise { to_one(&weights_tk)? } else { weights_tk };
        selection.masked(weights_tk.f_mul_scalar(self.scale)?)
    }

    /// Scores scaled to sum to 1 (DeepSeek-V3's sequence-wise balance loss uses these).
    fn probabilities(&self, logits_te: &Tensor) -> Result<Tensor> {
        let scores_te = logits_te.f_sigmoid()?;
        let sum_t1 = scores_te.f_sum_dim_intlist([-1i64].as_slice(), true, Kind::Float)?;
        Ok(scores_te.f_div(&sum_t1)?)
    }

    fn after_step(&mut self, load_le: &[Vec<u64>]) -> Result<()> {
        let shape = |x: &[usize]| format!("{x:?}");
        let have: Vec<usize> = self.bias_le.iter().map(Vec::len).collect();
        let got: Vec<usize> = load_le.iter().map(Vec::len).collect();
        if have != got {
            return Err(Error::bug("the load's shape is not the gate's")
                .with("gate", shape(&have))
                .with("load", shape(&got)));
        }
        for (bias_e, load_e) in self.bias_le.iter_mut().zip(load_le) {
            let total: u64 = load_e.iter().sum();
            for (bias, &load) in bias_e.iter_mut().zip(load_e) {
                // load against total / E, without a division.
                let scaled = load * load_e.len() as u64;
                *bias += match total.cmp(&scaled) {
                    std::cmp::Ordering::Greater => self.rate as f32,
                    std::cmp::Ordering::Less => -self.rate as f32,
                    std::cmp::Ordering::Equal => 0.0,
                };
            }
        }
        Ok(())
    }

    /// The biases as bit patterns, so that they come back exactly.
    fn state(&self) -> Value {
        let bits: Vec<Vec<u32>> =
            self.bias_le.iter().map(|row| row.iter().map(|b| b.to_bits()).collect()).collect();
        json!({ "bias_bits": bits })
    }

    fn restore(&mut self, state: &Value) -> Result<()> {
        let wrong = || {
            let text = "the stored gate state does not fit a bias-corrected gate of this model";
            Error::corrupt(text)
        };
        let bits: Vec<Vec<u32>> = state
            .get("bias_bits")
            .and_then(|v| serde_json::from_value(v.clone()).ok())
            .ok_or_else(wrong)?;
        let fits = bits.len() == self.bias_le.len()
            && bits.iter().zip(&self.bias_le).all(|(a, b)| a.len() == b.len());
        if !fits {
            return Err(wrong());
        }
        self.bias_le =
            bits.into_iter().map(|row| row.into_iter().map(f32::from_bits).collect()).collect();
        Ok(())
    }
}
