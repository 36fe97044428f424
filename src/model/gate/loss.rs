//! The router's own losses, and its backward pass.
//!
//! Auxiliary loss: E Σ_e f_e P_e, with f_e how often e was chosen and P_e its probability, both as
//! means over rows (f summed over choices). Over the rows of all layers together this is
//! transformers' `load_balancing_loss_func`, which a layer may evade: what it gives to few experts
//! another layer evens out. Of each layer by itself it is GShard's and Switch Transformer's
//! (Lepikhin et al., 2020; Fedus et al., 2021). z-loss (Zoph et al., 2022):
//! the mean over the rows of (log Σ exp logits)².

use super::capacity::for_each_choice;
use super::{Gate, Selection};
use crate::base::Result;
use tch::{Kind, Tensor};

/// What the auxiliary loss evens out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AuxScope {
    /// The loads summed over all layers, as transformers trains these families.
    #[default]
    Model,
    /// The loads of each layer; the loss is the mean over layers.
    Layer,
}

impl AuxScope {
    /// The auxiliary loss, before its coefficient, from the sums of each layer.
    pub fn loss(self, layers: &[RouterStats]) -> f64 {
        match self {
            Self::Model => RouterStats::sum(layers).aux_loss(),
            Self::Layer => {
                let sum: f64 = layers.iter().map(RouterStats::aux_loss).sum();
                sum / layers.len().max(1) as f64
            }
        }
    }

    /// d (coef · auxiliary loss) / d probabilities, for each layer: see
    /// [`RouterStats::aux_gradient`].
    ///
    /// # Errors
    /// [`crate::base::ErrorKind::Torch`] when libtorch fails.
    pub fn gradients(self, layers: &[RouterStats], coef: f64) -> Result<Vec<Tensor>> {
        match self {
            Self::Model => {
                let grad_e = RouterStats::sum(layers).aux_gradient(coef)?;
                Ok(layers.iter().map(|_| grad_e.shallow_clone()).collect())
            }
            Self::Layer => {
                let coef = coef / layers.len().max(1) as f64;
                layers.iter().map(|stats| stats.aux_gradient(coef)).collect()
            }
        }
    }
}

/// Sums over rows that the losses need. Add them in a fixed order: layer by layer, micro-batch
/// by micro-batch.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct RouterStats {
    /// Rows summed over: tokens, of one layer or of several.
    pub rows: u64,
    /// How often each expert was chosen (whether dispatched or not).
    pub chosen_e: Vec<u64>,
    /// Σ of probabilities.
    pub probability_e: Vec<f64>,
    /// Σ (log Σ exp logits)².
    pub squared_lse: f64,
}

impl RouterStats {
    /// The sums of one chunk of tokens in one layer. `logits_te`: [T, E], f32.
    ///
    /// # Errors
    /// [`crate::base::ErrorKind::Torch`] when shapes do not fit.
    pub fn of(gate: &dyn Gate, logits_te: &Tensor, selection: &Selection) -> Result<Self> {
        let logits_te = logits_te.f_detach()?;
        let (tokens, experts) = logits_te.size2()?;
        let mut chosen_e = vec![0; experts as usize];
        for_each_choice(selection, experts as usize, |_, _, e, _| chosen_e[e] += 1)?;
        let probs_te = gate.probabilities(&selection.noisy(&logits_te)?)?;
        let sum_e = probs_te.f_sum_dim_intlist([0i64].as_slice(), false, Kind::Double)?;
        let lse_t = logits_te.f_logsumexp([-1i64].as_slice(), false)?;
        let squared = lse_t.f_square()?.f_sum(Kind::Double)?;
        Ok(Self {
            rows: tokens as u64,
            chosen_e,
            probability_e: Vec::<f64>::try_from(sum_e)?,
            squared_lse: squared.f_double_value(&[])?,
        })
    }

    /// The sums of all layers together.
    pub fn sum(layers: &[Self]) -> Self {
        let mut sum = Self::default();
        layers.iter().for_each(|stats| sum.add(stats));
        sum
    }

    /// Adds another chunk's sums.
    pub fn add(&mut self, other: &Self) {
        self.rows += other.rows;
        let experts = self.chosen_e.len().max(other.chosen_e.len());
        self.chosen_e.resize(experts, 0);
        self.probability_e.resize(experts, 0.0);
        self.chosen_e.iter_mut().zip(&other.chosen_e).for_each(|(a, b)| *a += b);
        self.probability_e.iter_mut().zip(&other.probability_e).for_each(|(a, b)| *a += b);
        self.squared_lse += other.squared_lse;
    }

    /// The auxiliary loss, before its coefficient. 0 without rows.
    pub fn aux_loss(&self) -> f64 {
        if self.rows == 0 {
            return 0.0;
        }
        let rows = self.rows as f64;
        let products = self.chosen_e.iter().zip(&self.probability_e);
        let sum: f64 = products.map(|(c, p)| (*c as f64 / rows) * (p / rows)).sum();
        sum * self.chosen_e.len() as f64
    }

    /// d (coef · auxiliary loss) / d probability of expert e, the same for every row: `[E]`, f32.
    ///
    /// # Errors
    /// [`crate::base::ErrorKind::Torch`] when libtorch fails.
    pub fn aux_gradient(&self, coef: f64) -> Result<Tensor> {
        let rows = self.rows.max(1) as f64;
        let scale = coef * self.chosen_e.len() as f64 / rows;
        let grad_e: Vec<f32> =
            self.chosen_e.iter().map(|c| (scale * (*c as f64 / rows)) as f32).collect();
        Ok(Tensor::f_from_slice(&grad_e)?)
    }

    /// The z-loss, before its coefficient. 0 without rows.
    pub fn z_loss(&self) -> f64 {
        if self.rows == 0 { 0.0 } else { self.squared_lse / self.rows as f64 }
    }

    /// What [`gate_backward`] takes as `z_scale`.
    pub fn z_scale(&self, coef: f64) -> f64 {
        coef / self.rows.max(1) as f64
    }
}

/// d loss / d logits [T, E], f32, for one chunk of tokens in one layer.
///
/// `dweights_tk`: d loss / d weights [T, K], f32; `aux_grad_e`: from [`RouterStats::aux_gradient`]
/// over the whole step; `z_scale`: from [`RouterStats::z_scale`], 0 without z-loss.
///
/// # Errors
/// [`crate::base::ErrorKind::Torch`] when shapes do not fit.
pub fn gate_backward(
    gate: &dyn Gate,
    logits_te: &Tensor,
    selection: &Selection,
    dweights_tk: &Tensor,
    aux_grad_e: Option<&Tensor>,
    z_scale: f64,
) -> Result<Tensor> {
    tch::with_grad(|| {
        let leaf_te = logits_te.f_detach()?.f_set_requires_grad(true)?;
        let weights_tk = gate.weights(&leaf_te, selection)?;
        let mut loss = weights_tk.f_mul(dweights_tk)?.f_sum(Kind::Float)?;
        if let Some(grad_e) = aux_grad_e {
            let probs_te = gate.probabilities(&selection.noisy(&leaf_te)?)?;
            loss = loss.f_add(&probs_te.f_mul(grad_e)?.f_sum(Kind::Float)?)?;
        }
        if z_scale != 0.0 {
            let lse_t = leaf_te.f_logsumexp([-1i64].as_slice(), false)?;
            let z = lse_t.f_square()?.f_sum(Kind::Float)?.f_mul_scalar(z_scale)?;
            loss = loss.f_add(&z)?;
        }
        let mut grads = Tensor::f_run_backward(&[&loss], &[&leaf_te], false, false)?;
        Ok(grads.swap_remove(0))
    })
}
