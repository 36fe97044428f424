//! Which experts a token goes to, and with what weight.
//!
//! T tokens, E experts, K choices a token. Law 5: what a gate decides for a token depends on its
//! logits, on the step's counters and on (seed, step, layer, global token index), never on how
//! tokens are divided between micro-batches or ranks.
//!
//! ```text
//! logits_te ─ select ─▶ experts_tk ─ apply_capacity ─▶ keep_tk ─▶ Assignments ─▶ dispatch
//!           └ weights ─▶ weights_tk ─▶ combine           └ gate_backward ◀─ d weights_tk
//! RouterStats of all layers ─▶ auxiliary loss, z-loss, after_step
//! ```

mod assign;
mod bias;
mod build;
mod capacity;
mod choose;
mod draw;
mod gshard;
mod loss;
mod switch;
mod topk;

pub use assign::Assignments;
pub use bias::BiasCorrected;
pub use build::{GateKind, GateSpec};
pub use capacity::{apply_capacity, capacity, choice_counts, earlier_counts};
pub use choose::top_choices;
pub use draw::uniform;
pub use gshard::GShard;
pub use loss::{AuxScope, RouterStats, gate_backward};
pub use switch::Switch;
pub use topk::TopK;

use crate::base::{Error, Result, Step};
use serde_json::Value;
use tch::{Kind, Tensor};

/// Where in a run the tokens of a call stand: all that random draws may depend on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GateContext {
    pub layer: usize,
    pub step: Step,
    pub seed: u64,
    /// Training: noise and random choices apply.
    pub train: bool,
    /// Index of the call's first token in the global step batch.
    pub first_token: u64,
}

/// What a gate chose for T tokens.
#[derive(Debug)]
pub struct Selection {
    /// Chosen experts [T, K], i64, best first.
    pub experts_tk: Tensor,
    /// 1 where the choice is dispatched, 0 where it is dropped [T, K], f32. `None`: all are.
    pub keep_tk: Option<Tensor>,
    /// Factors that the logits are multiplied by [T, E], f32 (jitter). `None`: ones.
    pub noise_te: Option<Tensor>,
}

impl Selection {
    /// Every choice is dispatched, no noise. `experts_tk`: [T, K], i64.
    pub fn dropless(experts_tk: Tensor) -> Self {
        Self { experts_tk, keep_tk: None, noise_te: None }
    }

    pub fn tokens(&self) -> usize {
        self.experts_tk.size().first().copied().unwrap_or(0) as usize
    }

    pub fn top_k(&self) -> usize {
        self.experts_tk.size().get(1).copied().unwrap_or(0) as usize
    }

    /// The logits with the selection's noise.
    ///
    /// # Errors
    /// [`crate::base::ErrorKind::Torch`] when shapes do not fit.
    pub fn noisy(&self, logits_te: &Tensor) -> Result<Tensor> {
        match &self.noise_te {
            Some(noise_te) => Ok(logits_te.f_mul(noise_te)?),
            None => Ok(logits_te.shallow_clone()),
        }
    }

    /// `weights_tk` with zeros where a choice is dropped.
    ///
    /// # Errors
    /// [`crate::base::ErrorKind::Torch`] when shapes do not fit.
    pub fn masked(&self, weights_tk: Tensor) -> Result<Tensor> {
        match &self.keep_tk {
            Some(keep_tk) => Ok(weights_tk.f_mul(keep_tk)?),
            None => Ok(weights_tk),
        }
    }
}

/// Chooses experts. One gate serves all layers; logits are f32.
pub trait Gate: Send {
    /// The name in configuration and messages.
    fn name(&self) -> &'static str;

    /// Choices a token, K.
    fn top_k(&self) -> usize;

    /// With a capacity: the factor of Switch and GShard. `None` is dropless.
    fn capacity_factor(&self) -> Option<f64> {
        None
    }

    /// Chooses for the tokens of `logits_te` [T, E], f32, outside any autograd graph.
    ///
    /// # Errors
    /// [`crate::base::ErrorKind::Bug`] when the logits have the wrong shape or type.
    fn select(&mut self, ctx: &GateContext, logits_te: &Tensor) -> Result<Selection>;

    /// Weights [T, K] of the chosen experts, f32, differentiable in `logits_te`; zero where a
    /// choice is dropped.
    ///
    /// # Errors
    /// [`crate::base::ErrorKind::Torch`] when shapes do not fit.
    fn weights(&self, logits_te: &Tensor, selection: &Selection) -> Result<Tensor>;

    /// Probabilities [T, E] that the auxiliary loss balances, differentiable in `logits_te`.
    ///
    /// # Errors
    /// [`crate::base::ErrorKind::Torch`] when libtorch fails.
    fn probabilities(&self, logits_te: &Tensor) -> Result<Tensor> {
        Ok(logits_te.f_softmax(-1, Kind::Float)?)
    }

    /// Called once after a step with how often each expert was chosen, over the global step
    /// batch: `load_le[layer][expert]`.
    ///
    /// # Errors
    /// Whatever the gate finds wrong with the load.
    fn after_step(&mut self, load_le: &[Vec<u64>]) -> Result<()> {
        let _ = load_le;
        Ok(())
    }

    /// What a resumed run needs, `null` when nothing.
    fn state(&self) -> Value {
        Value::Null
    }

    /// Takes back what [`Gate::state`] gave.
    ///
    /// # Errors
    /// [`crate::base::ErrorKind::Corrupt`] when the value is not this gate's.
    fn restore(&mut self, state: &Value) -> Result<()> {
        if state.is_null() {
            return Ok(());
        }
        let text = "a gate without state was given one: was the run made with another gate?";
        Err(Error::corrupt(text).with("gate", self.name()))
    }
}

#[cfg(test)]
mod tests;
