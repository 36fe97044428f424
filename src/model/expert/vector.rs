//! The expert on our own vector kernels, in either type: tensors in, tensors out.

use super::shape::ExpertShape;
use super::{Gradients, Kept, KeptValues, empty};
use crate::base::Result;
use crate::model::kernels::vector::{self, BackwardCall, Element, Shape};
use crate::model::kernels::view::{elements, elements_mut};
use tch::Tensor;

fn shape_of(shape: &ExpertShape, x_nh: &Tensor) -> Shape {
    Shape { rows: x_nh.size()[0] as usize, hidden: shape.hidden, width: shape.width }
}

pub(super) fn forward<T: Element>(
    shape: &ExpertShape,
    weights: &[T],
    x_nh: &Tensor,
    keep: bool,
) -> Result<(Tensor, Option<Kept>)> {
    let mut o_nh = empty(x_nh, shape.hidden)?;
    let mut kept_n2f = if keep { Some(empty(x_nh, 2 * shape.width)?) } else { None };
    vector::forward(
        shape_of(shape, x_nh),
        &weights[shape.gate_up()],
        &weights[shape.down()],
        elements(x_nh)?,
        elements_mut(&mut o_nh)?,
        kept_n2f.as_mut().map(elements_mut).transpose()?,
    )?;
    Ok((o_nh, kept_n2f.map(|kept| Kept(KeptValues::Rows(kept)))))
}

#[expect(clippy::too_many_arguments, reason = "one signature for every kind of kernel")]
pub(super) fn backward<T: Element>(
    shape: &ExpertShape,
    weights: &[T],
    x_nh: &Tensor,
    kept: Option<Kept>,
    g_nh: &Tensor,
    w_n: &Tensor,
    grad: &mut [f32],
    first: bool,
) -> Result<Gradients> {
    let call_shape = shape_of(shape, x_nh);
    let gate_up = &weights[shape.gate_up()];
    let kept_n2f = match kept.map(|kept| kept.0) {
        Some(KeptValues::Rows(kept)) => kept,
        #[cfg(target_arch = "x86_64")]
        Some(KeptValues::Tiles(_)) => return Err(super::foreign_kept()),
        None => {
            let mut kept = empty(x_nh, 2 * shape.width)?;
            vector::gate_up(call_shape, gate_up, elements(x_nh)?, elements_mut(&mut kept)?)?;
            kept
        }
    };
    let (mut dx_nh, mut dw_n) = (empty(x_nh, shape.hidden)?, w_n.f_empty_like()?);
    let (grad_gate_up, grad_down) = grad.split_at_mut(shape.down().start);
    let sum_squares = vector::backward(BackwardCall::<T> {
        shape: call_shape,
        gate_up,
        down: &weights[shape.down()],
        x: elements(x_nh)?,
        kept: elements(&kept_n2f)?,
        g: elements(g_nh)?,
        weights: elements(w_n)?,
        dx: elements_mut(&mut dx_nh)?,
        d_weights: elements_mut(&mut dw_n)?,
        grad_gate_up: &mut grad_gate_up[shape.gate_up()],
        grad_down: &mut grad_down[..shape.hidden * shape.width],
        first,
    })?;
    Ok(Gradients { dx_nh, dw_n, sum_squares: Some(sum_squares) })
}
