//! The expert in f32 vector arithmetic, for processors without matrix units, and attention of training
//! for all (`attention`): bf16 and f32 operands, sums in f32.
//!
//! One product serves all: rows in f32 as they lie, times a panel of P columns that was widened and
//! laid out [K, P] just before (`pack`), by tiles whose sums stay in registers (`tile`). A task
//! of an expert is a panel (or, for weight gradients, a strip of rows), so threads share nothing but
//! reading.
//!
//! ```text
//! forward    gate, up = x · Wᵀ      panels of W_gate, W_up, transposed   then act = silu(gate) · up
//!            o        = act · Wᵀ    panels of W_down, transposed
//! backward   dact     = g · W       panels of W_down as it lies          then SwiGLU'
//!            dx       = dgu · W     panels of W_gate_up as it lies
//!            dW       = (dgu, g)ᵀ · (x, w act)    straight into the slot, with its squares
//! ```
//!
//! Law 4: every element is one chain of multiply-adds in the order of K, so it depends on its own
//! row and column only: not on threads, not on blocking, not on which rows came with it (a
//! weight gradient sums rows in their order). Only the sums over a whole slot or row (squares,
//! router weights) have an order of their own, fixed by the shape.
//!
//! N rows, H hidden, F expert width, P columns of a panel.

mod attention;
mod backward;
mod floats;
mod forward;
mod pack;
mod simd;
mod tile;

pub use attention::{AttentionTape, Heads, attention, attention_backward};
pub use backward::{BackwardCall, backward};
pub use forward::{forward, gate_up};
pub use pack::Element;

use super::dispatch::{Isa, isa};
use crate::base::{Error, Result};
use simd::Simd;

/// Shapes of one call.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    pub rows: usize,
    pub hidden: usize,
    pub width: usize,
}

impl Shape {
    fn check(&self, parts: &[(usize, usize)]) -> Result<()> {
        if self.hidden > 0 && self.width > 0 && parts.iter().all(|(got, want)| got == want) {
            return Ok(());
        }
        let text = "slices of an expert do not fit its shape";
        Err(Error::bug(text).with("shape", format!("{self:?}")).with("sizes", format!("{parts:?}")))
    }
}

/// Indices that a thread must get, at least, for `adds` multiply-adds each: a region costs some
/// microseconds, so less work than that stays on the calling thread.
fn grain(adds: usize) -> usize {
    const LEAST: usize = 1 << 18;
    LEAST.div_ceil(adds.max(1))
}

/// Columns of a panel on this machine.
fn panel() -> usize {
    match isa() {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => simd::Avx512::PANEL,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => simd::Avx2::PANEL,
        _ => simd::Portable::PANEL,
    }
}

/// Defines `unsafe fn $name(job, range)`, perhaps generic over the element type: the body compiled
/// for each instruction set, and the best one of this machine called.
macro_rules! vectored {
    ($(#[$meta:meta])* fn $name:ident $(<$T:ident>)? ($job:ty) = $body:ident;) => {
        $(#[$meta])*
        unsafe fn $name $(<$T: $crate::model::kernels::vector::pack::Element>)? (
            job: &$job,
            range: std::ops::Range<usize>,
        ) {
            use $crate::model::kernels::vector::simd;
            #[cfg(target_arch = "x86_64")]
            {
                use $crate::model::kernels::dispatch::{Isa, isa};

                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma")]
                unsafe fn avx512 $(<$T: $crate::model::kernels::vector::pack::Element>)? (
                    job: &$job,
                    range: std::ops::Range<usize>,
                ) {
                    // SAFETY: by the caller's promise; the features are enabled here.
                    unsafe { $body::<simd::Avx512 $(, $T)?>(job, range) }
                }
                #[target_feature(enable = "avx2,fma")]
                unsafe fn avx2 $(<$T: $crate::model::kernels::vector::pack::Element>)? (
                    job: &$job,
                    range: std::ops::Range<usize>,
                ) {
                    // SAFETY: by the caller's promise; the features are enabled here.
                    unsafe { $body::<simd::Avx2 $(, $T)?>(job, range) }
                }
                match isa() {
                    // SAFETY: by the caller's promise; `isa` found the features.
                    Isa::Avx512 => return unsafe { avx512 $(::<$T>)? (job, range) },
                    // SAFETY: by the caller's promise; `isa` found the features.
                    Isa::Avx2 => return unsafe { avx2 $(::<$T>)? (job, range) },
                    Isa::Portable => {}
                }
            }
            // SAFETY: by the caller's promise; these need no features.
            unsafe { $body::<simd::Portable $(, $T)?>(job, range) }
        }
    };
}
use vectored;
