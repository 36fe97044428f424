//! How weights of each encoding of floats become f32.

use crate::model::kernels::linear::simd::Floats;

/// How a weight becomes f32.
pub trait Codec {
    const BYTES: usize;
    const SCALED: bool = false;
    /// # Safety
    /// As [`Floats`].
    unsafe fn load<S: Floats>(p: *const u8, scale: S::V) -> S::V;
    /// Two vectors, one after the other.
    ///
    /// # Safety
    /// As [`Floats`].
    #[inline(always)]
    unsafe fn load_twice<S: Floats>(p: *const u8, scale: S::V) -> [S::V; 2] {
        // SAFETY: the caller's.
        unsafe { [0, S::LANES].map(|at| Self::load::<S>(p.add(at * Self::BYTES), scale)) }
    }
}

pub struct F32;
pub struct F16;
pub struct Bf16;
pub struct Fp8;

impl Codec for F32 {
    const BYTES: usize = 4;
    #[inline(always)]
    unsafe fn load<S: Floats>(p: *const u8, _: S::V) -> S::V {
        // SAFETY: the caller's.
        unsafe { S::load(p.cast()) }
    }
}

impl Codec for F16 {
    const BYTES: usize = 2;
    #[inline(always)]
    unsafe fn load<S: Floats>(p: *const u8, _: S::V) -> S::V {
        // SAFETY: the caller's.
        unsafe { S::f16(p) }
    }
}

impl Codec for Bf16 {
    const BYTES: usize = 2;
    #[inline(always)]
    unsafe fn load<S: Floats>(p: *const u8, _: S::V) -> S::V {
        // SAFETY: the caller's.
        unsafe { S::bf16(p) }
    }
}

impl Codec for Fp8 {
    const BYTES: usize = 1;
    const SCALED: bool = true;
    #[inline(always)]
    unsafe fn load<S: Floats>(p: *const u8, scale: S::V) -> S::V {
        // SAFETY: the caller's.
        unsafe { S::mul(S::e4m3(p), scale) }
    }
    #[inline(always)]
    unsafe fn load_twice<S: Floats>(p: *const u8, scale: S::V) -> [S::V; 2] {
        // SAFETY: the caller's.
        unsafe { S::e4m3_twice(p, scale) }
    }
}
