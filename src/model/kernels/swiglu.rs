//! The gated activation between an expert's two products, forward and backward, each in one
//! pass. Values are computed in f32 whatever the compute type.
//!
//! N rows of one expert, F expert width. `gate_up` [N, 2F] holds gate, then up, in each row.

use super::dispatch::dispatched;
use super::float::{Number, sigmoid};
use super::parallel::parallel_for;
use crate::base::{Error, Result};
use std::sync::Mutex;

/// Accumulators of a row sum: part of the definition of the result.
const LANES: usize = 16;
/// Rows of one unit of work.
const ROWS: usize = 4;

#[inline(always)]
fn forward_body<T: Number>(gate_up: &[T], act: &mut [T]) {
    let (gate, up) = gate_up.split_at(act.len());
    for ((gate, up), act) in gate.iter().zip(up).zip(act) {
        let g = gate.load();
        *act = T::store(g * sigmoid(g) * up.load());
    }
}

/// One element backward: (d gate, d up, act · weight, dact · act).
#[inline(always)]
pub(super) fn backward_element(g: f32, u: f32, dact: f32, weight: f32) -> [f32; 4] {
    let s = sigmoid(g);
    let silu = g * s;
    let act = silu * u;
    let d = dact * weight;
    [d * u * (s + silu * (1.0 - s)), d * silu, act * weight, dact * act]
}

/// One row backward; answers Σ dact · act.
#[inline(always)]
fn backward_body<T: Number>(
    gate_up: &[T],
    dact: &[T],
    weight: f32,
    d_gate_up: &mut [T],
    act_weighted: &mut [T],
) -> f32 {
    let width = dact.len();
    let (gate, up) = gate_up.split_at(width);
    let (d_gate, d_up) = d_gate_up.split_at_mut(width);
    let mut lanes = [0f32; LANES];
    // Whole groups of lanes as arrays, so that no index is checked in the loop.
    let whole = (gate.as_chunks::<LANES>().0.iter())
        .zip(up.as_chunks::<LANES>().0)
        .zip(dact.as_chunks::<LANES>().0)
        .zip(d_gate.as_chunks_mut::<LANES>().0)
        .zip(d_up.as_chunks_mut::<LANES>().0)
        .zip(act_weighted.as_chunks_mut::<LANES>().0);
    for (((((gate, up), dact), d_gate), d_up), act_weighted) in whole {
        for i in 0..LANES {
            let (g, u, d) = (gate[i].load(), up[i].load(), dact[i].load());
            let [dg, du, aw, product] = backward_element(g, u, d, weight);
            lanes[i] += product;
            d_gate[i] = T::store(dg);
            d_up[i] = T::store(du);
            act_weighted[i] = T::store(aw);
        }
    }
    for i in width - width % LANES..width {
        let (g, u, d) = (gate[i].load(), up[i].load(), dact[i].load());
        let [dg, du, aw, product] = backward_element(g, u, d, weight);
        lanes[i % LANES] += product;
        (d_gate[i], d_up[i]) = (T::store(dg), T::store(du));
        act_weighted[i] = T::store(aw);
    }
    lanes.iter().sum()
}

dispatched! {
    fn forward_f32(gate_up: &[f32], act: &mut [f32]) = forward_body;
}
dispatched! {
    fn forward_bf16(gate_up: &[u16], act: &mut [u16]) = forward_body;
}
dispatched! {
    fn backward_f32(gate_up: &[f32], dact: &[f32], weight: f32, d_gate_up: &mut [f32], act_weighted: &mut [f32]) -> f32 = backward_body;
}
dispatched! {
    fn backward_bf16(gate_up: &[u16], dact: &[u16], weight: f32, d_gate_up: &mut [u16], act_weighted: &mut [u16]) -> f32 = backward_body;
}

/// The two compute types, each with its compiled rows.
pub trait SwigluNumber: Number {
    fn forward_row(gate_up: &[Self], act: &mut [Self]);
    fn backward_row(
        gate_up: &[Self],
        dact: &[Self],
        weight: f32,
        d_gate_up: &mut [Self],
        act_weighted: &mut [Self],
    ) -> f32;
}

impl SwigluNumber for f32 {
    fn forward_row(gate_up: &[f32], act: &mut [f32]) {
        forward_f32(gate_up, act);
    }
    fn backward_row(gu: &[f32], dact: &[f32], w: f32, d_gu: &mut [f32], aw: &mut [f32]) -> f32 {
        backward_f32(gu, dact, w, d_gu, aw)
    }
}

impl SwigluNumber for u16 {
    fn forward_row(gate_up: &[u16], act: &mut [u16]) {
        forward_bf16(gate_up, act);
    }
    fn backward_row(gu: &[u16], dact: &[u16], w: f32, d_gu: &mut [u16], aw: &mut [u16]) -> f32 {
        backward_bf16(gu, dact, w, d_gu, aw)
    }
}

/// act [N, F] = silu(gate) · up.
///
/// # Errors
/// [`crate::base::ErrorKind::Bug`] when the slices do not fit together.
pub fn forward<T: SwigluNumber>(gate_up: &[T], act: &mut [T], width: usize) -> Result<()> {
    check(gate_up.len() == 2 * act.len() && act.len().is_multiple_of(width.max(1)))?;
    let parts: Vec<_> = (gate_up.chunks(2 * width * ROWS))
        .zip(act.chunks_mut(width * ROWS))
        .map(|part| Mutex::new(Some(part)))
        .collect();
    parallel_for(parts.len(), 1, |range| {
        for cell in &parts[range] {
            let part = cell.lock().ok().and_then(|mut part| part.take());
            let Some((gate_up, act)) = part else { continue };
            for (gate_up, act) in gate_up.chunks(2 * width).zip(act.chunks_mut(width)) {
                T::forward_row(gate_up, act);
            }
        }
    })
}

/// What the backward pass reads, and writes. Rows belong together.
pub struct Backward<'a, T> {
    /// [N, 2F], as the forward product gave it.
    pub gate_up: &'a [T],
    /// d loss / d (weighted act), before the router weight: [N, F].
    pub dact: &'a [T],
    /// Router weights `[N]`.
    pub weights: &'a [f32],
    /// Out: gradient of `gate_up` [N, 2F], with the router weight.
    pub d_gate_up: &'a mut [T],
    /// Out: act times the router weight [N, F].
    pub act_weighted: &'a mut [T],
    /// Out: Σ_f dact · act `[N]`, the router weights' gradient.
    pub d_weights: &'a mut [f32],
}

/// Runs the backward pass over all rows.
///
/// # Errors
/// [`crate::base::ErrorKind::Bug`] when the slices do not fit together.
pub fn backward<T: SwigluNumber>(b: Backward<'_, T>, width: usize) -> Result<()> {
    let rows = b.weights.len();
    check(b.gate_up.len() == 2 * rows * width && b.d_gate_up.len() == b.gate_up.len())?;
    check(b.dact.len() == rows * width && b.act_weighted.len() == rows * width)?;
    check(b.d_weights.len() == rows)?;
    let inputs = (b.gate_up.chunks(2 * width)).zip(b.dact.chunks(width)).zip(b.weights);
    let outputs = (b.d_gate_up.chunks_mut(2 * width)).zip(b.act_weighted.chunks_mut(width));
    let cells: Vec<_> = (inputs.zip(outputs.zip(b.d_weights)))
        .map(|(((gu, dact), w), ((d_gu, aw), dw))| Mutex::new((gu, dact, *w, d_gu, aw, dw)))
        .collect();
    parallel_for(rows, ROWS, |range| {
        for cell in &cells[range] {
            let Ok(mut row) = cell.lock() else { continue };
            let (gu, dact, w, d_gu, aw, dw) = &mut *row;
            **dw = T::backward_row(gu, dact, *w, d_gu, aw);
        }
    })
}

fn check(fits: bool) -> Result<()> {
    if fits {
        Ok(())
    } else {
        Err(Error::bug("slices of the gated activation do not fit together"))
    }
}
