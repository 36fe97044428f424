//! One routed expert as a flat run of f32: the order in which blocks hold it.
//!
//! The order is [`crate::model::expert::ExpertShape`]'s: gate, up, padding, down, padding.

use super::checkpoint::Checkpoint;
use super::writer::Writer;
use crate::base::{Error, Result};
use crate::model::config::{ModelConfig, Precision};
use crate::model::family::expert_tensors;
use std::ops::Range;

/// Ranges of gate, up and down in a flat run of `elements`.
pub(in crate::model) fn ranges(config: &ModelConfig, elements: usize) -> Result<[Range<usize>; 3]> {
    let shape = config.expert_shape(Precision::F32);
    let padded = shape.elements();
    if elements != padded {
        return Err(Error::bug(format!("an expert has {padded} elements, not {elements}")));
    }
    Ok([shape.gate(), shape.up(), shape.down()])
}

/// Reads an expert into `out`, padding zeroed.
///
/// # Errors
/// Input for missing or misshapen tensors, by name.
pub fn read(
    checkpoint: &Checkpoint,
    config: &ModelConfig,
    layer: usize,
    expert: usize,
    out: &mut [f32],
) -> Result<()> {
    let ranges = ranges(config, out.len())?;
    out[ranges[1].end..ranges[2].start].fill(0.0);
    out[ranges[2].end..].fill(0.0);
    for ((name, shape), range) in expert_tensors(config, layer, expert)?.iter().zip(ranges) {
        checkpoint.expect(name, shape)?;
        checkpoint.read_f32(name, &mut out[range])?;
    }
    Ok(())
}

/// Writes an expert's flat run as its three tensors.
pub fn write(
    writer: &mut Writer,
    config: &ModelConfig,
    layer: usize,
    expert: usize,
    weights: &[f32],
) -> Result<()> {
    let ranges = ranges(config, weights.len())?;
    for ((name, _), range) in expert_tensors(config, layer, expert)?.iter().zip(ranges) {
        writer.write(name, &weights[range])?;
    }
    Ok(())
}
