//! Encoded matrices: borrowed views, and one that owns its bytes.

use super::aligned::AlignedBytes;
use super::encoding::Encoding;
use crate::base::{Error, Result};

/// W [M, K] (M = `rows` out features, K = `cols` in features) over borrowed bytes. Any alignment
/// works; rows that begin on 64 bytes are read fastest.
#[derive(Debug, Clone, Copy)]
pub struct Matrix<'a> {
    pub encoding: Encoding,
    pub rows: usize,
    pub cols: usize,
    /// The bytes are [K, M] (F32, F16 and BF16 only).
    pub transposed: bool,
    pub data: &'a [u8],
    /// What the encoding keeps apart (see [`Encoding`]), else empty.
    pub scales: &'a [u8],
}

impl<'a> Matrix<'a> {
    /// A matrix whose encoding keeps no scales apart.
    ///
    /// # Errors
    /// As [`Matrix::check`].
    pub fn new(encoding: Encoding, rows: usize, cols: usize, data: &'a [u8]) -> Result<Self> {
        Self::with_scales(encoding, rows, cols, data, &[])
    }

    /// A matrix with its scales.
    ///
    /// # Errors
    /// As [`Matrix::check`].
    pub fn with_scales(
        encoding: Encoding,
        rows: usize,
        cols: usize,
        data: &'a [u8],
        scales: &'a [u8],
    ) -> Result<Self> {
        let matrix = Self { encoding, rows, cols, transposed: false, data, scales };
        matrix.check()?;
        Ok(matrix)
    }

    /// A matrix [rows, cols] whose bytes are [cols, rows].
    ///
    /// # Errors
    /// As [`Matrix::check`].
    pub fn transposed(
        encoding: Encoding,
        rows: usize,
        cols: usize,
        data: &'a [u8],
    ) -> Result<Self> {
        let matrix = Self { encoding, rows, cols, transposed: true, data, scales: &[] };
        matrix.check()?;
        Ok(matrix)
    }

    /// Whether the bytes fit the shape. Every kernel asks it, so that no lying view is read.
    ///
    /// # Errors
    /// [`crate::base::ErrorKind::Input`] when they do not.
    pub fn check(&self) -> Result<()> {
        let data = self.encoding.data_bytes(self.rows, self.cols)?;
        let scales = self.encoding.scale_bytes(self.rows, self.cols);
        if self.transposed && !self.encoding.is_float() {
            let text = "only f32, f16 and bf16 matrices may lie transposed";
            return Err(Error::input(text).with("encoding", self.encoding.name()));
        }
        if self.data.len() == data && self.scales.len() == scales {
            return Ok(());
        }
        Err(Error::input("a matrix's bytes do not fit its shape")
            .with("encoding", self.encoding.name())
            .with("rows", self.rows)
            .with("cols", self.cols)
            .with("data", format!("{} instead of {data}", self.data.len()))
            .with("scales", format!("{} instead of {scales}", self.scales.len())))
    }

    /// The bytes of row `row` (not transposed, checked).
    #[inline(always)]
    pub(super) fn row(&self, row: usize) -> &'a [u8] {
        let bytes = self.data.len() / self.rows.max(1);
        &self.data[row * bytes..(row + 1) * bytes]
    }
}

/// A vector of `len` numbers in a float encoding: a bias as it lies in its file.
#[derive(Debug, Clone, Copy)]
pub struct Vector<'a> {
    pub encoding: Encoding,
    pub data: &'a [u8],
}

impl Vector<'_> {
    /// The number of elements.
    ///
    /// # Errors
    /// [`crate::base::ErrorKind::Input`] when the encoding is not a float or bytes are left over.
    pub fn len(&self) -> Result<usize> {
        match self.encoding.float_bytes() {
            Some(bytes) if self.data.len().is_multiple_of(bytes) => Ok(self.data.len() / bytes),
            _ => Err(Error::input("a bias is not a whole number of f32, f16 or bf16 elements")
                .with("encoding", self.encoding.name())
                .with("bytes", self.data.len())),
        }
    }

    /// Whether it has no elements.
    pub fn is_empty(&self) -> bool {
        self.data.is_empty()
    }
}

/// A matrix that owns its bytes, aligned: dense weights, which stay resident.
#[derive(Debug)]
pub struct OwnedMatrix {
    pub encoding: Encoding,
    pub rows: usize,
    pub cols: usize,
    pub transposed: bool,
    pub data: AlignedBytes,
    pub scales: AlignedBytes,
}

impl OwnedMatrix {
    /// Copies the bytes of a view.
    pub fn copy_of(matrix: &Matrix<'_>) -> Self {
        Self {
            encoding: matrix.encoding,
            rows: matrix.rows,
            cols: matrix.cols,
            transposed: matrix.transposed,
            data: AlignedBytes::copy_of(matrix.data),
            scales: AlignedBytes::copy_of(matrix.scales),
        }
    }

    /// A matrix [rows, cols] of f32.
    ///
    /// # Errors
    /// As [`Matrix::check`].
    pub fn from_f32(rows: usize, cols: usize, values: &[f32]) -> Result<Self> {
        let data = crate::model::kernels::view::bytes_of(values);
        Ok(Self::copy_of(&Matrix::new(Encoding::F32, rows, cols, data)?))
    }

    /// The matrix as the kernels take it.
    pub fn view(&self) -> Matrix<'_> {
        Matrix {
            encoding: self.encoding,
            rows: self.rows,
            cols: self.cols,
            transposed: self.transposed,
            data: &self.data,
            scales: &self.scales,
        }
    }

    /// The bytes that it keeps in memory.
    pub fn bytes(&self) -> u64 {
        (self.data.len() + self.scales.len()) as u64
    }
}
