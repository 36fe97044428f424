//! The embedding: in memory, or in its file, of which a token takes a row.

use super::tensors::Weights;
use crate::base::behind::{read_piece, without_read_ahead};
use crate::base::{Error, Result};
use crate::model::config::ModelConfig;
use crate::model::family::Slot;
use crate::model::kernels::linear::{Encoding, Matrix, OwnedMatrix, decode_row};
use std::fs::File;
use std::path::{Path, PathBuf};

/// Rows of a matrix that stays in its file.
#[derive(Debug)]
pub struct StoredRows {
    file: File,
    path: PathBuf,
    offset: u64,
    encoding: Encoding,
    cols: usize,
    row_bytes: u64,
}

impl StoredRows {
    /// Rows of `cols` elements, the first at `offset` of `path`; None for an encoding that has scales apart.
    ///
    /// # Errors
    /// Io if the file cannot be opened; Input for rows that have no such encoding.
    pub fn open(path: &Path, offset: u64, encoding: Encoding, cols: usize) -> Result<Option<Self>> {
        if encoding.scale_bytes(1, cols) > 0 {
            return Ok(None);
        }
        let row_bytes = encoding.row_bytes(cols)? as u64;
        let file = File::open(path)
            .map_err(|e| Error::io(format!("cannot open {}", path.display()), e))?;
        without_read_ahead(&file);
        Ok(Some(Self { file, path: path.to_owned(), offset, encoding, cols, row_bytes }))
    }

    /// Row `row` as f32; `bytes` is for use again. Leaves nothing in the page cache.
    fn decode(&self, row: usize, bytes: &mut Vec<u8>, out: &mut [f32]) -> Result<()> {
        let at = self.offset + row as u64 * self.row_bytes;
        bytes.resize(self.row_bytes as usize, 0);
        read_piece(&self.file, bytes, at).map_err(|e| {
            Error::io("reading a row of the embedding", e)
                .with("row", row)
                .with("file", self.path.display())
                .with("offset", at)
        })?;
        decode_row(&Matrix::new(self.encoding, 1, self.cols, bytes)?, 0, out)
    }
}

/// See the module.
#[derive(Debug)]
pub(super) enum Embedding {
    Held(OwnedMatrix),
    Stored(StoredRows),
}

impl Embedding {
    pub fn held(weights: &Weights<'_>) -> Result<Self> {
        weights.need(None, Slot::Embed).map(Self::Held)
    }

    /// Left in its file, where that can be.
    pub fn stored(config: &ModelConfig, weights: &Weights<'_>) -> Result<Self> {
        match weights.rows(None, Slot::Embed)? {
            Some(rows) if !config.tie_embeddings => Ok(Self::Stored(rows)),
            _ => Self::held(weights),
        }
    }

    /// The matrix, where it is in memory: a head that is tied to it multiplies it.
    pub fn matrix(&self) -> Result<&OwnedMatrix> {
        match self {
            Self::Held(matrix) => Ok(matrix),
            Self::Stored(_) => Err(Error::bug("the head is tied to an embedding in its file")),
        }
    }

    /// Row `row` as f32 `[H]`; `bytes` is for use again.
    pub fn decode(&self, row: usize, bytes: &mut Vec<u8>, out: &mut [f32]) -> Result<()> {
        match self {
            Self::Held(matrix) => decode_row(&matrix.view(), row, out),
            Self::Stored(rows) => rows.decode(row, bytes, out),
        }
    }
}
