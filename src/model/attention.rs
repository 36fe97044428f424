//! Grouped-query attention of training, forward and backward: libtorch's products, and kernels of our
//! own for what lies between them.
//!
//! ```text
//! n_th ─ qkv ─▶ projection ─ turn (norms, clamp, rotation) ─▶ q, k, v ─ attend ─▶ context ─ o ─▶
//! ```
//!
//! Legend: B sequences, S tokens of one, T = B·S, H hidden, N query heads, G key/value heads, D head
//! width.

use super::compute;
use super::config::{ModelConfig, Precision};
use super::family::Slot;
use super::kernels::turn::{self, Turn};
use super::kernels::vector::{AttentionTape, Element, Heads, attention, attention_backward};
use super::kernels::view::{elements, elements_mut};
use super::params::{DenseParams, Param};
use super::rotary::Angles;
use crate::base::{Error, Result};
use tch::{Device, Kind, Tensor};

/// Attention of one layer.
#[derive(Debug)]
pub struct Attention {
    heads: i64,
    kv_heads: i64,
    head_dim: i64,
    kind: Kind,
    eps: f32,
    clip: Option<f32>,
    qkv: Param,
    bias: Option<Param>,
    /// Of queries and keys: of each head, or over all (their lengths tell).
    norms: Option<[Param; 2]>,
    o: Param,
}

/// What attention keeps for its backward pass, in the compute type unless said.
#[derive(Debug)]
pub struct Attended {
    /// The projection [T, (N + 2 G) D], where a norm or a clamp reads it again.
    projection: Option<Tensor>,
    /// `[T,N·D]`, then `[T,G·D]` twice.
    qkv: [Tensor; 3],
    /// `[T,N·D]`.
    context: Tensor,
    /// Logarithm of each row's sum of exponentials, f32 `[B,N,S]`.
    log_sums: Tensor,
}

impl Attention {
    pub(in crate::model) fn new(
        config: &ModelConfig,
        precision: Precision,
        params: &DenseParams,
        layer: usize,
    ) -> Result<Self> {
        let layer = Some(layer);
        let missing = || Error::bug("attention has no weights");
        let norms = (params.param(layer, Slot::QNorm)?, params.param(layer, Slot::KNorm)?);
        Ok(Self {
            heads: config.heads as i64,
            kv_heads: config.kv_heads as i64,
            head_dim: config.head_dim as i64,
            kind: compute::dense(precision).kind(),
            eps: config.norm_eps as f32,
            clip: config.clip_qkv.map(|clip| clip as f32),
            qkv: params.span(layer, &[Slot::Q, Slot::K, Slot::V])?.ok_or_else(missing)?,
            bias: params.span(layer, &[Slot::QBias, Slot::KBias, Slot::VBias])?,
            norms: norms.0.zip(norms.1).map(|(of_q, of_k)| [of_q, of_k]),
            o: params.param(layer, Slot::O)?.ok_or_else(missing)?,
        })
    }

    /// Causal attention of each sequence over itself, up to its context: `n_th` in the compute
    /// type, `angles` those of the positions of one sequence.
    pub(in crate::model) fn forward(&self, n_th: &Tensor, angles: &Angles) -> Result<Attended> {
        match self.kind {
            Kind::BFloat16 => self.forward_in::<u16>(n_th, angles),
            _ => self.forward_in::<f32>(n_th, angles),
        }
    }

    fn forward_in<T: Element>(&self, n_th: &Tensor, angles: &Angles) -> Result<Attended> {
        let bias = self.bias.as_ref().map(|bias| &bias.value);
        let projection = n_th.f_linear(&self.qkv.value, bias)?;
        let (rows, heads) = (n_th.size2()?.0, self.shape(n_th, angles)?);
        let [wide, narrow] = [self.heads, self.kv_heads].map(|heads| heads * self.head_dim);
        let empty = |width| Tensor::f_empty([rows, width], (self.kind, Device::Cpu));
        let [mut q, mut k, mut v] = [empty(wide)?, empty(narrow)?, empty(narrow)?];
        let turn = self.turn(angles)?;
        let parts = [elements_mut::<T>(&mut q)?, elements_mut(&mut k)?, elements_mut(&mut v)?];
        turn::forward(&turn, elements(&projection)?, parts)?;
        let mut context = empty(wide)?;
        let mut log_sums = Tensor::f_empty([rows * self.heads], (Kind::Float, Device::Cpu))?;
        let inputs = [elements::<T>(&q)?, elements(&k)?, elements(&v)?];
        attention(heads, inputs, elements_mut(&mut context)?, elements_mut(&mut log_sums)?)?;
        let projection = turn.reads_input().then_some(projection);
        Ok(Attended { projection, qkv: [q, k, v], context, log_sums })
    }

    /// Output projection of what attention gave: `[T,H]` in the compute type.
    pub fn output(&self, made: &Attended) -> Result<Tensor> {
        Ok(made.context.f_linear(&self.o.value, None::<&Tensor>)?)
    }

    /// Gradient of `n_th`, compute type, from that of [`Attention::output`], `[T,H]` f32 or compute
    /// type; the parameters' are added to theirs.
    pub(in crate::model) fn backward(
        &self,
        made: Attended,
        n_th: &Tensor,
        d_out: &Tensor,
        angles: &Angles,
    ) -> Result<Tensor> {
        match self.kind {
            Kind::BFloat16 => self.backward_in::<u16>(made, n_th, d_out, angles),
            _ => self.backward_in::<f32>(made, n_th, d_out, angles),
        }
    }

    fn backward_in<T: Element>(
        &self,
        made: Attended,
        n_th: &Tensor,
        d_out: &Tensor,
        angles: &Angles,
    ) -> Result<Tensor> {
        let d_out = d_out.f_to_kind(self.kind)?;
        self.o.accumulate_product(&d_out, &made.context)?;
        let d_context = d_out.f_mm(&self.o.value)?;
        let grads = self.attend_backward::<T>(&made, &d_context, self.shape(n_th, angles)?)?;
        drop(d_context);

        let turn = self.turn(angles)?;
        let width = self.qkv.value.size()[0];
        let mut d_projection =
            n_th.f_new_empty([n_th.size()[0], width], (self.kind, Device::Cpu))?;
        let projection = made.projection.as_ref().map(elements::<T>).transpose()?;
        let [dq, dk, dv] = &grads;
        let parts = [elements::<T>(dq)?, elements(dk)?, elements(dv)?];
        let d_norms = turn::backward(&turn, projection, parts, elements_mut(&mut d_projection)?)?;
        for (norm, grad) in self.norms.iter().flatten().zip(d_norms) {
            norm.accumulate(&Tensor::f_from_slice(&grad)?)?;
        }
        drop((grads, made));

        self.qkv.accumulate_product(&d_projection, n_th)?;
        if let Some(bias) = &self.bias {
            let rows = [0i64].as_slice();
            bias.accumulate(&d_projection.f_sum_dim_intlist(rows, false, Kind::Float)?)?;
        }
        Ok(d_projection.f_mm(&self.qkv.value)?)
    }

    fn attend_backward<T: Element>(
        &self,
        made: &Attended,
        d_context: &Tensor,
        heads: Heads,
    ) -> Result<[Tensor; 3]> {
        let [q, k, v] = &made.qkv;
        let [mut dq, mut dk, mut dv] = [q.f_empty_like()?, k.f_empty_like()?, v.f_empty_like()?];
        let tape = AttentionTape {
            heads,
            q: elements::<T>(q)?,
            k: elements(k)?,
            v: elements(v)?,
            out: elements(&made.context)?,
            log_sums: elements(&made.log_sums)?,
            d_out: elements(d_context)?,
        };
        let grads = [elements_mut(&mut dq)?, elements_mut(&mut dk)?, elements_mut(&mut dv)?];
        attention_backward(tape, grads)?;
        Ok([dq, dk, dv])
    }

    fn turn<'a>(&'a self, angles: &'a Angles) -> Result<Turn<'a>> {
        let norms = match &self.norms {
            Some([of_q, of_k]) => Some([elements(&of_q.value)?, elements(&of_k.value)?]),
            None => None,
        };
        Ok(Turn {
            query_heads: self.heads as usize,
            kv_heads: self.kv_heads as usize,
            dim: self.head_dim as usize,
            norms,
            eps: self.eps,
            clip: self.clip,
            angles: angles.all(),
        })
    }

    fn shape(&self, n_th: &Tensor, angles: &Angles) -> Result<Heads> {
        let (rows, tokens) = (n_th.size2()?.0 as usize, angles.rows());
        if tokens == 0 || !rows.is_multiple_of(tokens) {
            return Err(Error::bug("rows of an attention are no whole sequences"));
        }
        Ok(Heads {
            sequences: rows / tokens,
            tokens,
            query_heads: self.heads as usize,
            kv_heads: self.kv_heads as usize,
            dim: self.head_dim as usize,
        })
    }
}
