//! Where every tensor of a checkpoint lies, by Hugging Face name, whatever the format.
//!
//! Law: a place is checked against its file before it gets in here, so reading one stays inside
//! the file, and its length is that of its shape.

use super::stored::{Stored, scales_shape};
use crate::base::{Error, Result};
use crate::model::kernels::linear::Encoding;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// A range of a file: what one read fetches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Index into [`super::Source::files`].
    pub file: usize,
    /// From the start of the file; any alignment.
    pub offset: u64,
    /// In bytes.
    pub len: u64,
}

/// The order in which a matrix's rows lie in its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowOrder {
    Plain,
    /// Rows of each of `heads` heads alternate between the head's first and second half (llama.cpp's
    /// converter does so to the queries and keys of llama models).
    Alternating {
        heads: usize,
    },
}

impl RowOrder {
    /// The row of the file that holds row `row` of the `rows` that the model knows.
    pub fn in_file(self, row: usize, rows: usize) -> usize {
        match self {
            Self::Plain => row,
            Self::Alternating { heads } => {
                let head_dim = (rows / heads.max(1)).max(1);
                let (head, within) = (row / head_dim, row % head_dim);
                let half = (head_dim / 2).max(1);
                head * head_dim + within % half * 2 + within / half
            }
        }
    }
}

/// One tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub piece: Piece,
    pub stored: Stored,
    /// As Hugging Face has it: the last dimension is the fastest.
    pub shape: Vec<u64>,
    pub rows: RowOrder,
}

/// All tensors.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Table {
    pub files: Vec<PathBuf>,
    pub tensors: BTreeMap<String, Place>,
}

/// A matrix [rows, cols] with its scales, found in a table and checked.
#[derive(Debug, Clone, Copy)]
pub(super) struct Found<'a> {
    pub encoding: Encoding,
    pub data: &'a Place,
    pub scales: Option<&'a Place>,
}

impl Table {
    pub fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// The place of `name`, which must have `shape`.
    ///
    /// # Errors
    /// Input, naming tensor and file: not there, or of another shape.
    pub fn place(&self, name: &str, shape: &[usize]) -> Result<&Place> {
        let place = self.tensors.get(name).ok_or_else(|| {
            let folder = self.files.first().and_then(|file| file.parent());
            let folder = folder.map_or_else(String::new, |folder| folder.display().to_string());
            Error::input("tensor is missing from the checkpoint")
                .with("tensor", name)
                .with("folder", folder)
        })?;
        let same = place.shape.len() == shape.len()
            && place.shape.iter().zip(shape).all(|(found, want)| *found == *want as u64);
        if same {
            return Ok(place);
        }
        let message = format!("tensor has shape {:?} where the model needs {shape:?}", place.shape);
        Err(self.named(Error::input(message), name, place))
    }

    /// The matrix `name` of `shape`, whose last dimension is a row's, in whatever encoding it has.
    ///
    /// # Errors
    /// Input, naming tensor and file: as [`Table::place`], a type that is no weights', scales that
    /// are missing or do not fit.
    pub(super) fn weight(&self, name: &str, shape: &[usize]) -> Result<Found<'_>> {
        let data = self.place(name, shape)?;
        let cols = shape.last().copied().unwrap_or(1);
        let rows = shape.iter().rev().skip(1).product();
        let bad = |message: String| self.named(Error::input(message), name, data);
        let encoding = data.stored.encoding().ok_or_else(|| {
            bad(format!(
                "tensor of type {} holds no weights; known are F32, F16, BF16, F8_E4M3 with scales, \
                 and the types of GGUF and of an imported store",
                data.stored
            ))
        })?;
        let expected = encoding.data_bytes(rows, cols).map_err(|e| self.named(e, name, data))?;
        if expected as u64 != data.piece.len {
            return Err(bad(format!(
                "tensor has {} bytes where {expected} are needed",
                data.piece.len
            )));
        }
        let scales = match scales_shape(encoding, rows, cols) {
            None => None,
            Some((suffix, shape)) => Some(self.scales(name, suffix, &shape)?),
        };
        Ok(Found { encoding, data, scales })
    }

    fn scales(&self, name: &str, suffix: &str, shape: &[usize]) -> Result<&Place> {
        let scales = format!("{name}{suffix}");
        let place = self.place(&scales, shape)?;
        if place.stored.is_scale(suffix) {
            return Ok(place);
        }
        let message = format!("scales of type {} are not supported", place.stored);
        Err(self.named(Error::input(message), &scales, place))
    }

    /// `error` with the tensor and its file.
    pub(super) fn named(&self, error: Error, name: &str, place: &Place) -> Error {
        let file = self.files.get(place.piece.file);
        let file = file.map_or_else(String::new, |file| file.display().to_string());
        error.with("tensor", name).with("file", file)
    }
}
