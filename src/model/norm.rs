//! RMSNorm as a layer of training: tensors in and out over the kernels of [`super::kernels::norm`].
//!
//! Legend: N rows, H elements of one.

use super::config::ModelConfig;
use super::kernels::float::Number;
use super::kernels::norm;
use super::kernels::view::{elements, elements_mut};
use super::params::Param;
use crate::base::Result;
use tch::{Device, Kind, Tensor};

/// One norm: its weight, and the type of its result.
#[derive(Debug)]
pub struct Norm {
    weight: Param,
    eps: f32,
    kind: Kind,
}

impl Norm {
    pub(in crate::model) fn new(config: &ModelConfig, weight: Param, kind: Kind) -> Self {
        Self { weight, eps: config.norm_eps as f32, kind }
    }

    /// Norm of the rows of `x`, f32 [.., H]: `[N, H]` in the norm's type.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self.kind {
            Kind::BFloat16 => self.forward_in::<u16>(x),
            _ => self.forward_in::<f32>(x),
        }
    }

    fn forward_in<T: Number>(&self, x: &Tensor) -> Result<Tensor> {
        let mut out = self.like(x, self.kind)?;
        norm::forward::<T>(elements(x)?, self.weight()?, self.eps, elements_mut(&mut out)?)?;
        Ok(out)
    }

    /// x + more, f32 `[N, H]`, and its norm: `x` f32 [.., H], `more` in the norm's type.
    pub fn add_forward(&self, x: &Tensor, more: &Tensor) -> Result<[Tensor; 2]> {
        match self.kind {
            Kind::BFloat16 => self.add_forward_in::<u16>(x, more),
            _ => self.add_forward_in::<f32>(x, more),
        }
    }

    fn add_forward_in<T: Number>(&self, x: &Tensor, more: &Tensor) -> Result<[Tensor; 2]> {
        let (mut sum, mut out) = (self.like(x, Kind::Float)?, self.like(x, self.kind)?);
        let outputs = (elements_mut(&mut sum)?, elements_mut(&mut out)?);
        let (x, more) = (elements(x)?, elements::<T>(more)?);
        norm::add_forward(x, more, self.weight()?, self.eps, outputs.0, outputs.1)?;
        Ok([sum, out])
    }

    /// Gradient of `x`, f32 `[N, H]`: from `dy` of the norm's result, f32 or bf16, and, where `x`
    /// goes past the norm too, from `residual`, f32. The weight's is added to the flat gradient.
    pub fn backward(&self, x: &Tensor, dy: &Tensor, residual: Option<&Tensor>) -> Result<Tensor> {
        match dy.f_kind()? {
            Kind::BFloat16 => self.backward_in::<u16>(x, dy, residual),
            _ => self.backward_in::<f32>(x, dy, residual),
        }
    }

    fn backward_in<T: Number>(
        &self,
        x: &Tensor,
        dy: &Tensor,
        residual: Option<&Tensor>,
    ) -> Result<Tensor> {
        let mut dx = self.like(x, Kind::Float)?;
        let residual = residual.map(elements::<f32>).transpose()?;
        let (values, dy) = (elements(x)?, elements::<T>(dy)?);
        let out = elements_mut(&mut dx)?;
        let d_weight = norm::backward(values, self.weight()?, self.eps, dy, residual, out)?;
        self.weight.accumulate(&Tensor::f_from_slice(&d_weight)?)?;
        Ok(dx)
    }

    fn weight(&self) -> Result<&[f32]> {
        elements(&self.weight.value)
    }

    fn like(&self, x: &Tensor, kind: Kind) -> Result<Tensor> {
        let h = self.weight.value.numel();
        let rows = x.numel() / h.max(1);
        Ok(Tensor::f_empty([rows as i64, h as i64], (kind, Device::Cpu))?)
    }
}
