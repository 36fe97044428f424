//! A Hugging Face folder as a table: the shards' headers are read, nothing else.

use super::stored::Stored;
use super::table::{Piece, Place, RowOrder, Table};
use crate::base::Result;
use crate::model::hf::Checkpoint;
use std::path::Path;

/// The table of a folder's safetensors files.
///
/// # Errors
/// As [`Checkpoint::open`].
pub(super) fn table(dir: &Path) -> Result<Table> {
    let checkpoint = Checkpoint::open(dir)?;
    let mut table = Table { files: checkpoint.files(), ..Table::default() };
    for (file, info) in checkpoint.tensors() {
        let place = Place {
            piece: Piece { file, offset: info.offset, len: info.len },
            stored: Stored::Plain(info.dtype),
            shape: info.shape.clone(),
            rows: RowOrder::Plain,
        };
        table.tensors.insert(info.name.clone(), place);
    }
    Ok(table)
}
