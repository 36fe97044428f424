//! What follows attention besides routed experts: shared experts, or the MLP of a dense layer.

use super::attention::sized;
use super::router::Router;
use super::tensors::Weights;
use crate::base::Result;
use crate::model::config::ModelConfig;
use crate::model::family::Slot;
use crate::model::kernels::float::sigmoid;
use crate::model::kernels::linear::{
    Activation, ExpertWeights, GateUp, OwnedMatrix, Work, expert, linear,
};

/// A gated MLP: down(silu(gate x) · up x).
#[derive(Debug)]
pub(super) struct Mlp {
    gate: OwnedMatrix,
    up: OwnedMatrix,
    down: OwnedMatrix,
}

impl Mlp {
    /// None where the layer has none of these tensors.
    fn load(
        weights: &Weights<'_>,
        layer: usize,
        [gate, up, down]: [Slot; 3],
    ) -> Result<Option<Self>> {
        let layer = Some(layer);
        let Some(gate) = weights.matrix(layer, gate)? else { return Ok(None) };
        Ok(Some(Self { gate, up: weights.need(layer, up)?, down: weights.need(layer, down)? }))
    }

    /// out += weight · mlp(y), row by row.
    fn apply(&self, y: &[f32], weights: &[f32], out: &mut [f32], work: &mut Work) -> Result<()> {
        let weights_of = ExpertWeights {
            gate_up: GateUp::Apart { gate: self.gate.view().into(), up: self.up.view().into() },
            down: self.down.view().into(),
            activation: Activation::SwiGlu,
        };
        expert(&weights_of, y, weights, out, work)
    }
}

/// What a layer does besides attention.
#[derive(Debug)]
pub(super) struct Tail {
    /// None in a dense layer.
    pub(super) router: Option<Router>,
    /// Shared experts or the dense MLP.
    mlp: Option<Mlp>,
    /// A sigmoid gate `[1,H]` on the shared experts (Qwen2-MoE).
    gate: Option<OwnedMatrix>,
}

/// Buffers of a call, kept from one to the next.
#[derive(Debug, Default)]
pub(super) struct Buffers {
    weights: Vec<f32>,
}

impl Tail {
    pub(super) fn load(config: &ModelConfig, weights: &Weights<'_>, layer: usize) -> Result<Self> {
        if config.is_dense(layer) {
            let slots = [Slot::DenseGateProj, Slot::DenseUpProj, Slot::DenseDownProj];
            return Ok(Self { router: None, mlp: Mlp::load(weights, layer, slots)?, gate: None });
        }
        let slots = [Slot::SharedGateProj, Slot::SharedUpProj, Slot::SharedDownProj];
        Ok(Self {
            router: Some(Router::load(config, weights, layer)?),
            mlp: Mlp::load(weights, layer, slots)?,
            gate: weights.exact(Some(layer), Slot::SharedGate)?,
        })
    }

    /// Adds what every row gets to `x_th`.
    pub(super) fn apply(
        &self,
        y_th: &[f32],
        x_th: &mut [f32],
        hidden: usize,
        buffers: &mut Buffers,
        work: &mut Work,
    ) -> Result<()> {
        let Some(mlp) = &self.mlp else { return Ok(()) };
        let weights = sized(&mut buffers.weights, y_th.len() / hidden);
        match &self.gate {
            None => weights.fill(1.0),
            Some(gate) => {
                linear(&gate.view(), y_th, weights, false, work)?;
                weights.iter_mut().for_each(|weight| *weight = sigmoid(*weight));
            }
        }
        mlp.apply(y_th, weights, x_th, work)
    }
}
