//! The one product that all passes use, and the units of the processor that compute it.

use super::{TILE_BYTES, amx, pairs};
use std::sync::OnceLock;

/// What multiplies tiles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Tile registers (Intel AMX).
    Amx,
    /// Vectors of pairs (AVX-512 BF16).
    Pairs,
}

impl Unit {
    /// Whether this machine and kernel have it, and let this process use it.
    pub fn available(self) -> bool {
        static AVAILABLE: OnceLock<[bool; 2]> = OnceLock::new();
        let [amx, pairs] = *AVAILABLE.get_or_init(|| {
            let pairs = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512bf16");
            [pairs && amx::detected() && amx::permitted(), pairs]
        });
        match self {
            Self::Amx => amx,
            Self::Pairs => pairs,
        }
    }
}

/// Four f32 tiles, the result of one product: [[a0·b0, a0·b1], [a1·b0, a1·b1]].
#[repr(C, align(64))]
pub struct Block(pub [[[f32; 16]; 16]; 4]);

impl Block {
    pub fn new() -> Self {
        Self([[[0.0; 16]; 16]; 4])
    }
}

/// Where a tile's rows lie, and how far the next tile along the depth is.
#[derive(Clone, Copy)]
pub struct Operand {
    pub tiles: [*const u8; 2],
    /// Bytes from one row of a tile to the next.
    pub stride: usize,
    /// Bytes from one tile to the next along the depth.
    pub step: usize,
}

impl Operand {
    /// Two packed tiles.
    pub fn packed(first: *const u8, second: *const u8, step: usize) -> Self {
        Self { tiles: [first, second], stride: 64, step }
    }
}

/// How much of a product's operands counts; the rest is zero, and units may leave it out.
#[derive(Clone, Copy)]
pub struct Part {
    /// Rows of a, at most 32.
    pub rows: usize,
    /// Columns of b, at most 32.
    pub columns: usize,
    /// Along the depth.
    pub depth: usize,
}

/// A unit in use by this thread.
pub struct Multiplier(Option<amx::Registers>);

impl Multiplier {
    /// # Safety
    /// The unit is available.
    pub unsafe fn take(unit: Unit) -> Self {
        match unit {
            // SAFETY: by the caller's promise.
            Unit::Amx => Self(Some(unsafe { amx::Registers::take() })),
            Unit::Pairs => Self(None),
        }
    }

    /// out = [a0; a1] · [b0, b1]. `ahead`: what vectors of pairs fetch into the second-level cache
    /// meanwhile, 512 bytes from each per tile of depth (any address will do: prefetching never faults).
    ///
    /// # Safety
    /// The operands' tiles are readable over the depth of `part`, and zero beyond it.
    #[inline(always)]
    pub unsafe fn product(
        &self,
        a: Operand,
        b: Operand,
        part: Part,
        ahead: Option<[*const u8; 2]>,
        out: &mut Block,
    ) {
        debug_assert!(part.depth > 0 && part.rows <= 32 && part.columns <= 32);
        let depth = part.depth.div_ceil(32);
        // SAFETY: by the caller's promise, and the registers are taken where they are used.
        unsafe {
            match &self.0 {
                Some(registers) if part.columns > 16 => {
                    amx::wide(registers, depth, a, b, out);
                }
                Some(registers) => amx::narrow(registers, depth, a, b, false, out),
                None => pairs::product(a, b, part, ahead, out),
            }
        }
    }
}

const _: () = assert!(size_of::<Block>() == 4 * TILE_BYTES);
