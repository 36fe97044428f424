//! One expert: its forward and backward pass over the rows that chose it.
//!
//! Explicit, without an autograd graph. N rows of one expert, H hidden, F expert width. Law 4:
//! results depend on shapes, kernels and the number of threads only.
//!
//! ```text
//! forward   x_nh ─ gate_up [2F,H] ─▶ gate_up_n2f ─ SwiGLU ─▶ act_nf ─ down [H,F] ─▶ o_nh
//! backward  g_nh ─ down ─▶ dact_nf ─ SwiGLU' (router weight w_n) ─▶ d_gate_up_n2f ─ gate_up ─▶ dx_nh
//!           dW_gate_up = d_gate_upᵀ x,  dW_down = gᵀ (w · act), in f32 into the gradient's slot
//! ```

pub mod checked;
mod products;
mod shape;
#[cfg(target_arch = "x86_64")]
mod tiles;
mod vector;

pub use shape::{ExpertShape, StateRanges};

use super::kernels::parallel::Threads;
use super::kernels::reduce::sum_squares;
#[cfg(target_arch = "x86_64")]
use super::kernels::tiles::Unit;
use super::kernels::view::cast;
use crate::base::{Error, Result};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use shape::{payload, wrong_length};
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

    /// The name in configuration and messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
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

/// What computes an expert.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kernels {
    /// libtorch's matrix products and our activation.
    Libtorch,
    /// Our own tiles in bf16, on AMX.
    Amx,
    /// Our own tiles in bf16, on vectors of pairs (AVX-512 BF16).
    Pairs,
    /// Our own products in f32 vector arithmetic, of either type.
    Vector,
}

impl Kernels {
    /// The best that this machine has for the shape: the same for every call of a run.
    pub fn best(shape: &ExpertShape) -> Self {
        #[cfg(target_arch = "x86_64")]
        if let Some(tiles) = [Self::Amx, Self::Pairs].into_iter().find(|tiles| tiles.fit(shape)) {
            return tiles;
        }
        match products::better(shape.precision) {
            true => Self::Libtorch,
            false => Self::Vector,
        }
    }

    /// Whether this machine and shape have them.
    pub fn fit(self, shape: &ExpertShape) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Amx => tiles::fit(Unit::Amx, shape),
            #[cfg(target_arch = "x86_64")]
            Self::Pairs => tiles::fit(Unit::Pairs, shape),
            #[cfg(not(target_arch = "x86_64"))]
            Self::Amx | Self::Pairs => false,
            Self::Libtorch | Self::Vector => shape.hidden > 0 && shape.width > 0,
        }
    }
}

/// An expert's weights, borrowed from its slot.
pub struct ExpertView<'a> {
    shape: ExpertShape,
    kernels: Kernels,
    values: Values<'a>,
}

#[derive(Clone, Copy)]
enum Values<'a> {
    F32(&'a [f32]),
    Bf16(&'a [u16]),
}

impl<'a> ExpertView<'a> {
    /// A view of the bytes of a weights block (at least its payload).
    ///
    /// # Errors
    /// [`crate::base::ErrorKind::Bug`] when the bytes are too short or misaligned.
    pub fn new(shape: ExpertShape, weights: &'a [u8]) -> Result<Self> {
        Self::with_kernels(shape, weights, Kernels::best(&shape))
    }

    /// As [`Self::new`], with the kernels named (for comparisons).
    ///
    /// # Errors
    /// As [`Self::new`]; also when the kernels do not take this shape or this machine.
    pub fn with_kernels(shape: ExpertShape, weights: &'a [u8], kernels: Kernels) -> Result<Self> {
        let weights = payload(weights, shape.weights_bytes())?;
        if !kernels.fit(&shape) {
            let text = "this machine or shape does not have these kernels";
            return Err(Error::bug(text).with("kernels", format!("{kernels:?}")));
        }
        let values = match shape.precision {
            Precision::F32 => Values::F32(cast(weights)?),
            Precision::Bf16 => Values::Bf16(cast(weights)?),
        };
        Ok(Self { shape, kernels, values })
    }

    pub fn shape(&self) -> &ExpertShape {
        &self.shape
    }
}

/// What the forward pass keeps for the backward pass: [`Kept::bytes`] of memory.
pub struct Kept(KeptValues);

enum KeptValues {
    /// [N, 2F] in the compute type.
    Rows(Tensor),
    #[cfg(target_arch = "x86_64")]
    Tiles(tiles::KeptTiles),
}

impl Kept {
    /// Bytes that keeping costs for N rows, at most.
    pub fn bytes(shape: &ExpertShape, rows: usize) -> u64 {
        (rows.next_multiple_of(32) * 2 * shape.width * shape.precision.bytes()) as u64
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
    match (view.values, view.kernels) {
        #[cfg(target_arch = "x86_64")]
        (Values::Bf16(w), Kernels::Amx) => tiles::forward(Unit::Amx, &view.shape, w, x_nh, keep),
        #[cfg(target_arch = "x86_64")]
        (Values::Bf16(w), Kernels::Pairs) => {
            tiles::forward(Unit::Pairs, &view.shape, w, x_nh, keep)
        }
        (Values::F32(w), Kernels::Vector) => vector::forward(&view.shape, w, x_nh, keep),
        (Values::Bf16(w), Kernels::Vector) => vector::forward(&view.shape, w, x_nh, keep),
        (Values::F32(w), _) => products::forward(&view.shape, w, x_nh, keep),
        (Values::Bf16(w), _) => products::forward(&view.shape, w, x_nh, keep),
    }
}

/// The gradients that one expert's backward pass hands back.
pub struct Gradients {
    /// d loss / d x [N, H], in the compute type.
    pub dx_nh: Tensor,
    /// d loss / d w `[N]`, f32.
    pub dw_n: Tensor,
    /// Σ gradient² of the slot after this pass, where the kernels have it at no cost.
    pub sum_squares: Option<f64>,
}

impl Gradients {
    /// Σ gradient² of the slot after this pass; not finite when an element is not (or is so large,
    /// above 1e18, that the gradient is lost anyway).
    ///
    /// # Errors
    /// As [`sum_squares`].
    pub fn sum_squares(&self, grad: &[f32]) -> Result<f64> {
        self.sum_squares.map_or_else(|| sum_squares(grad, Threads::Pool), Ok)
    }
}

/// Backward of `y = w · expert(x)` for the N rows of one expert.
///
/// `x_nh`: as in [`forward`]; `kept`: what it kept (recomputed when `None`, with the same bits);
/// `g_nh`: d loss / d y in the compute type, contiguous; `w_n`: router weights, f32; `grad`: the
/// expert's flat f32 gradient, which is overwritten when `first` and added to otherwise.
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
    let shape = &view.shape;
    check_input(view, x_nh, "input")?;
    check_input(view, g_nh, "output gradient")?;
    if w_n.size() != [x_nh.size()[0]] || g_nh.size() != x_nh.size() {
        return Err(Error::bug("rows of an expert's backward pass differ in number"));
    }
    if grad.len() != shape.elements() {
        return Err(wrong_length("gradient", grad.len(), shape.elements()));
    }
    if first {
        grad[shape.gate_up().end..shape.down().start].fill(0.0);
        grad[shape.down().end..].fill(0.0);
    }
    match (view.values, view.kernels) {
        #[cfg(target_arch = "x86_64")]
        (Values::Bf16(w), Kernels::Amx) => {
            tiles::backward(Unit::Amx, shape, w, x_nh, kept, g_nh, w_n, grad, first)
        }
        #[cfg(target_arch = "x86_64")]
        (Values::Bf16(w), Kernels::Pairs) => {
            tiles::backward(Unit::Pairs, shape, w, x_nh, kept, g_nh, w_n, grad, first)
        }
        (Values::F32(w), Kernels::Vector) => {
            vector::backward(shape, w, x_nh, kept, g_nh, w_n, grad, first)
        }
        (Values::Bf16(w), Kernels::Vector) => {
            vector::backward(shape, w, x_nh, kept, g_nh, w_n, grad, first)
        }
        (Values::F32(w), _) => products::backward(shape, w, x_nh, kept, g_nh, w_n, grad, first),
        (Values::Bf16(w), _) => products::backward(shape, w, x_nh, kept, g_nh, w_n, grad, first),
    }
}

fn foreign_kept() -> Error {
    Error::bug("kept values come from other kernels than the backward pass runs on")
}

fn empty(like: &Tensor, columns: usize) -> Result<Tensor> {
    Ok(like.f_new_empty([like.size()[0], columns as i64], (like.f_kind()?, Device::Cpu))?)
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
