//! Where the dense weights come from: tensors by their Hugging Face names, as they are encoded.

use super::embedding::StoredRows;
use crate::base::{Error, Result};
use crate::model::config::ModelConfig;
use crate::model::family::{DenseTensor, Slot, dense_tensors};
use crate::model::hf::{Checkpoint, Dtype};
use crate::model::kernels::linear::{AlignedBytes, Encoding, OwnedMatrix, decode_row};
use std::collections::HashMap;

/// A checkpoint's tensors by name, whatever it is stored as.
pub trait Tensors {
    fn has(&self, name: &str) -> bool;

    /// How `name` is encoded; reads no data.
    ///
    /// # Errors
    /// Input, by name, for a tensor that is missing, has another shape, or is in no encoding
    /// that can be multiplied.
    fn encoding(&self, name: &str, shape: &[usize]) -> Result<Encoding>;

    /// The tensor as it is encoded: `shape` `[M,K]`, or `[M]` as a single row.
    ///
    /// # Errors
    /// As [`Tensors::encoding`]; Io if the disk fails.
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<OwnedMatrix>;

    /// The rows of a tensor that stays where it is stored; None where they cannot be read one by one.
    ///
    /// # Errors
    /// As [`Tensors::encoding`]; Io if the file cannot be opened.
    fn rows(&self, _name: &str, _shape: &[usize]) -> Result<Option<StoredRows>> {
        Ok(None)
    }
}

/// Rows and columns of a tensor: a vector is one row.
pub fn matrix_shape(shape: &[usize]) -> (usize, usize) {
    match shape {
        [] => (1, 1),
        [cols] => (1, *cols),
        [rows @ .., cols] => (rows.iter().product(), *cols),
    }
}

impl Tensors for Checkpoint {
    fn has(&self, name: &str) -> bool {
        self.contains(name)
    }

    fn encoding(&self, name: &str, shape: &[usize]) -> Result<Encoding> {
        self.expect(name, shape)?;
        let (path, info) = self.info(name)?;
        match info.dtype {
            Dtype::F32 => Ok(Encoding::F32),
            Dtype::F16 => Ok(Encoding::F16),
            Dtype::BF16 => Ok(Encoding::Bf16),
            other => Err(Error::input(format!("tensor of type {other:?} cannot be multiplied"))
                .with("tensor", name)
                .with("file", path.display())),
        }
    }

    fn tensor(&self, name: &str, shape: &[usize]) -> Result<OwnedMatrix> {
        let encoding = self.encoding(name, shape)?;
        let (rows, cols) = matrix_shape(shape);
        let mut data = AlignedBytes::zeroed(encoding.data_bytes(rows, cols)?);
        self.read_bytes(name, &mut data)?;
        let scales = AlignedBytes::zeroed(0);
        Ok(OwnedMatrix { encoding, rows, cols, transposed: false, data, scales })
    }
}

/// A model's dense tensors by what they are for.
pub(super) struct Weights<'a> {
    tensors: &'a dyn Tensors,
    by_slot: HashMap<(Option<usize>, Slot), DenseTensor>,
}

impl<'a> Weights<'a> {
    pub(super) fn new(config: &ModelConfig, tensors: &'a dyn Tensors) -> Self {
        let all = dense_tensors(config).into_iter();
        Self { tensors, by_slot: all.map(|t| ((t.layer, t.slot), t)).collect() }
    }

    /// A matrix as it is encoded; None where the model has no such tensor.
    pub(super) fn matrix(&self, layer: Option<usize>, slot: Slot) -> Result<Option<OwnedMatrix>> {
        let Some(tensor) = self.by_slot.get(&(layer, slot)) else { return Ok(None) };
        self.tensors.tensor(&tensor.name, &tensor.shape).map(Some)
    }

    /// The rows of a matrix that stays where it is stored, where that can be.
    pub(super) fn rows(&self, layer: Option<usize>, slot: Slot) -> Result<Option<StoredRows>> {
        let Some(tensor) = self.by_slot.get(&(layer, slot)) else { return Ok(None) };
        self.tensors.rows(&tensor.name, &tensor.shape)
    }

    /// A matrix that the model must have.
    pub(super) fn need(&self, layer: Option<usize>, slot: Slot) -> Result<OwnedMatrix> {
        self.matrix(layer, slot)?.ok_or_else(|| missing(slot))
    }

    /// All elements as f32; None where the model has no such tensor.
    pub(super) fn floats(&self, layer: Option<usize>, slot: Slot) -> Result<Option<Vec<f32>>> {
        let Some(matrix) = self.matrix(layer, slot)? else { return Ok(None) };
        decoded(&matrix).map(Some)
    }

    pub(super) fn need_floats(&self, layer: Option<usize>, slot: Slot) -> Result<Vec<f32>> {
        self.floats(layer, slot)?.ok_or_else(|| missing(slot))
    }

    /// A matrix that is computed with in f32 whatever its encoding.
    pub(super) fn exact(&self, layer: Option<usize>, slot: Slot) -> Result<Option<OwnedMatrix>> {
        let Some(matrix) = self.matrix(layer, slot)? else { return Ok(None) };
        if matrix.encoding == Encoding::F32 {
            return Ok(Some(matrix));
        }
        OwnedMatrix::from_f32(matrix.rows, matrix.cols, &decoded(&matrix)?).map(Some)
    }
}

fn missing(slot: Slot) -> Error {
    Error::bug(format!("the family's list of tensors lacks {slot:?}"))
}

/// All rows of a matrix as f32.
pub(super) fn decoded(matrix: &OwnedMatrix) -> Result<Vec<f32>> {
    let mut out = vec![0.0; matrix.rows * matrix.cols];
    for (row, out) in out.chunks_mut(matrix.cols.max(1)).enumerate() {
        decode_row(&matrix.view(), row, out)?;
    }
    Ok(out)
}
