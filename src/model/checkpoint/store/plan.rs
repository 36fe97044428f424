//! What an import writes and where, settled before the first byte: pure.

use super::Options;
use crate::base::Result;
use crate::model::checkpoint::experts::{Expert, Experts};
use crate::model::checkpoint::layout::{Layout, MatrixAt, Span};
use crate::model::checkpoint::source::Source;
use crate::model::checkpoint::stored::{Stored, scales_shape};
use crate::model::checkpoint::table::{Piece, Place, RowOrder, Table};
use crate::model::family::{DenseTensor, Slot, dense_tensors};
use crate::model::hf::Dtype;
use crate::model::kernels::linear::Encoding;
use std::path::Path;
use std::sync::Arc;

/// Experts begin on a page, for O_DIRECT.
const PAGE: u64 = 4096;
/// Matrices begin on a cache line.
const LINE: u64 = 64;

/// A dense tensor to be written.
pub(super) struct DenseJob {
    pub tensor: DenseTensor,
    pub encoding: Encoding,
    pub data: Piece,
    pub scales: Option<Piece>,
}

/// An expert to be written, as one block.
pub(super) struct ExpertJob {
    pub layer: usize,
    pub expert: usize,
    pub block: Piece,
    pub layout: Arc<Layout>,
}

/// A store to be.
pub(super) struct Plan {
    pub files: Vec<String>,
    /// Bytes of each file.
    pub lengths: Vec<u64>,
    pub dense: Vec<DenseJob>,
    pub experts: Vec<ExpertJob>,
}

impl Plan {
    /// # Errors
    /// Input when a tensor cannot be encoded as asked.
    pub fn new(source: &Source, options: &Options) -> Result<Self> {
        let mut plan = Self {
            files: vec!["dense.bin".into()],
            lengths: vec![0],
            dense: Vec::new(),
            experts: Vec::new(),
        };
        for tensor in dense_tensors(source.config()) {
            plan.add_dense(source, options, tensor)?;
        }
        for (layer, experts) in source.experts().layers.iter().enumerate() {
            if experts.is_empty() {
                continue;
            }
            plan.files.push(format!("experts-{layer:05}.bin"));
            plan.lengths.push(0);
            for (number, expert) in experts.iter().enumerate() {
                plan.add_expert(options, layer, number, &expert.layout)?;
            }
        }
        Ok(plan)
    }

    fn add_dense(&mut self, source: &Source, options: &Options, tensor: DenseTensor) -> Result<()> {
        let (rows, cols) = rows_and_cols(&tensor.shape);
        let found = source.table().weight(&tensor.name, &tensor.shape)?.encoding;
        let encoding = options.dense.filter(|_| is_recoded(&tensor)).unwrap_or(found);
        let bytes = encoding.data_bytes(rows, cols).map_err(|e| e.with("tensor", &tensor.name))?;
        let data = self.allot(bytes as u64, LINE);
        let scale_bytes = encoding.scale_bytes(rows, cols) as u64;
        let scales = (scale_bytes > 0).then(|| self.allot(scale_bytes, LINE));
        self.dense.push(DenseJob { tensor, encoding, data, scales });
        Ok(())
    }

    fn add_expert(
        &mut self,
        options: &Options,
        layer: usize,
        expert: usize,
        from: &Layout,
    ) -> Result<()> {
        let mut layout = from.clone();
        let mut end = 0u64;
        for matrix in layout.matrices_mut() {
            recast(matrix, options.experts).map_err(|e| e.with("layer", layer))?;
            for span in matrix.spans_mut() {
                let start = end.next_multiple_of(LINE);
                *span = Span { piece: 0, start: start as usize, len: span.len };
                end = start + span.len as u64;
            }
        }
        let block = self.allot(end.next_multiple_of(PAGE), PAGE);
        let last = self.experts.last().map(|job| &job.layout);
        let same = last.filter(|last| ***last == layout).cloned();
        let layout = same.unwrap_or_else(|| Arc::new(layout));
        self.experts.push(ExpertJob { layer, expert, block, layout });
        Ok(())
    }

    /// Room at the end of the newest file.
    fn allot(&mut self, len: u64, align: u64) -> Piece {
        let file = self.files.len() - 1;
        let offset = self.lengths[file].next_multiple_of(align);
        self.lengths[file] = offset + len;
        Piece { file, offset, len }
    }

    /// The store as it will be opened.
    pub fn found(&self, folder: &Path, layers: usize) -> (Table, Experts) {
        let files = self.files.iter().map(|name| folder.join(name)).collect();
        let mut table = Table { files, ..Table::default() };
        for job in &self.dense {
            let shape = job.tensor.shape.iter().map(|dim| *dim as u64).collect();
            let (rows, cols) = rows_and_cols(&job.tensor.shape);
            let stored = Stored::of(job.encoding);
            let rows_plain = RowOrder::Plain;
            let place = Place { piece: job.data, stored, shape, rows: rows_plain };
            table.tensors.insert(job.tensor.name.clone(), place);
            let Some((piece, (suffix, shape))) =
                job.scales.zip(scales_shape(job.encoding, rows, cols))
            else {
                continue;
            };
            let fp8 = job.encoding == Encoding::Fp8;
            let stored = Stored::Plain(if fp8 { Dtype::F32 } else { Dtype::U8 });
            let shape = shape.iter().map(|dim| *dim as u64).collect();
            let place = Place { piece, stored, shape, rows: rows_plain };
            table.tensors.insert(format!("{}{suffix}", job.tensor.name), place);
        }
        let mut experts = Experts { layers: vec![Vec::new(); layers] };
        for job in &self.experts {
            let expert = Expert { pieces: vec![job.block], layout: job.layout.clone() };
            experts.layers[job.layer].push(expert);
        }
        (table, experts)
    }
}

/// A matrix's form in the store.
fn recast(matrix: &mut MatrixAt, wanted: Option<Encoding>) -> Result<()> {
    let Some(encoding) = wanted else { return Ok(()) };
    let (rows, cols) = (matrix.rows, matrix.cols);
    matrix.encoding = encoding;
    matrix.transposed = false;
    matrix.data.len = encoding.data_bytes(rows, cols)?;
    let scales = encoding.scale_bytes(rows, cols);
    matrix.scales = (scales > 0).then_some(Span { piece: 0, start: 0, len: scales });
    Ok(())
}

/// Whether a dense tensor is brought into another encoding: matrices are; what computes in f32
/// (norms, routers, gates, biases, sinks) stays as it is.
fn is_recoded(tensor: &DenseTensor) -> bool {
    tensor.shape.len() == 2 && !matches!(tensor.slot, Slot::Router | Slot::SharedGate)
}

/// All dimensions but the last, and the last.
pub(super) fn rows_and_cols(shape: &[usize]) -> (usize, usize) {
    let cols = shape.last().copied().unwrap_or(1);
    (shape.iter().rev().skip(1).product(), cols)
}
