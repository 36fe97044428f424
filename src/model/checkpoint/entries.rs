//! An opened checkpoint written down: block → file, offset, length, type, shape. An index keeps it,
//! and opening it again reads no header.
//!
//! Law: what is read back is the checkpoint that was written down, or an error; files are trusted
//! only while their identity is the one noted here.

use super::experts::{Expert, Experts};
use super::layout::Layout;
use super::stored::Stored;
use super::table::{Piece, Place, RowOrder, Table};
use crate::base::{Error, Result};
use crate::model::config::ModelConfig;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// A folder of safetensors.
    Folder,
    Gguf,
    /// A folder that `semoe import` wrote.
    Store,
}

/// What concerns the checkpoint as a whole.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Meta {
    pub origin: Origin,
    pub identity: String,
    pub config: ModelConfig,
    /// Names of the files with tensors, in the checkpoint's folder.
    pub files: Vec<String>,
    /// How experts lie: all different ways, and by layer and expert which of them.
    pub layouts: Vec<Layout>,
    pub layout_of: Vec<Vec<usize>>,
    /// Heads of the tensors whose rows alternate ([`RowOrder`]).
    pub alternating: BTreeMap<String, usize>,
}

/// One block: a dense tensor, or a piece of an expert.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// `dense/NAME` or `expert/LAYER/EXPERT/PIECE`.
    pub key: String,
    pub file: usize,
    pub offset: u64,
    pub len: u64,
    pub dtype: String,
    pub shape: Vec<u64>,
}

/// A checkpoint, written down.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entries {
    pub meta: Meta,
    pub rows: Vec<Row>,
}

const DENSE: &str = "dense/";
const EXPERT: &str = "expert/";
/// The type of a block that holds an expert's matrices one after the other, as its layout says.
const BLOCK: &str = "block";
const SCALES: &str = "scales";

/// The key of a piece of an expert.
fn expert_key(layer: usize, expert: usize, piece: usize) -> String {
    format!("{EXPERT}{layer:05}/{expert:05}/{piece}")
}

impl Entries {
    /// Writes down what was found. Tensors that are part of an expert stand there only as such.
    pub(super) fn write(
        origin: Origin,
        identity: String,
        config: &ModelConfig,
        table: &Table,
        experts: &Experts,
    ) -> Self {
        let name =
            |file: &PathBuf| file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut entries = Self {
            meta: Meta {
                origin,
                identity,
                config: config.clone(),
                files: table.files.iter().map(name).collect(),
                layouts: Vec::new(),
                layout_of: Vec::new(),
                alternating: BTreeMap::new(),
            },
            rows: Vec::new(),
        };
        for (name, place) in &table.tensors {
            if let RowOrder::Alternating { heads } = place.rows {
                entries.meta.alternating.insert(name.clone(), heads);
            }
            let dtype = place.stored.to_string();
            entries.push(format!("{DENSE}{name}"), place.piece, dtype, place.shape.clone());
        }
        let mut known = HashMap::new();
        for (layer, all) in experts.layers.iter().enumerate() {
            let mut layout_of = Vec::with_capacity(all.len());
            for (number, expert) in all.iter().enumerate() {
                let next = known.len();
                layout_of.push(*known.entry(expert.layout.clone()).or_insert(next));
                if known.len() > next {
                    entries.meta.layouts.push(expert.layout.as_ref().clone());
                }
                for (index, piece) in expert.pieces.iter().enumerate() {
                    let (dtype, shape) = kind(&expert.layout, index);
                    entries.push(expert_key(layer, number, index), *piece, dtype, shape);
                }
            }
            entries.meta.layout_of.push(layout_of);
        }
        entries
    }

    fn push(&mut self, key: String, piece: Piece, dtype: String, shape: Vec<u64>) {
        let Piece { file, offset, len } = piece;
        self.rows.push(Row { key, file, offset, len, dtype, shape });
    }

    /// The table and the experts, with files in `folder`.
    ///
    /// # Errors
    /// Corrupt for entries that [`Entries::write`] did not write.
    pub(super) fn read(self, folder: &Path) -> Result<(Meta, Table, Experts)> {
        let Self { meta, rows } = self;
        let mut table = Table {
            files: meta.files.iter().map(|name| folder.join(name)).collect(),
            ..Table::default()
        };
        let layouts: Vec<Arc<Layout>> = meta.layouts.iter().cloned().map(Arc::new).collect();
        let mut experts = Experts::default();
        for layout_of in &meta.layout_of {
            let expert = |index: &usize| {
                let layout = layouts.get(*index).cloned();
                let layout = layout.ok_or_else(|| bad("an expert's layout is not there"))?;
                Ok(Expert { pieces: Vec::new(), layout })
            };
            experts.layers.push(layout_of.iter().map(expert).collect::<Result<_>>()?);
        }
        for row in rows {
            let piece = Piece { file: row.file, offset: row.offset, len: row.len };
            if piece.file >= table.files.len() || piece.offset.checked_add(piece.len).is_none() {
                return Err(bad("a block lies in no file").with("key", row.key));
            }
            if let Some(name) = row.key.strip_prefix(DENSE) {
                let rows = match meta.alternating.get(name) {
                    Some(heads) => RowOrder::Alternating { heads: *heads },
                    None => RowOrder::Plain,
                };
                let stored: Stored = row.dtype.parse()?;
                table
                    .tensors
                    .insert(name.to_owned(), Place { piece, stored, shape: row.shape, rows });
                continue;
            }
            // Keys come in order, so pieces do.
            let place = parse_expert(&row.key).and_then(|[layer, expert, index]| {
                let expert = experts.layers.get_mut(layer)?.get_mut(expert)?;
                (expert.pieces.len() == index).then_some(expert)
            });
            let place =
                place.ok_or_else(|| bad("a block is out of place").with("key", &row.key))?;
            place.pieces.push(piece);
        }
        check_pieces(&experts)?;
        Ok((meta, table, experts))
    }
}

fn parse_expert(key: &str) -> Option<[usize; 3]> {
    let mut parts = key.strip_prefix(EXPERT)?.split('/').map(|part| part.parse::<usize>().ok());
    let numbers = [parts.next()??, parts.next()??, parts.next()??];
    parts.next().is_none().then_some(numbers)
}

/// Every span of a layout must lie inside its piece, or a view would fail in the midst of a run.
fn check_pieces(experts: &Experts) -> Result<()> {
    for expert in experts.layers.iter().flatten() {
        let spans = expert.layout.matrices().into_iter().flat_map(|matrix| matrix.spans());
        for span in spans {
            let piece = expert.pieces.get(span.piece);
            let end = span.start.checked_add(span.len);
            if piece.zip(end).is_none_or(|(piece, end)| end as u64 > piece.len) {
                return Err(bad("an expert's pieces do not fit its layout"));
            }
        }
    }
    Ok(())
}

fn bad(message: &str) -> Error {
    Error::corrupt(format!("the index of the checkpoint is damaged: {message}"))
}

/// Type and shape of a piece, which is a whole matrix, a bias, scales, or all of an expert.
fn kind(layout: &Layout, piece: usize) -> (String, Vec<u64>) {
    let mut found = Vec::new();
    for matrix in layout.matrices() {
        let (rows, cols) = (matrix.rows as u64, matrix.cols as u64);
        if matrix.data.piece == piece {
            let shape = if matrix.transposed { vec![cols, rows] } else { vec![rows, cols] };
            found.push((Stored::of(matrix.encoding).to_string(), shape));
        }
        if let Some(scales) = matrix.scales.filter(|scales| scales.piece == piece) {
            found.push((SCALES.to_owned(), vec![scales.len as u64]));
        }
        if let Some(bias) = matrix.bias.as_ref().filter(|bias| bias.span.piece == piece) {
            found.push((Stored::of(bias.encoding).to_string(), vec![rows]));
        }
    }
    match found.len() {
        1 => found.remove(0),
        _ => (BLOCK.to_owned(), Vec::new()),
    }
}
