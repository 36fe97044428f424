//! The expert on our own tile kernels, in bf16: tensors in, tensors out.

use super::shape::ExpertShape;
use super::{Gradients, Kept, KeptValues, Precision, empty, foreign_kept};
use crate::base::Result;
pub(super) use crate::model::kernels::tiles::KeptTiles;
use crate::model::kernels::tiles::{self, Unit};
use crate::model::kernels::view::{elements, elements_mut};
use tch::Tensor;

/// Whether the tile kernels take this shape on a unit of this machine.
pub(super) fn fit(unit: Unit, shape: &ExpertShape) -> bool {
    shape.precision == Precision::Bf16 && tiles::fits(shape.hidden, shape.width) && unit.available()
}

pub(super) fn forward(
    unit: Unit,
    shape: &ExpertShape,
    weights: &[u16],
    x_nh: &Tensor,
    keep: bool,
) -> Result<(Tensor, Option<Kept>)> {
    let mut o_nh = empty(x_nh, shape.hidden)?;
    // SAFETY: a view has these kernels only where `fit` holds; the sizes follow from the shape,
    // which the weights and the input were checked against.
    let kept = unsafe {
        tiles::forward(
            unit,
            &weights[shape.gate_up()],
            &weights[shape.down()],
            elements(x_nh)?,
            elements_mut(&mut o_nh)?,
            shape.hidden,
            shape.width,
            keep,
        )?
    };
    Ok((o_nh, kept.map(|kept| Kept(KeptValues::Tiles(kept)))))
}

#[expect(clippy::too_many_arguments, reason = "one signature for every kind of kernel")]
pub(super) fn backward(
    unit: Unit,
    shape: &ExpertShape,
    weights: &[u16],
    x_nh: &Tensor,
    kept: Option<Kept>,
    g_nh: &Tensor,
    w_n: &Tensor,
    grad: &mut [f32],
    first: bool,
) -> Result<Gradients> {
    let x: &[u16] = elements(x_nh)?;
    let kept = match kept.map(|kept| kept.0) {
        Some(KeptValues::Tiles(kept)) => kept,
        Some(KeptValues::Rows(_)) => return Err(foreign_kept()),
        // SAFETY: as in `forward`.
        None => unsafe {
            tiles::gate_up(unit, &weights[shape.gate_up()], x, shape.hidden, shape.width)?
        },
    };
    let mut dx_nh = empty(x_nh, shape.hidden)?;
    let mut dw_n = w_n.f_empty_like()?;
    let (grad_gate_up, grad_down) = grad.split_at_mut(shape.down().start);
    let call = tiles::BackwardCall {
        unit,
        hidden: shape.hidden,
        width: shape.width,
        weights_gate_up: &weights[shape.gate_up()],
        weights_down: &weights[shape.down()],
        x,
        g: elements(g_nh)?,
        weights: elements(w_n)?,
        dx: elements_mut(&mut dx_nh)?,
        d_weights: elements_mut(&mut dw_n)?,
        grad_gate_up: &mut grad_gate_up[shape.gate_up()],
        grad_down: &mut grad_down[..shape.hidden * shape.width],
        first,
    };
    // SAFETY: as in `forward`; the kernels check that `kept` has these rows.
    let sum_squares = unsafe { tiles::backward(call, kept)? };
    Ok(Gradients { dx_nh, dw_n, sum_squares: Some(sum_squares) })
}
