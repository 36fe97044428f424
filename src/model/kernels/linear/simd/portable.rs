//! The operations as plain loops: for processors without vectors, and as the meaning of the rest.

use super::{Bytes, Floats};
use crate::model::kernels::float::from_bf16;
use crate::model::kernels::linear::decode::{E2M1_TWICE, from_e4m3, half_e8m0};

/// No instruction set in particular.
#[derive(Debug, Clone, Copy)]
pub struct Portable;

/// The pairwise order in which AVX2 adds its lanes.
fn tree(v: [f32; 8]) -> f32 {
    let four = [v[0] + v[4], v[1] + v[5], v[2] + v[6], v[3] + v[7]];
    (four[0] + four[2]) + (four[1] + four[3])
}

fn zip(a: [f32; 8], b: [f32; 8], f: impl Fn(f32, f32) -> f32) -> [f32; 8] {
    std::array::from_fn(|i| f(a[i], b[i]))
}

/// N elements of T at `p`.
///
/// # Safety
/// They are there.
unsafe fn read<T, const N: usize>(p: *const u8) -> [T; N] {
    // SAFETY: the caller's.
    unsafe { p.cast::<[T; N]>().read_unaligned() }
}

fn half_of(bits: u16) -> f32 {
    half::f16::from_bits(bits).to_f32()
}

/// acc + four neighbours' products, each taken as `w` says.
fn dot(acc: [u8; 32], w: [u8; 32], x: [u8; 32], signed: bool) -> [u8; 32] {
    let mut lanes = ints(acc);
    for (i, (w, x)) in w.into_iter().zip(x).enumerate() {
        let w = if signed { i32::from(w.cast_signed()) } else { i32::from(w) };
        lanes[i / 4] += w * i32::from(x.cast_signed());
    }
    from_ints(lanes)
}

fn ints(v: [u8; 32]) -> [i32; 8] {
    std::array::from_fn(|i| i32::from_le_bytes(std::array::from_fn(|j| v[i * 4 + j])))
}

fn from_ints(v: [i32; 8]) -> [u8; 32] {
    std::array::from_fn(|i| v[i / 4].to_le_bytes()[i % 4])
}

fn shorts(v: [u8; 32]) -> [i16; 16] {
    std::array::from_fn(|i| i16::from_le_bytes([v[2 * i], v[2 * i + 1]]))
}

fn from_shorts(v: [i16; 16]) -> [u8; 32] {
    std::array::from_fn(|i| v[i / 2].to_le_bytes()[i % 2])
}

impl Floats for Portable {
    type V = [f32; 8];
    const LANES: usize = 8;

    unsafe fn zero() -> [f32; 8] {
        [0.0; 8]
    }
    unsafe fn splat(x: f32) -> [f32; 8] {
        [x; 8]
    }
    unsafe fn load(p: *const f32) -> [f32; 8] {
        // SAFETY: the caller's.
        unsafe { read(p.cast()) }
    }
    unsafe fn store(p: *mut f32, v: [f32; 8]) {
        // SAFETY: the caller's.
        unsafe { p.cast::<[f32; 8]>().write_unaligned(v) }
    }
    unsafe fn f16(p: *const u8) -> [f32; 8] {
        // SAFETY: the caller's.
        unsafe { read::<u16, 8>(p) }.map(half_of)
    }
    unsafe fn bf16(p: *const u8) -> [f32; 8] {
        // SAFETY: the caller's.
        unsafe { read::<u16, 8>(p) }.map(from_bf16)
    }
    unsafe fn e4m3(p: *const u8) -> [f32; 8] {
        // SAFETY: the caller's.
        unsafe { read::<u8, 8>(p) }.map(from_e4m3)
    }
    unsafe fn mul(a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        zip(a, b, |a, b| a * b)
    }
    unsafe fn fma(a: [f32; 8], b: [f32; 8], c: [f32; 8]) -> [f32; 8] {
        std::array::from_fn(|i| a[i] * b[i] + c[i])
    }
    unsafe fn sum(v: [f32; 8]) -> f32 {
        tree(v)
    }
    unsafe fn prefetch(_: *const u8) {}
}

impl Bytes for Portable {
    type I = [u8; 32];
    type F = [f32; 8];

    unsafe fn zero_i() -> [u8; 32] {
        [0; 32]
    }
    unsafe fn load_i(p: *const u8) -> [u8; 32] {
        // SAFETY: the caller's.
        unsafe { read(p) }
    }
    unsafe fn nibbles(p: *const u8) -> [[u8; 32]; 2] {
        // SAFETY: the caller's.
        let v: [u8; 32] = unsafe { read(p) };
        [v.map(|b| b & 15), v.map(|b| b >> 4)]
    }
    unsafe fn turn(rows: [[u8; 32]; 8]) -> [[u8; 32]; 8] {
        let lanes = rows.map(ints);
        std::array::from_fn(|i| from_ints(lanes.map(|row| row[i])))
    }
    unsafe fn nibbles_turned<const STRIDE: usize>(p: *const u8) -> [[u8; 32]; 8] {
        let block = |i: usize| {
            // SAFETY: the caller's.
            let v: [u8; 16] = unsafe { read(p.add(i * STRIDE)) };
            std::array::from_fn(|i| if i < 16 { v[i] & 15 } else { v[i - 16] >> 4 })
        };
        // SAFETY: as every operation's.
        unsafe { Self::turn(std::array::from_fn(block)) }
    }
    unsafe fn e2m1_turned(p: *const u8) -> [[u8; 32]; 8] {
        let block = |i: usize| {
            // SAFETY: the caller's.
            let v: [u8; 16] = unsafe { read(p.add(i * 16)) };
            let nibble = |i: usize| (v[i / 2] >> (i % 2 * 4)) & 15;
            std::array::from_fn(|i| E2M1_TWICE[usize::from(nibble(i))].cast_unsigned())
        };
        // SAFETY: as every operation's.
        unsafe { Self::turn(std::array::from_fn(block)) }
    }
    unsafe fn six_bits(low: *const u8, high: *const u8, quarter: usize) -> [u8; 32] {
        // SAFETY: the caller's.
        let (low, high): ([u8; 64], [u8; 32]) = unsafe { (read(low), read(high)) };
        let from = quarter % 2 * 32;
        std::array::from_fn(|i| {
            let nibble = (low[from + i] >> (quarter / 2 * 4)) & 15;
            nibble | (((high[i] >> (quarter * 2)) & 3) << 4)
        })
    }
    unsafe fn dot_small(acc: [u8; 32], w: [u8; 32], x: [u8; 32]) -> [u8; 32] {
        dot(acc, w, x, false)
    }
    unsafe fn dot_nibbles(w: [[u8; 32]; 4], x: [[u8; 32]; 4]) -> [u8; 32] {
        (0..4).fold([0; 32], |acc, i| dot(acc, w[i], x[i], false))
    }
    unsafe fn dot_turned(w: &[[u8; 32]; 8], x: *const u8) -> [u8; 32] {
        // SAFETY: the caller's.
        let x = |i: usize| unsafe { read(x.add(32 * i)) };
        (0..8).fold([0; 32], |acc, i| dot(acc, w[i], x(i), false))
    }
    unsafe fn dot_turned_signed(w: &[[u8; 32]; 8], x: *const u8) -> [u8; 32] {
        // SAFETY: the caller's.
        let x = |i: usize| unsafe { read(x.add(32 * i)) };
        (0..8).fold([0; 32], |acc, i| dot(acc, w[i], x(i), true))
    }
    unsafe fn dot_signed(acc: [u8; 32], w: [u8; 32], x: [u8; 32]) -> [u8; 32] {
        dot(acc, w, x, true)
    }
    unsafe fn dot_scaled(acc: [u8; 32], w: [u8; 32], x: [u8; 32], scale: [u8; 32]) -> [u8; 32] {
        let (mut lanes, scale) = (ints(acc), shorts(scale));
        for (i, (w, x)) in w.into_iter().zip(x).enumerate() {
            lanes[i / 4] += i32::from(w) * i32::from(x.cast_signed()) * i32::from(scale[i / 2]);
        }
        from_ints(lanes)
    }
    unsafe fn spread(bytes: u64) -> [[u8; 32]; 8] {
        bytes.to_le_bytes().map(|b| from_shorts([i16::from(b); 16]))
    }
    unsafe fn twice(bytes: u64) -> [u8; 32] {
        let bytes = bytes.to_le_bytes();
        from_shorts(std::array::from_fn(|i| i16::from(bytes[i / 2])))
    }
    unsafe fn spread_pairs(p: *const u8) -> [[u8; 32]; 8] {
        // SAFETY: the caller's.
        let v: [i8; 16] = unsafe { read(p) };
        let lane = |vector: usize, i: usize| i16::from(v[2 * vector + i / 8]);
        std::array::from_fn(|vector| from_shorts(std::array::from_fn(|i| lane(vector, i))))
    }
    unsafe fn widen(p: *const u8) -> [u8; 32] {
        // SAFETY: the caller's.
        from_shorts(unsafe { read::<i8, 16>(p) }.map(i16::from))
    }
    unsafe fn madd16(acc: [u8; 32], a: [u8; 32], b: [u8; 32]) -> [u8; 32] {
        let (mut lanes, a, b) = (ints(acc), shorts(a), shorts(b));
        for i in 0..16 {
            lanes[i / 2] += i32::from(a[i]) * i32::from(b[i]);
        }
        from_ints(lanes)
    }
    unsafe fn to_f(i: [u8; 32]) -> [f32; 8] {
        ints(i).map(|i| i as f32)
    }
    unsafe fn zero_f() -> [f32; 8] {
        [0.0; 8]
    }
    unsafe fn splat_f(x: f32) -> [f32; 8] {
        [x; 8]
    }
    unsafe fn load_f(p: *const f32) -> [f32; 8] {
        // SAFETY: the caller's.
        unsafe { read(p.cast()) }
    }
    unsafe fn store_f(p: *mut f32, v: [f32; 8]) {
        // SAFETY: the caller's.
        unsafe { p.cast::<[f32; 8]>().write_unaligned(v) }
    }
    unsafe fn halves<const N: usize>(p: *const u8) -> [f32; 8] {
        // SAFETY: the caller's.
        let v: [u16; N] = unsafe { read(p) };
        std::array::from_fn(|i| if i < N { half_of(v[i]) } else { 0.0 })
    }
    unsafe fn halves_apart<const STRIDE: usize>(p: *const u8) -> [f32; 8] {
        std::array::from_fn(|i| {
            // SAFETY: the caller's.
            half_of(unsafe { p.add(i * STRIDE).cast::<u16>().read_unaligned() })
        })
    }
    unsafe fn half_e8m0(p: *const u8) -> [f32; 8] {
        // SAFETY: the caller's.
        unsafe { read::<u8, 8>(p) }.map(half_e8m0)
    }
    unsafe fn mul_f(a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        zip(a, b, |a, b| a * b)
    }
    unsafe fn add_f(a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        zip(a, b, |a, b| a + b)
    }
    unsafe fn fma_f(a: [f32; 8], b: [f32; 8], c: [f32; 8]) -> [f32; 8] {
        std::array::from_fn(|i| a[i] * b[i] + c[i])
    }
    unsafe fn sum_f(v: [f32; 8]) -> f32 {
        tree(v)
    }
    unsafe fn prefetch(_: *const u8) {}
}
