//! How the numbers of a weight matrix are written down: sizes and block layouts, no arithmetic.
//!
//! A row is encoded by itself, from left to right, so any range of rows is a range of bytes.
//! What GGUF calls a type, and what Hugging Face checkpoints hold, is taken byte for byte; `Int8`
//! and `Int4` are semoe's own.

use crate::base::{Error, Result};

/// Side of the square tiles that share an FP8 scale.
pub const FP8_TILE: usize = 128;
/// Elements of a block of Q8_0, Q4_0 and MXFP4, and the padding of an `Int8` row.
pub const BLOCK: usize = 32;
/// Elements of a super-block of Q4_K and Q6_K.
pub const SUPER: usize = 256;
/// Elements that 32 bytes of an `Int4` row hold: byte i has element i low and i + 32 high.
pub const INT4_CHUNK: usize = 64;

/// How a weight matrix [M, K] is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Encoding {
    F32,
    F16,
    Bf16,
    /// e4m3 (finite, one NaN) a byte; `scales`: f32 [⌈M/128⌉, ⌈K/128⌉], multiplied (DeepSeek's
    /// `weight_scale_inv`).
    Fp8,
    /// Two e2m1 a byte, the first low; `scales`: a biased exponent (e8m0) for 32 elements
    /// (gpt-oss's `_blocks` [M, K/32, 16] and `_scales` [M, K/32]).
    Mxfp4,
    /// GGUF: 34 bytes for 32 elements: f16 d, 32 × i8.
    Q8_0,
    /// GGUF: 18 bytes for 32 elements: f16 d, 16 bytes (element i low, i + 16 high), minus 8.
    Q4_0,
    /// GGUF: 144 bytes for 256 elements: f16 d and dmin, 8 × (6-bit scale and minimum), nibbles.
    Q4K,
    /// GGUF: 210 bytes for 256 elements: low nibbles, high pairs of bits, 16 × i8 scale, f16 d.
    Q6K,
    /// i8, each row padded with zeros to a multiple of 32; `scales`: f32 `[M]`.
    Int8,
    /// Nibbles q in chunks of 64, each row padded with zeros to whole chunks. `scales`, for each
    /// row: f16 scale [⌈K/group⌉], then f16 zero [⌈K/group⌉]; an element is scale · q + zero.
    Int4 {
        /// Elements that share a scale and a zero: 32, 64 or 128.
        group: u32,
    },
}

impl Encoding {
    /// Every one that a file may hold.
    pub const ALL: [Self; 13] = [
        Self::F32,
        Self::F16,
        Self::Bf16,
        Self::Fp8,
        Self::Mxfp4,
        Self::Q8_0,
        Self::Q4_0,
        Self::Q4K,
        Self::Q6K,
        Self::Int8,
        Self::Int4 { group: 32 },
        Self::Int4 { group: 64 },
        Self::Int4 { group: 128 },
    ];

    /// The name that people know it by.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Fp8 => "fp8_e4m3",
            Self::Mxfp4 => "mxfp4",
            Self::Q8_0 => "q8_0",
            Self::Q4_0 => "q4_0",
            Self::Q4K => "q4_k",
            Self::Q6K => "q6_k",
            Self::Int8 => "int8",
            Self::Int4 { group: 32 } => "int4_g32",
            Self::Int4 { group: 64 } => "int4_g64",
            Self::Int4 { .. } => "int4_g128",
        }
    }

    /// Whether elements are plain floats, each on its own: these alone may lie transposed.
    pub fn is_float(self) -> bool {
        self.float_bytes().is_some()
    }

    /// Bytes of one element of a plain float encoding.
    pub(super) fn float_bytes(self) -> Option<usize> {
        match self {
            Self::F32 => Some(4),
            Self::F16 | Self::Bf16 => Some(2),
            _ => None,
        }
    }

    /// A row's length must be a multiple of this.
    pub fn block(self) -> usize {
        match self {
            Self::Mxfp4 | Self::Q8_0 | Self::Q4_0 => BLOCK,
            Self::Q4K | Self::Q6K => SUPER,
            _ => 1,
        }
    }

    /// Bytes of `data` that a row of `cols` elements takes.
    ///
    /// # Errors
    /// [`crate::base::ErrorKind::Input`] when rows of this length cannot be encoded so.
    pub fn row_bytes(self, cols: usize) -> Result<usize> {
        if !cols.is_multiple_of(self.block()) {
            let text = "rows of this length have no such encoding: choose another one";
            return Err(Error::input(text)
                .with("encoding", self.name())
                .with("row", cols)
                .with("multiple_of", self.block()));
        }
        let bytes = match self {
            Self::F32 => cols.checked_mul(4),
            Self::F16 | Self::Bf16 => cols.checked_mul(2),
            Self::Fp8 => Some(cols),
            Self::Mxfp4 => Some(cols / 2),
            Self::Q8_0 => (cols / BLOCK).checked_mul(34),
            Self::Q4_0 => (cols / BLOCK).checked_mul(18),
            Self::Q4K => (cols / SUPER).checked_mul(144),
            Self::Q6K => (cols / SUPER).checked_mul(210),
            Self::Int8 => cols.checked_next_multiple_of(BLOCK),
            Self::Int4 { group } => {
                if !matches!(group, 32 | 64 | 128) {
                    let text = "int4 groups have 32, 64 or 128 elements";
                    return Err(Error::input(text).with("group", group));
                }
                cols.checked_next_multiple_of(INT4_CHUNK).map(|cols| cols / 2)
            }
        };
        bytes.ok_or_else(|| self.too_large(1, cols))
    }

    /// Bytes of `data` for a matrix [rows, cols].
    ///
    /// # Errors
    /// As [`Encoding::row_bytes`].
    pub fn data_bytes(self, rows: usize, cols: usize) -> Result<usize> {
        self.row_bytes(cols)?.checked_mul(rows).ok_or_else(|| self.too_large(rows, cols))
    }

    /// Bytes of `scales` for a matrix [rows, cols]; 0 where the encoding has none apart.
    pub fn scale_bytes(self, rows: usize, cols: usize) -> usize {
        match self {
            Self::Fp8 => rows.div_ceil(FP8_TILE) * cols.div_ceil(FP8_TILE) * 4,
            Self::Mxfp4 => rows * (cols / BLOCK),
            Self::Int8 => rows * 4,
            Self::Int4 { group } => rows * cols.div_ceil(group.max(1) as usize) * 4,
            _ => 0,
        }
    }

    fn too_large(self, rows: usize, cols: usize) -> Error {
        let text = "a matrix of this size has no address";
        Error::input(text).with("encoding", self.name()).with("rows", rows).with("cols", cols)
    }
}
