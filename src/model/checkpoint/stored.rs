//! The type that a file gives a tensor, and which weight encoding that is.

use crate::base::{Error, Result};
use crate::model::hf::Dtype;
use crate::model::kernels::linear::Encoding;
use std::fmt;
use std::str::FromStr;

/// A tensor's type as its file says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    /// A type of safetensors: each element by itself.
    Plain(Dtype),
    /// Blocks of quantised elements: GGUF's, or those of an imported store.
    Blocks(Encoding),
}

/// All types of safetensors.
const PLAIN: [Dtype; 15] = [
    Dtype::BOOL,
    Dtype::U8,
    Dtype::I8,
    Dtype::F8_E5M2,
    Dtype::F8_E4M3,
    Dtype::I16,
    Dtype::U16,
    Dtype::F16,
    Dtype::BF16,
    Dtype::I32,
    Dtype::U32,
    Dtype::F32,
    Dtype::F64,
    Dtype::I64,
    Dtype::U64,
];

/// All types that a file may name.
fn all() -> impl Iterator<Item = Stored> {
    let blocks = Encoding::ALL.into_iter().filter(|encoding| !encoding.is_float());
    PLAIN.into_iter().map(Stored::Plain).chain(blocks.map(Stored::Blocks))
}

/// Suffix of the scales of DeepSeek's FP8 tensors.
const FP8_SCALES: &str = "_scale_inv";
/// Suffix of the scales of an imported store's tensors.
pub const OWN_SCALES: &str = ".scales";

impl Stored {
    /// The weight encoding, for types that hold weights.
    pub fn encoding(self) -> Option<Encoding> {
        match self {
            Self::Plain(Dtype::F32) => Some(Encoding::F32),
            Self::Plain(Dtype::F16) => Some(Encoding::F16),
            Self::Plain(Dtype::BF16) => Some(Encoding::Bf16),
            Self::Plain(Dtype::F8_E4M3) => Some(Encoding::Fp8),
            Self::Plain(_) => None,
            Self::Blocks(encoding) => Some(encoding),
        }
    }

    /// The type under which a file of semoe's own holds weights of `encoding`.
    pub fn of(encoding: Encoding) -> Self {
        match encoding {
            Encoding::F32 => Self::Plain(Dtype::F32),
            Encoding::F16 => Self::Plain(Dtype::F16),
            Encoding::Bf16 => Self::Plain(Dtype::BF16),
            Encoding::Fp8 => Self::Plain(Dtype::F8_E4M3),
            blocks => Self::Blocks(blocks),
        }
    }

    /// Whether it can hold the scales that are named with `suffix`.
    pub(super) fn is_scale(self, suffix: &str) -> bool {
        let wanted = if suffix == FP8_SCALES { Dtype::F32 } else { Dtype::U8 };
        self == Self::Plain(wanted)
    }
}

/// Suffix and shape of the tensor that holds the scales of a matrix [rows, cols], for encodings
/// that keep them in one. (gpt-oss's MXFP4 tensors are named by their family.)
pub fn scales_shape(
    encoding: Encoding,
    rows: usize,
    cols: usize,
) -> Option<(&'static str, Vec<usize>)> {
    match encoding {
        Encoding::Fp8 => Some((FP8_SCALES, vec![rows.div_ceil(128), cols.div_ceil(128)])),
        Encoding::Int8 | Encoding::Int4 { .. } => {
            Some((OWN_SCALES, vec![encoding.scale_bytes(rows, cols)]))
        }
        _ => None,
    }
}

impl fmt::Display for Stored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plain(dtype) => write!(f, "{dtype:?}"),
            Self::Blocks(encoding) => f.write_str(encoding.name()),
        }
    }
}

impl FromStr for Stored {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        all()
            .find(|stored| stored.to_string() == text)
            .ok_or_else(|| Error::corrupt(format!("\"{text}\" is no type of tensors")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_is_read_back_from_its_name() {
        for stored in all() {
            assert_eq!(stored.to_string().parse::<Stored>().unwrap(), stored);
        }
        assert!("F128".parse::<Stored>().is_err());
    }
}
