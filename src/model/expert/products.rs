//! The expert in libtorch's matrix products, for any shape, type and machine.

#[cfg(target_arch = "x86_64")]
use super::foreign_kept;
use super::shape::ExpertShape;
use super::{Gradients, Kept, KeptValues, Precision, empty};
use crate::base::Result;
use crate::model::kernels::dispatch::{Isa, isa};
use crate::model::kernels::reduce::accumulate;
use crate::model::kernels::swiglu::{self, SwigluNumber};
use crate::model::kernels::view::{elements, elements_mut, tensor_over, tensor_over_mut};
use tch::{Kind, Tensor};

/// Whether libtorch's products are better than our own vector kernels.
///
/// In f32 with AVX-512, where ours are unproven; with AVX2 ours are measured to be the faster
/// (`benches/expert.rs`). Never in bf16: there libtorch makes a kernel for each number of rows that it
/// has not met, and keeps thousands. Experts meet a new number with nearly every call, so that takes
/// time and 1 GiB that no ledger knows (docs/adr/0012).
pub(super) fn better(precision: Precision) -> bool {
    precision == Precision::F32 && isa() != Isa::Avx2
}

/// Tensors over the weights; they must not outlive the slice.
struct Weights {
    gate_up_2fh: Tensor,
    down_hf: Tensor,
}

impl Weights {
    fn over<T: SwigluNumber>(shape: &ExpertShape, values: &[T]) -> Result<Self> {
        let (hidden, width) = (shape.hidden, shape.width);
        Ok(Self {
            gate_up_2fh: tensor_over(&values[shape.gate_up()], 2 * width, hidden)?,
            down_hf: tensor_over(&values[shape.down()], hidden, width)?,
        })
    }
}

pub(super) fn forward<T: SwigluNumber>(
    shape: &ExpertShape,
    weights: &[T],
    x_nh: &Tensor,
    keep: bool,
) -> Result<(Tensor, Option<Kept>)> {
    let w = Weights::over(shape, weights)?;
    let gate_up_n2f = x_nh.f_mm(&w.gate_up_2fh.f_tr()?)?;
    let mut act_nf = empty(x_nh, shape.width)?;
    swiglu::forward::<T>(elements(&gate_up_n2f)?, elements_mut(&mut act_nf)?, shape.width)?;
    let o_nh = act_nf.f_mm(&w.down_hf.f_tr()?)?;
    Ok((o_nh, keep.then_some(Kept(KeptValues::Rows(gate_up_n2f)))))
}

#[expect(clippy::too_many_arguments, reason = "one signature for every kind of kernel")]
pub(super) fn backward<T: SwigluNumber>(
    shape: &ExpertShape,
    weights: &[T],
    x_nh: &Tensor,
    kept: Option<Kept>,
    g_nh: &Tensor,
    w_n: &Tensor,
    grad: &mut [f32],
    first: bool,
) -> Result<Gradients> {
    let w = Weights::over(shape, weights)?;
    let gate_up_n2f = match kept.map(|kept| kept.0) {
        Some(KeptValues::Rows(gate_up_n2f)) => gate_up_n2f,
        #[cfg(target_arch = "x86_64")]
        Some(KeptValues::Tiles(_)) => return Err(foreign_kept()),
        None => x_nh.f_mm(&w.gate_up_2fh.f_tr()?)?,
    };
    let dact_nf = g_nh.f_mm(&w.down_hf)?;
    let mut d_gate_up_n2f = gate_up_n2f.f_empty_like()?;
    let mut act_weighted_nf = dact_nf.f_empty_like()?;
    let mut dw_n = w_n.f_empty_like()?;
    swiglu::backward(
        swiglu::Backward {
            gate_up: elements::<T>(&gate_up_n2f)?,
            dact: elements::<T>(&dact_nf)?,
            weights: elements(w_n)?,
            d_gate_up: elements_mut::<T>(&mut d_gate_up_n2f)?,
            act_weighted: elements_mut::<T>(&mut act_weighted_nf)?,
            d_weights: elements_mut(&mut dw_n)?,
        },
        shape.width,
    )?;
    let dx_nh = d_gate_up_n2f.f_mm(&w.gate_up_2fh)?;
    product(&d_gate_up_n2f.f_tr()?, x_nh, &mut grad[shape.gate_up()], first)?;
    product(&g_nh.f_tr()?, &act_weighted_nf, &mut grad[shape.down()], first)?;
    Ok(Gradients { dx_nh, dw_n, sum_squares: None })
}

/// slot = a b, or slot += a b, in f32.
fn product(a: &Tensor, b: &Tensor, slot: &mut [f32], first: bool) -> Result<()> {
    let (rows, columns) = (a.size()[0] as usize, b.size()[1] as usize);
    if a.f_kind()? == Kind::Float {
        let mut out = tensor_over_mut(slot, rows, columns)?;
        if first {
            let _ = a.f_mm_out(&out, b)?;
        } else {
            let _ = out.f_addmm_(a, b)?;
        }
        return Ok(());
    }
    accumulate(elements(&a.f_mm(b)?)?, slot, first)
}
