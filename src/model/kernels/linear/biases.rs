//! Biases of experts, decoded once for all outputs of a call.
//!
//! Legend: H hidden, F expert width.

use super::decode::decode_vector;
use super::expert::{ExpertWeights, GateUp, Projection};
use super::work::sized;
use crate::base::Result;

/// The biases of some experts of one shape; few families have any.
#[derive(Clone, Copy)]
pub(super) struct Biases<'a> {
    all: Option<&'a [f32]>,
    hidden: usize,
    width: usize,
}

impl<'a> Biases<'a> {
    /// Decodes them into `buffer`, and checks the matrices beside them.
    pub fn decode<'e>(
        experts: impl Iterator<Item = &'e ExpertWeights<'e>> + Clone,
        (hidden, width): (usize, usize),
        buffer: &'a mut Vec<f32>,
    ) -> Result<Self> {
        let (mut count, mut any) = (0, false);
        for projection in experts.clone().flat_map(ExpertWeights::projections) {
            projection.matrix.check()?;
            any |= projection.bias.is_some();
            count += 1;
        }
        if !any {
            return Ok(Self { all: None, hidden, width });
        }
        let each = 2 * width + hidden;
        let all = sized(buffer, count / 3 * each);
        for (e, out) in experts.zip(all.chunks_mut(each)) {
            decode(e, width, out)?;
        }
        Ok(Self { all: Some(all), hidden, width })
    }

    /// Of the outputs of gate and up as they lie, `[2F]`, and of those of down, `[H]`.
    pub fn of(&self, expert: usize) -> Option<(&'a [f32], &'a [f32])> {
        let each = 2 * self.width + self.hidden;
        Some(self.all?[expert * each..][..each].split_at(2 * self.width))
    }
}

/// Decodes an expert's biases as the outputs lie: `[2F]`, then `[H]`; zeros for those that there are not.
fn decode(e: &ExpertWeights<'_>, width: usize, out: &mut [f32]) -> Result<()> {
    let (gate_up, down) = out.split_at_mut(2 * width);
    let (gate, up) = gate_up.split_at_mut(width);
    match &e.gate_up {
        GateUp::Apart { gate: g, up: u } => {
            decode_bias(g, gate)?;
            decode_bias(u, up)?;
        }
        GateUp::Stacked(p) | GateUp::Interleaved(p) => decode_bias(p, gate_up)?,
    }
    decode_bias(&e.down, down)
}

fn decode_bias(p: &Projection<'_>, out: &mut [f32]) -> Result<()> {
    match &p.bias {
        Some(bias) => decode_vector(bias, out),
        None => {
            out.fill(0.0);
            Ok(())
        }
    }
}
