//! A matrix in another encoding, with the error that it brings.

use crate::base::{Error, Result};
use crate::model::kernels::linear::{Encoding, Matrix, Rounding, decode_row, encode_row};
use serde::{Deserialize, Serialize};

/// Sums over elements: what tells how far new weights are from the old ones.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Deviation {
    /// Σ (new − old)².
    pub error: f64,
    /// Σ old².
    pub norm: f64,
}

impl Deviation {
    pub fn add(&mut self, other: Self) {
        self.error += other.error;
        self.norm += other.norm;
    }

    /// √(Σ (new − old)² / Σ old²).
    pub fn relative_rms(&self) -> f64 {
        if self.norm > 0.0 { (self.error / self.norm).sqrt() } else { 0.0 }
    }
}

/// Writes `from` in the encoding `to`, `transposed` or not: bytes for bytes where it is so already.
///
/// # Errors
/// Input when a row cannot be encoded so, or holds what the encoding has no number for; Bug for a
/// matrix that would have to be transposed for it.
pub fn recode(
    from: &Matrix<'_>,
    to: Encoding,
    transposed: bool,
    data: &mut [u8],
    scales: &mut [u8],
) -> Result<Deviation> {
    Matrix { encoding: to, transposed, data, scales, ..*from }.check()?;
    if from.encoding == to && from.transposed == transposed {
        data.copy_from_slice(from.data);
        scales.copy_from_slice(from.scales);
        return Ok(Deviation::default());
    }
    if transposed {
        return Err(Error::bug("a matrix is recoded row by row, which a transposed one has not"));
    }
    let mut values = vec![0f32; from.cols];
    let (row_bytes, scale_bytes) = (to.row_bytes(from.cols)?, to.scale_bytes(1, from.cols));
    let mut sums = Rounding::default();
    for row in 0..from.rows {
        decode_row(from, row, &mut values)?;
        let data = &mut data[row * row_bytes..(row + 1) * row_bytes];
        let scales = &mut scales[row * scale_bytes..(row + 1) * scale_bytes];
        sums.add(&encode_row(to, &values, data, scales)?);
    }
    Ok(Deviation { error: sums.squared_error, norm: sums.squares })
}
