//! One expert: where its parameters lie in a slot, and its forward and backward pass.
//!
//! Explicit, without an autograd graph. T tokens, N rows of one expert, H hidden, F expert
//! width. Law 4: results depend on shapes, kernels and the number of threads only.
//!
//! ```text
//! forward   x_nh ─ gate_up [2F,H] ─▶ gate_up_n2f ─ SwiGLU ─▶ act_nf ─ down [H,F] ─▶ o_nh
//! backward  g_nh ─ down ─▶ dact_nf ─ SwiGLU' (router weight w_n) ─▶ d_gate_up_n2f ─ gate_up ─▶ dx_nh
//!           dW_gate_up = d_gate_upᵀ x,  dW_down = gᵀ (w · act), in f32 into the gradient's slot
//! ```

use super::kernels::float::Number;
use super::kernels::reduce::accumulate;
use super::kernels::split::{join_master, split_master};
use super::kernels::swiglu::{self, SwigluNumber};
use super::kernels::view::{cast, cast_mut, elements, elements_mut, tensor_over, tensor_over_mut};
use super::optim::{Master, Params};
use crate::base::{Error, Result};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::marker::PhantomData;
use std::ops::Range;
use tch::{Device, Kind, Tensor};

/// The type in which products are computed. Masters and moments are f32 in both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    F32,
    #[default]
    Bf16,
}

impl Precision {
    /// The tensor kind of weights and activations that products read.
    pub fn kind(self) -> Kind {
        match self {
            Self::F32 => Kind::Float,
            Self::Bf16 => Kind::BFloat16,
        }
    }

    /// Bytes of one element of the compute type.
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }
}

/// The shape of an expert and the layout that follows from it.
///
/// Elements lie flat: gate rows, up rows [2F, H], padding to 64; down rows [H, F], padding to
/// 64. Parts of a block start at multiples of 64 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ExpertShape {
    pub hidden: usize,
    pub width: usize,
    pub precision: Precision,
}

/// Byte ranges of an optimizer-state block. `low` is empty in f32.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateRanges {
    /// Lower halves of the masters, i16.
    pub low: Range<usize>,
    /// First moments, f32.
    pub m: Range<usize>,
    /// Second moments, f32.
    pub v: Range<usize>,
}

const ALIGN_ELEMENTS: usize = 64;

impl ExpertShape {
    pub fn new(hidden: usize, width: usize, precision: Precision) -> Self {
        Self { hidden, width, precision }
    }

    /// Parameters of one expert, without padding: 3 F H.
    pub fn parameters(&self) -> usize {
        3 * self.hidden * self.width
    }

    /// Elements of [gate; up], the tensor [2F, H].
    pub fn gate_up(&self) -> Range<usize> {
        0..2 * self.width * self.hidden
    }

    /// Elements of gate, [F, H].
    pub fn gate(&self) -> Range<usize> {
        0..self.width * self.hidden
    }

    /// Elements of up, [F, H].
    pub fn up(&self) -> Range<usize> {
        self.width * self.hidden..2 * self.width * self.hidden
    }

    /// Elements of down, the tensor [H, F].
    pub fn down(&self) -> Range<usize> {
        let start = self.gate_up().end.next_multiple_of(ALIGN_ELEMENTS);
        start..start + self.hidden * self.width
    }

    /// Elements with padding: the length of every flat array of an expert.
    pub fn elements(&self) -> usize {
        self.down().end.next_multiple_of(ALIGN_ELEMENTS)
    }

    /// Payload bytes of [`crate::base::Part::Weights`].
    pub fn weights_bytes(&self) -> u64 {
        (self.elements() * self.precision.bytes()) as u64
    }

    /// Payload bytes of [`crate::base::Part::State`].
    pub fn state_bytes(&self) -> u64 {
        self.state().v.end as u64
    }

    /// Payload bytes of [`crate::base::Part::Grad`]: f32.
    pub fn grad_bytes(&self) -> u64 {
        (self.elements() * 4) as u64
    }

    /// Where the arrays of a state block lie.
    pub fn state(&self) -> StateRanges {
        let n = self.elements();
        let low = match self.precision {
            Precision::F32 => 0..0,
            Precision::Bf16 => 0..2 * n,
        };
        let m = low.end..low.end + 4 * n;
        StateRanges { m: m.clone(), v: m.end..m.end + 4 * n, low }
    }

    /// The parameters in the bytes of a weights and a state block (at least the payloads).
    ///
    /// # Errors
    /// [`crate::base::ErrorKind::Bug`] when a slice is too short or misaligned.
    pub fn params<'a>(&self, weights: &'a mut [u8], state: &'a mut [u8]) -> Result<Params<'a>> {
        let weights = payload_mut(weights, self.weights_bytes())?;
        let state = payload_mut(state, self.state_bytes())?;
        let ranges = self.state();
        let (low, moments) = state.split_at_mut(ranges.low.end);
        let (m, v) = moments.split_at_mut(ranges.m.len());
        let master = match self.precision {
            Precision::F32 => Master::F32(cast_mut(weights)?),
            Precision::Bf16 => Master::Split { hi: cast_mut(weights)?, lo: cast_mut(low)? },
        };
        Ok(Params { master, m: cast_mut(m)?, v: cast_mut(v)? })
    }

    /// Writes masters (flat, [`Self::elements`] long) with zero moments.
    ///
    /// # Errors
    /// As [`Self::params`]; also when `master` has another length.
    pub fn write_master(&self, master: &[f32], weights: &mut [u8], state: &mut [u8]) -> Result<()> {
        let params = self.params(weights, state)?;
        params.m.fill(0.0);
        params.v.fill(0.0);
        match params.master {
            Master::F32(w) if w.len() == master.len() => w.copy_from_slice(master),
            Master::F32(w) => {
                return Err(wrong_length("master", master.len(), w.len()));
            }
            Master::Split { hi, lo } => split_master(master, hi, lo)?,
        }
        Ok(())
    }

    /// Reads masters into `out` (flat, [`Self::elements`] long).
    ///
    /// # Errors
    /// [`crate::base::ErrorKind::Bug`] when a slice is too short or misaligned.
    pub fn read_master(&self, weights: &[u8], state: &[u8], out: &mut [f32]) -> Result<()> {
        let weights = payload(weights, self.weights_bytes())?;
        match self.precision {
            Precision::F32 => {
                let w: &[f32] = cast(weights)?;
                if w.len() != out.len() {
                    return Err(wrong_length("master", out.len(), w.len()));
                }
                out.copy_from_slice(w);
                Ok(())
            }
            Precision::Bf16 => {
                let low = payload(state, self.state().low.end as u64)?;
                join_master(cast(weights)?, cast(low)?, out)
            }
        }
    }

    /// The gradient in the bytes of a gradient block.
    ///
    /// # Errors
    /// As [`Self::params`].
    pub fn grad<'a>(&self, bytes: &'a [u8]) -> Result<&'a [f32]> {
        cast(payload(bytes, self.grad_bytes())?)
    }

    /// The gradient in the bytes of a gradient block, to be changed.
    ///
    /// # Errors
    /// As [`Self::params`].
    pub fn grad_mut<'a>(&self, bytes: &'a mut [u8]) -> Result<&'a mut [f32]> {
        cast_mut(payload_mut(bytes, self.grad_bytes())?)
    }
}

fn payload(bytes: &[u8], len: u64) -> Result<&[u8]> {
    let have = bytes.len();
    bytes.get(..len as usize).ok_or_else(|| wrong_length("slot", have, len as usize))
}

fn payload_mut(bytes: &mut [u8], len: u64) -> Result<&mut [u8]> {
    let have = bytes.len();
    bytes.get_mut(..len as usize).ok_or_else(|| wrong_length("slot", have, len as usize))
}

fn wrong_length(what: &str, got: usize, want: usize) -> Error {
    Error::bug(format!("{what} has the wrong length")).with("got", got).with("wanted", want)
}

/// An expert's weights, borrowed from its slot.
pub struct ExpertView<'a> {
    shape: ExpertShape,
    gate_up_2fh: Tensor,
    down_hf: Tensor,
    weights: PhantomData<&'a [u8]>,
}

impl<'a> ExpertView<'a> {
    /// A view of the bytes of a weights block (at least its payload).
    ///
    /// # Errors
    /// [`crate::base::ErrorKind::Bug`] when the bytes are too short or misaligned.
    pub fn new(shape: ExpertShape, weights: &'a [u8]) -> Result<Self> {
        let weights = payload(weights, shape.weights_bytes())?;
        match shape.precision {
            Precision::F32 => Self::over::<f32>(shape, cast(weights)?),
            Precision::Bf16 => Self::over::<u16>(shape, cast(weights)?),
        }
    }

    fn over<T: Number>(shape: ExpertShape, values: &'a [T]) -> Result<Self> {
        let (hidden, width) = (shape.hidden, shape.width);
        Ok(Self {
            shape,
            gate_up_2fh: tensor_over(&values[shape.gate_up()], 2 * width, hidden)?,
            down_hf: tensor_over(&values[shape.down()], hidden, width)?,
            weights: PhantomData,
        })
    }

    pub fn shape(&self) -> &ExpertShape {
        &self.shape
    }
}

/// What the forward pass keeps for the backward pass: [`Kept::bytes`] of memory.
pub struct Kept {
    gate_up_n2f: Tensor,
}

impl Kept {
    /// Bytes that keeping costs for N rows.
    pub fn bytes(shape: &ExpertShape, rows: usize) -> u64 {
        (rows * 2 * shape.width * shape.precision.bytes()) as u64
    }
}

/// o_nh = down(silu(gate(x)) · up(x)), in the compute type, and what backward needs if `keep`.
///
/// `x_nh`: [N, H] in the compute type, contiguous.
///
/// # Errors
/// [`crate::base::ErrorKind::Torch`] when a product fails, [`crate::base::ErrorKind::Bug`] when
/// shapes do not fit.
pub fn forward(view: &ExpertView<'_>, x_nh: &Tensor, keep: bool) -> Result<(Tensor, Option<Kept>)> {
    check_input(view, x_nh, "input")?;
    let gate_up_n2f = x_nh.f_mm(&view.gate_up_2fh.f_tr()?)?;
    let mut act_nf = x_nh.f_new_empty(
        [x_nh.size()[0], view.shape.width as i64],
        (view.shape.precision.kind(), Device::Cpu),
    )?;
    match view.shape.precision {
        Precision::F32 => activate::<f32>(&gate_up_n2f, &mut act_nf, view.shape.width)?,
        Precision::Bf16 => activate::<u16>(&gate_up_n2f, &mut act_nf, view.shape.width)?,
    }
    let o_nh = act_nf.f_mm(&view.down_hf.f_tr()?)?;
    Ok((o_nh, keep.then_some(Kept { gate_up_n2f })))
}

fn activate<T: SwigluNumber>(gate_up: &Tensor, act: &mut Tensor, width: usize) -> Result<()> {
    swiglu::forward::<T>(elements(gate_up)?, elements_mut(act)?, width)
}

/// The gradients that one expert's backward pass hands back.
pub struct Gradients {
    /// d loss / d x [N, H], in the compute type.
    pub dx_nh: Tensor,
    /// d loss / d w [N], f32.
    pub dw_n: Tensor,
}

/// Backward of `y = w · expert(x)` for the N rows of one expert.
///
/// `x_nh`: as in [`forward`]; `kept`: what it kept (recomputed when `None`); `g_nh`: d loss / d y
/// in the compute type, contiguous; `w_n`: router weights, f32; `grad`: the expert's flat f32
/// gradient, which is overwritten when `first` and added to otherwise.
///
/// # Errors
/// As [`forward`].
pub fn backward(
    view: &ExpertView<'_>,
    x_nh: &Tensor,
    kept: Option<Kept>,
    g_nh: &Tensor,
    w_n: &Tensor,
    grad: &mut [f32],
    first: bool,
) -> Result<Gradients> {
    check_input(view, x_nh, "input")?;
    check_input(view, g_nh, "output gradient")?;
    if w_n.size() != [x_nh.size()[0]] || g_nh.size() != x_nh.size() {
        return Err(Error::bug("rows of an expert's backward pass differ in number"));
    }
    if grad.len() != view.shape.elements() {
        return Err(wrong_length("gradient", grad.len(), view.shape.elements()));
    }
    match view.shape.precision {
        Precision::F32 => backward_in::<f32>(view, x_nh, kept, g_nh, w_n, grad, first),
        Precision::Bf16 => backward_in::<u16>(view, x_nh, kept, g_nh, w_n, grad, first),
    }
}

fn backward_in<T: SwigluNumber>(
    view: &ExpertView<'_>,
    x_nh: &Tensor,
    kept: Option<Kept>,
    g_nh: &Tensor,
    w_n: &Tensor,
    grad: &mut [f32],
    first: bool,
) -> Result<Gradients> {
    let shape = &view.shape;
    let gate_up_n2f = match kept {
        Some(kept) => kept.gate_up_n2f,
        None => x_nh.f_mm(&view.gate_up_2fh.f_tr()?)?,
    };
    let dact_nf = g_nh.f_mm(&view.down_hf)?;
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
    let dx_nh = d_gate_up_n2f.f_mm(&view.gate_up_2fh)?;

    let (gate_up, down) = (shape.gate_up(), shape.down());
    if first {
        grad[gate_up.end..down.start].fill(0.0);
        grad[down.end..].fill(0.0);
    }
    product(&d_gate_up_n2f.f_tr()?, x_nh, &mut grad[gate_up], first)?;
    product(&g_nh.f_tr()?, &act_weighted_nf, &mut grad[down], first)?;
    Ok(Gradients { dx_nh, dw_n })
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

fn check_input(view: &ExpertView<'_>, x: &Tensor, what: &str) -> Result<()> {
    let size = x.size();
    let fits = size.len() == 2 && size[1] == view.shape.hidden as i64 && x.is_contiguous();
    if fits && x.f_kind()? == view.shape.precision.kind() {
        return Ok(());
    }
    Err(Error::bug(format!("an expert's {what} has the wrong shape or type"))
        .with("got", format!("{size:?} {:?}", x.f_kind()?))
        .with("hidden", view.shape.hidden)
        .with("precision", format!("{:?}", view.shape.precision)))
}

#[cfg(test)]
mod tests;
