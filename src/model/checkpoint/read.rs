//! Reading weights out of an opened checkpoint. What is read is kept once: its page cache goes back.

use super::source::Source;
use super::table::{Found, Piece, RowOrder};
use crate::base::behind::read_piece;
use crate::base::{Error, Result};
use crate::model::forward::{StoredRows, Tensors, matrix_shape};
use crate::model::kernels::linear::{AlignedBytes, Encoding, Matrix, OwnedMatrix};

/// Elements of a matrix that are looked at together.
const SLICE: usize = 4 << 20;
/// Rows of a slice are a multiple of this, so that tiles which share a scale stay together.
const TILE: usize = 128;

impl Tensors for Source {
    fn has(&self, name: &str) -> bool {
        self.table().has(name)
    }

    fn encoding(&self, name: &str, shape: &[usize]) -> Result<Encoding> {
        self.table().weight(name, shape).map(|found| found.encoding)
    }

    fn tensor(&self, name: &str, shape: &[usize]) -> Result<OwnedMatrix> {
        let Found { encoding, data: place, scales: scales_at } =
            self.table().weight(name, shape)?;
        let (rows, cols) = matrix_shape(shape);
        let mut data = self.read(name, place.piece)?;
        if place.rows != RowOrder::Plain {
            data = reordered(&data, rows, place.rows);
        }
        let scales = match scales_at {
            None => AlignedBytes::zeroed(0),
            Some(place) => self.read(name, place.piece)?,
        };
        let matrix = OwnedMatrix { encoding, rows, cols, transposed: false, data, scales };
        matrix.view().check()?;
        Ok(matrix)
    }

    fn rows(&self, name: &str, shape: &[usize]) -> Result<Option<StoredRows>> {
        let Found { encoding, data, .. } = self.table().weight(name, shape)?;
        let (_, cols) = matrix_shape(shape);
        match self.files().get(data.piece.file) {
            Some(path) if data.rows == RowOrder::Plain => {
                StoredRows::open(path, data.piece.offset, encoding, cols)
            }
            _ => Ok(None),
        }
    }
}

impl Source {
    /// Shows a tensor to `look`, some rows at a time, in order.
    ///
    /// # Errors
    /// As [`Tensors::tensor`], and what `look` returns.
    pub fn each_slice(
        &self,
        name: &str,
        shape: &[usize],
        mut look: impl FnMut(&Matrix<'_>) -> Result<()>,
    ) -> Result<()> {
        let Found { encoding, data, scales } = self.table().weight(name, shape)?;
        if data.rows != RowOrder::Plain {
            return look(&self.tensor(name, shape)?.view());
        }
        let (rows, cols) = matrix_shape(shape);
        let at_once = (SLICE / cols.max(1)).next_multiple_of(TILE);
        let row_bytes = encoding.row_bytes(cols)? as u64;
        for first in (0..rows).step_by(at_once) {
            let count = at_once.min(rows - first);
            let part = Piece {
                offset: data.piece.offset + first as u64 * row_bytes,
                len: count as u64 * row_bytes,
                ..data.piece
            };
            let bytes = self.read(name, part)?;
            let scales = match scales {
                None => AlignedBytes::zeroed(0),
                Some(place) => {
                    let before = encoding.scale_bytes(first, cols) as u64;
                    let len = encoding.scale_bytes(count, cols) as u64;
                    let offset = place.piece.offset + before;
                    self.read(name, Piece { offset, len, ..place.piece })?
                }
            };
            look(&Matrix::with_scales(encoding, count, cols, &bytes, &scales)?)?;
        }
        Ok(())
    }

    /// The bytes of an expert's pieces.
    ///
    /// # Errors
    /// Io, naming the file.
    pub fn read_expert(&self, layer: usize, expert: usize) -> Result<Vec<AlignedBytes>> {
        let name = || format!("expert {expert} of layer {layer}");
        self.pieces(layer, expert).iter().map(|piece| self.read(&name(), *piece)).collect()
    }

    fn read(&self, name: &str, piece: Piece) -> Result<AlignedBytes> {
        let file = self.handles().get(piece.file).zip(self.files().get(piece.file));
        let (file, path) =
            file.ok_or_else(|| Error::bug("a piece lies in no file").with("tensor", name))?;
        let mut bytes = AlignedBytes::zeroed(piece.len as usize);
        read_piece(file, &mut bytes, piece.offset).map_err(|e| {
            Error::io("reading a tensor", e).with("tensor", name).with("file", path.display())
        })?;
        Ok(bytes)
    }
}

/// Rows in the order that the model knows.
fn reordered(data: &[u8], rows: usize, order: RowOrder) -> AlignedBytes {
    let mut out = AlignedBytes::zeroed(data.len());
    let bytes = (data.len() / rows.max(1)).max(1);
    for (row, to) in out.chunks_mut(bytes).enumerate() {
        let from = order.in_file(row, rows) * bytes;
        to.copy_from_slice(&data[from..from + bytes]);
    }
    out
}
