//! The few vector operations that the kernels are written in, for each instruction set.
//!
//! Kernels are generic over [`Floats`] and [`Bytes`], are inlined whole into one entry per
//! instruction set, and hold no intrinsics of their own. What a kernel computes may depend on the
//! instruction set (fused or not, eight lanes or sixteen); it depends on nothing else.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
pub mod e4m3;
#[cfg(target_arch = "x86_64")]
pub mod pairs;
mod portable;
#[cfg(target_arch = "x86_64")]
pub mod sets;
#[cfg(test)]
mod tests;

#[cfg(target_arch = "x86_64")]
pub use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub use avx512::Avx512;
pub use portable::Portable;

#[cfg(target_arch = "x86_64")]
use crate::model::kernels::tiles::Unit;
use std::sync::OnceLock;

/// Lanes of f32. Every method is unsafe for one reason: the processor must have the instruction
/// set; those that take pointers read or write `LANES` elements there, at any alignment.
pub trait Floats: Copy + 'static {
    type V: Copy;
    const LANES: usize;
    unsafe fn zero() -> Self::V;
    unsafe fn splat(x: f32) -> Self::V;
    unsafe fn load(p: *const f32) -> Self::V;
    unsafe fn store(p: *mut f32, v: Self::V);
    unsafe fn f16(p: *const u8) -> Self::V;
    unsafe fn bf16(p: *const u8) -> Self::V;
    unsafe fn e4m3(p: *const u8) -> Self::V;
    /// Two vectors of e4m3 times `scale`, one after the other.
    unsafe fn e4m3_twice(p: *const u8, scale: Self::V) -> [Self::V; 2] {
        // SAFETY: the caller's.
        unsafe { [0, Self::LANES].map(|at| Self::mul(Self::e4m3(p.add(at)), scale)) }
    }
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    /// a b + c.
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    unsafe fn sum(v: Self::V) -> f32;
    /// Asks for the line at `p`, which need not exist.
    unsafe fn prefetch(p: *const u8);
}

/// 32 bytes, as integers of 8, 16 or 32 bits, and eight f32 beside them. Unsafe as in [`Floats`].
pub trait Bytes: Copy + 'static {
    type I: Copy;
    type F: Copy;
    unsafe fn zero_i() -> Self::I;
    unsafe fn load_i(p: *const u8) -> Self::I;
    /// 32 bytes to 64 nibbles: the low ones, the high ones.
    unsafe fn nibbles(p: *const u8) -> [Self::I; 2];
    /// Eight rows of eight 32-bit lanes as columns: vector i has lane i of each.
    unsafe fn turn(rows: [Self::I; 8]) -> [Self::I; 8];
    /// Eight blocks of 16 bytes, `STRIDE` bytes apart, as 32 nibbles each, the low ones before the high
    /// ones; turned.
    unsafe fn nibbles_turned<const STRIDE: usize>(p: *const u8) -> [Self::I; 8];
    /// Eight blocks of 16 bytes as 32 numbers in e2m1 each (low nibble first), twice their value; turned.
    unsafe fn e2m1_turned(p: *const u8) -> [Self::I; 8];
    /// Quarter `quarter` of 128 numbers of 6 bits: Q6_K's 64 bytes of low nibbles, 32 of high pairs.
    unsafe fn six_bits(low: *const u8, high: *const u8, quarter: usize) -> Self::I;
    /// acc + Σ of four neighbours' w x in each 32-bit lane; w unsigned below 64, x signed.
    unsafe fn dot_small(acc: Self::I, w: Self::I, x: Self::I) -> Self::I;
    /// Σ over four pairs of vectors as [`Bytes::dot_small`], w below 16.
    unsafe fn dot_nibbles(w: [Self::I; 4], x: [Self::I; 4]) -> Self::I;
    /// As [`Bytes::dot_nibbles`], over eight pairs of vectors, x at `x`.
    unsafe fn dot_turned(w: &[Self::I; 8], x: *const u8) -> Self::I;
    /// As [`Bytes::dot_turned`] for signed w between -15 and 15, x not below -127.
    unsafe fn dot_turned_signed(w: &[Self::I; 8], x: *const u8) -> Self::I;
    /// As [`Bytes::dot_small`] for signed w, x not below -127.
    unsafe fn dot_signed(acc: Self::I, w: Self::I, x: Self::I) -> Self::I;
    /// acc + scale · w x: sums of two neighbours times the 16-bit lanes of `scale`, pairwise added.
    unsafe fn dot_scaled(acc: Self::I, w: Self::I, x: Self::I, scale: Self::I) -> Self::I;
    /// Eight bytes as 16-bit lanes, each in all lanes of a vector of its own.
    unsafe fn spread(bytes: u64) -> [Self::I; 8];
    /// Eight bytes as 16-bit lanes, each in two neighbours.
    unsafe fn twice(bytes: u64) -> Self::I;
    /// 16 signed bytes: vector i has byte 2i in its first eight 16-bit lanes, 2i + 1 in its last.
    unsafe fn spread_pairs(p: *const u8) -> [Self::I; 8];
    /// 16 signed bytes as 16-bit lanes.
    unsafe fn widen(p: *const u8) -> Self::I;
    /// acc + Σ of two neighbours' products of 16-bit lanes.
    unsafe fn madd16(acc: Self::I, a: Self::I, b: Self::I) -> Self::I;
    /// 32-bit lanes as f32.
    unsafe fn to_f(i: Self::I) -> Self::F;
    unsafe fn zero_f() -> Self::F;
    unsafe fn splat_f(x: f32) -> Self::F;
    unsafe fn load_f(p: *const f32) -> Self::F;
    unsafe fn store_f(p: *mut f32, v: Self::F);
    /// The first N (2, 4 or 8) halves at `p`; zeros above.
    unsafe fn halves<const N: usize>(p: *const u8) -> Self::F;
    /// Eight halves, `STRIDE` bytes apart.
    unsafe fn halves_apart<const STRIDE: usize>(p: *const u8) -> Self::F;
    /// Half of 2^(e - 127) for eight bytes e.
    unsafe fn half_e8m0(p: *const u8) -> Self::F;
    unsafe fn mul_f(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn add_f(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn fma_f(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    unsafe fn sum_f(v: Self::F) -> f32;
    unsafe fn prefetch(p: *const u8);
}

/// The instruction set that the kernels use, each with all that the ones before it have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    Portable,
    /// AVX2, FMA, F16C.
    Avx2,
    /// AVX-512 (F, BW, DQ, VL) without VNNI.
    Avx512,
    /// AVX-512 with VNNI: integers are multiplied by the kernels of [`super::sets`].
    Avx512Vnni,
    /// And with products of bf16 pairs: activations are rounded to bf16 for bf16 and FP8 weights.
    Avx512Bf16,
    /// And with tiles of them (AMX).
    Amx,
}

impl Level {
    /// What processors call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2 => "AVX2",
            Self::Avx512 => "AVX-512",
            Self::Avx512Vnni => "AVX-512 VNNI",
            Self::Avx512Bf16 => "AVX-512 VNNI, BF16",
            Self::Amx => "AVX-512 VNNI, AMX",
        }
    }
}

/// The best that this machine offers, decided once.
pub fn level() -> Level {
    static LEVEL: OnceLock<Level> = OnceLock::new();
    *LEVEL.get_or_init(detect)
}

#[cfg(target_arch = "x86_64")]
fn detect() -> Level {
    let avx2 = is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("f16c");
    let avx512 = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl");
    let vnni = is_x86_feature_detected!("avx512vnni");
    let bf16 = is_x86_feature_detected!("avx512bf16");
    match (avx2, avx512, vnni, bf16) {
        (true, true, true, true) if Unit::Amx.available() => Level::Amx,
        (true, true, true, true) => Level::Avx512Bf16,
        (true, true, true, false) => Level::Avx512Vnni,
        (true, true, false, _) => Level::Avx512,
        (true, false, ..) => Level::Avx2,
        (false, ..) => Level::Portable,
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn detect() -> Level {
    Level::Portable
}

/// Defines `unsafe fn $name(level, args)` that runs `$body::<S, $codec>` (or `$body::<S>`) compiled for the
/// instruction set that `level` names, where S is its implementation of `$set`.
macro_rules! for_level {
    (@wide Floats) => { $crate::model::kernels::linear::simd::Avx512 };
    (@wide Bytes) => { $crate::model::kernels::linear::simd::Avx2 };
    ($(unsafe fn $name:ident($arg:ident: $ty:ty) = $set:ident $body:ident$(<$codec:ty>)?;)*) => {$(
        unsafe fn $name(level: $crate::model::kernels::linear::simd::Level, $arg: $ty) {
            use $crate::model::kernels::linear::simd::Level;
            #[cfg(target_arch = "x86_64")]
            {
                use $crate::model::kernels::linear::simd::{Avx2, for_level};

                #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
                fn wide($arg: $ty) {
                    // SAFETY: the features are on; the rest is the caller's.
                    unsafe { $body::<for_level!(@wide $set) $(, $codec)?>($arg) }
                }
                #[target_feature(enable = "avx2,fma,f16c")]
                fn avx2($arg: $ty) {
                    // SAFETY: as above.
                    unsafe { $body::<Avx2 $(, $codec)?>($arg) }
                }
                match level {
                    Level::Avx512 | Level::Avx512Vnni | Level::Avx512Bf16 | Level::Amx => {
                        // SAFETY: the level says that the processor has the features.
                        return unsafe { wide($arg) };
                    }
                    // SAFETY: as above.
                    Level::Avx2 => return unsafe { avx2($arg) },
                    Level::Portable => {}
                }
            }
            // SAFETY: every processor has the portable operations; the rest is the caller's.
            unsafe { $body::<$crate::model::kernels::linear::simd::Portable $(, $codec)?>($arg) }
        }
    )*};
}
pub(in crate::model::kernels) use for_level;
