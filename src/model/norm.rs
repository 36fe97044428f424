//! RMSNorm: x / rms(x) * w, computed in f32 and rounded once to the kind asked for
//! (Zhang and Sennrich 2019).

use crate::base::Result;
use tch::{Kind, Tensor};

/// Normalises the last dimension of `x` (f32 or bf16) with the f32 weight `w`, giving `kind`.
pub fn rms_norm(x: &Tensor, w: &Tensor, eps: f64, kind: Kind) -> Result<Tensor> {
    let x = x.f_to_kind(Kind::Float)?;
    let mean = x.f_square()?.f_mean_dim([-1i64].as_slice(), true, Kind::Float)?;
    let scale = mean.f_add_scalar(eps)?.f_rsqrt()?;
    Ok(x.f_mul(&scale)?.f_mul(w)?.f_to_kind(kind)?)
}
