//! A gate from its description.

use super::{BiasCorrected, GShard, Gate, Switch, TopK};
use crate::base::{Error, Result};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The gates that come with the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum GateKind {
    /// Top-k softmax, as the model's family defines it.
    #[default]
    #[serde(rename = "topk")]
    TopK,
    /// One expert a token, capacity, jitter.
    Switch,
    /// Two experts a token, the second at random, capacity.
    #[serde(rename = "gshard")]
    GShard,
    /// Loss-free balancing by a bias on the choice.
    BiasCorrected,
}

/// What a gate is built from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GateSpec {
    pub kind: GateKind,
    pub layers: usize,
    pub experts: usize,
    pub top_k: usize,
    pub renormalise: bool,
    /// 0 is dropless.
    pub capacity_factor: f64,
    pub jitter: f64,
    pub bias_rate: f64,
}

impl GateSpec {
    /// Builds the gate.
    ///
    /// # Errors
    /// [`crate::base::ErrorKind::Config`] when the figures do not fit the kind.
    pub fn build(&self) -> Result<Box<dyn Gate>> {
        let choices = match self.kind {
            GateKind::Switch => 1,
            GateKind::GShard => 2,
            GateKind::TopK | GateKind::BiasCorrected => self.top_k,
        };
        if choices != self.top_k {
            let text =
                format!("this gate chooses {choices} experts a token: set top_k = {choices}");
            return Err(Error::config(text).with("top_k", self.top_k));
        }
        if self.top_k == 0 || self.top_k > self.experts {
            let text = "top_k must lie between 1 and the number of experts";
            return Err(Error::config(text)
                .with("top_k", self.top_k)
                .with("experts", self.experts));
        }
        if !(self.capacity_factor >= 0.0 && self.capacity_factor.is_finite()) {
            let text = "capacity_factor must be 0 (dropless) or a positive number";
            return Err(Error::config(text).with("capacity_factor", self.capacity_factor));
        }
        let capacity_factor = (self.capacity_factor > 0.0).then_some(self.capacity_factor);
        Ok(match self.kind {
            GateKind::TopK => {
                Box::new(TopK { top_k: self.top_k, renormalise: self.renormalise, capacity_factor })
            }
            GateKind::Switch => Box::new(Switch { capacity_factor, jitter: self.jitter }),
            GateKind::GShard => Box::new(GShard { capacity_factor }),
            GateKind::BiasCorrected => Box::new(BiasCorrected::new(
                self.layers,
                self.experts,
                self.top_k,
                self.renormalise,
                self.bias_rate,
            )),
        })
    }
}
