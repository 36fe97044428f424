//! The dense parameters: one flat f32 buffer each for master, m, v and gradient.
//!
//! Decayed parameters (two or more dimensions) come first, then the others, so that AdamW runs
//! over two ranges. Tensors are views into these buffers; where products are computed in bf16 they
//! read copies that [`DenseParams::refresh`] renews after an update.

use super::compute;
use super::config::{ModelConfig, Precision};
use super::family::{DenseTensor, Slot, dense_tensors};
use super::hf::{Checkpoint, Writer};
use super::init;
use super::kernels::reduce::accumulate;
use super::kernels::view::{elements, elements_mut};
use crate::base::{Error, Result};
use tch::{Device, Kind, Tensor};

/// Elements to which a parameter (or a group that one view spans) is aligned: 64 bytes in any
/// compute type, with room for the widest vector units.
const ALIGN: usize = 64;

/// Where a parameter lies in the flat buffers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParamSpec {
    /// Hugging Face name.
    pub name: String,
    pub slot: Slot,
    pub layer: Option<usize>,
    pub shape: Vec<usize>,
    /// Whether weight decay applies: two or more dimensions.
    pub decay: bool,
    /// First element.
    pub offset: usize,
    /// First element in the buffer of compute copies; none where the master itself is used.
    compute: Option<usize>,
}

impl ParamSpec {
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// A parameter as the model uses it.
#[derive(Debug)]
pub struct Param {
    /// What computation reads: in the compute type for matrix products, f32 for norms, router and
    /// embedding.
    pub value: Tensor,
    /// Its part of the flat gradient, f32.
    grad: Tensor,
}

impl Param {
    /// Adds a gradient of any float type to the flat f32 gradient.
    pub fn accumulate(&self, gradient: &Tensor) -> Result<()> {
        let _ = self.grad.shallow_clone().f_add_(gradient)?;
        Ok(())
    }

    /// Adds the gradient of this matrix `[O,I]`, d_outᵀ · input, where `d_out` `[T,O]` is the gradient
    /// of what it made of `input` `[T,I]`; both in its type.
    ///
    /// In f32 the product is added as it is made. In bf16 libtorch rounds it first: it has no
    /// product of bf16 that ends in f32.
    pub fn accumulate_product(&self, d_out: &Tensor, input: &Tensor) -> Result<()> {
        let mut grad = self.grad.shallow_clone();
        if d_out.f_kind()? == Kind::Float {
            let _ = grad.f_addmm_(&d_out.f_tr()?, input)?;
            return Ok(());
        }
        let product = d_out.f_tr()?.f_mm(input)?;
        accumulate(elements(&product)?, elements_mut(&mut grad)?, false)
    }

    /// The f32 gradient view, for kernels that add to it themselves.
    pub(in crate::model) fn grad(&self) -> &Tensor {
        &self.grad
    }
}

/// The flat buffers as slices, for an optimizer.
pub struct DenseBuffers<'a> {
    pub master: &'a mut [f32],
    pub m: &'a mut [f32],
    pub v: &'a mut [f32],
    pub grad: &'a mut [f32],
    /// Weight decay applies to elements before this one only.
    pub decayed: usize,
}

/// All dense parameters with their optimizer state.
#[derive(Debug)]
pub struct DenseParams {
    specs: Vec<ParamSpec>,
    decayed: usize,
    total: usize,
    master: Tensor,
    m: Tensor,
    v: Tensor,
    grad: Tensor,
    copies: Option<Tensor>,
}

struct Layout {
    specs: Vec<ParamSpec>,
    decayed: usize,
    total: usize,
    copies: usize,
}

fn layout(config: &ModelConfig, precision: Precision) -> Layout {
    let compute = compute::dense(precision);
    let (decayed, plain): (Vec<_>, Vec<_>) =
        dense_tensors(config).into_iter().partition(|tensor| tensor.shape.len() >= 2);
    let mut specs = Vec::with_capacity(decayed.len() + plain.len());
    let (mut offset, mut copies) = (0usize, 0usize);
    let mut decayed_end = 0;
    for (decay, tensors) in [(true, decayed), (false, plain)] {
        let mut group = None;
        for tensor in tensors {
            let key = tensor.slot.group().map(|slot| (slot, tensor.layer));
            if key.is_none() || key != group {
                offset = offset.next_multiple_of(ALIGN);
                copies = copies.next_multiple_of(ALIGN);
            }
            group = key;
            let elements = tensor.elements();
            let copied = compute == Precision::Bf16 && has_copy(config, &tensor);
            let DenseTensor { slot, layer, name, shape } = tensor;
            let compute = copied.then_some(copies);
            specs.push(ParamSpec { name, slot, layer, shape, decay, offset, compute });
            offset += elements;
            copies += if copied { elements } else { 0 };
        }
        offset = offset.next_multiple_of(ALIGN);
        if decay {
            decayed_end = offset;
        }
    }
    Layout { specs, decayed: decayed_end, total: offset, copies }
}

fn has_copy(config: &ModelConfig, tensor: &DenseTensor) -> bool {
    tensor.slot.in_compute_type() || (tensor.slot == Slot::Embed && config.tie_embeddings)
}

impl DenseParams {
    /// Zeroed parameters of `config`, for products in what [`compute::dense`] makes of `precision`.
    ///
    /// # Errors
    /// Torch if memory cannot be had.
    pub fn zeros(config: &ModelConfig, precision: Precision) -> Result<Self> {
        let Layout { specs, decayed, total, copies } = layout(config, precision);
        let flat = |n: usize, kind| Tensor::f_zeros([n as i64], (kind, Device::Cpu));
        let copies = match compute::dense(precision) {
            Precision::F32 => None,
            Precision::Bf16 => Some(flat(copies, Kind::BFloat16)?),
        };
        Ok(Self {
            specs,
            decayed,
            total,
            master: flat(total, Kind::Float)?,
            m: flat(total, Kind::Float)?,
            v: flat(total, Kind::Float)?,
            grad: flat(total, Kind::Float)?,
            copies,
        })
    }

    /// Freshly drawn parameters: each tensor depends on `seed` and its name only.
    pub fn init(config: &ModelConfig, precision: Precision, seed: u64) -> Result<Self> {
        let mut params = Self::zeros(config, precision)?;
        for index in 0..params.specs.len() {
            let spec = params.specs[index].clone();
            let out = &mut params.buffers().master[spec.offset..spec.offset + spec.elements()];
            init::dense(seed, config.init_std, &spec.name, spec.slot, out);
        }
        params.refresh()?;
        Ok(params)
    }

    /// Parameters of a checkpoint.
    ///
    /// # Errors
    /// Input for a missing or misshapen tensor, by name.
    pub fn load(
        config: &ModelConfig,
        precision: Precision,
        checkpoint: &Checkpoint,
    ) -> Result<Self> {
        let mut params = Self::zeros(config, precision)?;
        for index in 0..params.specs.len() {
            let spec = params.specs[index].clone();
            checkpoint.expect(&spec.name, &spec.shape)?;
            let out = &mut params.buffers().master[spec.offset..spec.offset + spec.elements()];
            checkpoint.read_f32(&spec.name, out)?;
        }
        params.refresh()?;
        Ok(params)
    }

    /// Writes every dense tensor.
    pub fn export(&mut self, writer: &mut Writer) -> Result<()> {
        for index in 0..self.specs.len() {
            let spec = self.specs[index].clone();
            let master = self.buffers().master;
            writer.write(&spec.name, &master[spec.offset..spec.offset + spec.elements()])?;
        }
        Ok(())
    }

    /// Bytes that the parameters of `config` hold: master, m, v, gradient and compute copies.
    pub fn bytes(config: &ModelConfig, precision: Precision) -> u64 {
        let layout = layout(config, precision);
        (layout.total * 16 + layout.copies * 2) as u64
    }

    /// Bytes of [`DenseParams::write_state`] for `config`.
    pub fn state_bytes_of(config: &ModelConfig) -> u64 {
        layout(config, Precision::F32).total as u64 * 12
    }

    pub fn specs(&self) -> &[ParamSpec] {
        &self.specs
    }

    /// Elements of a flat buffer, padding included.
    pub fn elements(&self) -> usize {
        self.total
    }

    /// Bytes of [`DenseParams::write_state`].
    pub fn state_bytes(&self) -> usize {
        self.total * 12
    }

    /// The flat buffers. Call [`DenseParams::refresh`] once masters have changed.
    pub fn buffers(&mut self) -> DenseBuffers<'_> {
        DenseBuffers {
            master: slice(&mut self.master),
            m: slice(&mut self.m),
            v: slice(&mut self.v),
            grad: slice(&mut self.grad),
            decayed: self.decayed,
        }
    }

    /// Renews the compute copies from the masters. Nothing to do where products read the masters.
    pub fn refresh(&mut self) -> Result<()> {
        let Some(copies) = &self.copies else { return Ok(()) };
        let mut i = 0;
        while i < self.specs.len() {
            let Some(to) = self.specs[i].compute else {
                i += 1;
                continue;
            };
            // Neighbours that are adjacent in both buffers go in one copy.
            let from = self.specs[i].offset;
            let mut len = self.specs[i].elements();
            i += 1;
            while i < self.specs.len()
                && self.specs[i].compute == Some(to + len)
                && self.specs[i].offset == from + len
            {
                len += self.specs[i].elements();
                i += 1;
            }
            let source = self.master.f_narrow(0, from as i64, len as i64)?;
            copies.f_narrow(0, to as i64, len as i64)?.f_copy_(&source)?;
        }
        Ok(())
    }

    /// Zeroes the gradient.
    pub fn zero_grad(&mut self) -> Result<()> {
        let _ = self.grad.f_zero_()?;
        Ok(())
    }

    /// Writes master, m and v, little-endian, for a snapshot.
    ///
    /// # Errors
    /// Bug if `out` is not [`DenseParams::state_bytes`] long.
    pub fn write_state(&mut self, out: &mut [u8]) -> Result<()> {
        self.check_state(out.len())?;
        let third = self.total * 4;
        let buffers = self.buffers();
        let parts = [&*buffers.master, &*buffers.m, &*buffers.v];
        for (out, part) in out.chunks_exact_mut(third).zip(parts) {
            for (bytes, value) in out.as_chunks_mut::<4>().0.iter_mut().zip(part) {
                *bytes = value.to_le_bytes();
            }
        }
        Ok(())
    }

    /// Reads what [`DenseParams::write_state`] wrote, and renews the compute copies.
    pub fn read_state(&mut self, state: &[u8]) -> Result<()> {
        self.check_state(state.len())?;
        let third = self.total * 4;
        let buffers = self.buffers();
        let parts = [buffers.master, buffers.m, buffers.v];
        for (state, part) in state.chunks_exact(third).zip(parts) {
            for (bytes, value) in state.as_chunks::<4>().0.iter().zip(part) {
                *value = f32::from_le_bytes(*bytes);
            }
        }
        self.refresh()
    }

    fn check_state(&self, bytes: usize) -> Result<()> {
        if bytes == self.state_bytes() {
            return Ok(());
        }
        Err(Error::bug(format!("dense state has {} bytes, not {bytes}", self.state_bytes())))
    }

    /// The parameter of a slot, or None where the model has none.
    pub(in crate::model) fn param(
        &self,
        layer: Option<usize>,
        slot: Slot,
    ) -> Result<Option<Param>> {
        self.span(layer, &[slot])
    }

    /// One parameter over adjacent slots, joined along the first dimension: [q; k; v] as one
    /// matrix. None where the model has none of them.
    pub(in crate::model) fn span(
        &self,
        layer: Option<usize>,
        slots: &[Slot],
    ) -> Result<Option<Param>> {
        let find = |slot| self.specs.iter().find(|s| s.layer == layer && s.slot == slot);
        let Some(first) = find(slots[0]) else { return Ok(None) };
        let (mut rows, mut elements) = (0, 0);
        for slot in slots {
            let spec = find(*slot).ok_or_else(|| Error::bug("a span of parameters has a gap"))?;
            if spec.offset != first.offset + elements {
                return Err(Error::bug("a span's parameters are not adjacent"));
            }
            rows += spec.shape[0];
            elements += spec.elements();
        }
        let mut shape: Vec<i64> = first.shape.iter().map(|dim| *dim as i64).collect();
        shape[0] = rows as i64;
        let view = |flat: &Tensor, offset: usize| -> Result<Tensor> {
            let part = flat.f_narrow(0, offset as i64, elements as i64)?;
            Ok(part.f_view(shape.as_slice())?)
        };
        let read = match (first.compute, &self.copies) {
            (Some(offset), Some(copies)) => view(copies, offset)?,
            _ => view(&self.master, first.offset)?,
        };
        Ok(Some(Param { value: read, grad: view(&self.grad, first.offset)? }))
    }
}

fn slice(tensor: &mut Tensor) -> &mut [f32] {
    let (pointer, len) = (tensor.data_ptr().cast::<f32>(), tensor.numel());
    // SAFETY: the tensor is a contiguous f32 buffer of `len` elements that it owns and never
    // resizes. `&mut` keeps the owner borrowed; the model's views of the same memory are used
    // only through the model that owns this struct, which is borrowed with it.
    unsafe { std::slice::from_raw_parts_mut(pointer, len) }
}
