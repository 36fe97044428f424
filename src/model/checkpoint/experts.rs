//! Where each routed expert lies: its pieces, in a fixed order, and their layout.

use super::layout::{BiasAt, GateUpAt, Layout, MatrixAt, Span};
use super::stored::Stored;
use super::table::{Found, Piece, Place, Table};
use crate::base::{Error, Result};
use crate::model::config::ModelConfig;
use crate::model::family::{ExpertNames, expert_tensors};
use crate::model::hf::Dtype;
use crate::model::kernels::linear::Encoding;
use std::collections::HashMap;
use std::sync::Arc;

/// One expert: what to read, and how to see it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Expert {
    pub pieces: Vec<Piece>,
    /// Shared by all that lie alike: a model has few.
    pub layout: Arc<Layout>,
}

/// All routed experts, by layer; none for a dense layer.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Experts {
    pub layers: Vec<Vec<Expert>>,
}

impl Experts {
    /// Finds the experts of a model in its table.
    ///
    /// # Errors
    /// Input, naming tensor and file: missing, of another shape, or of a type that holds no weights.
    pub fn find(table: &Table, config: &ModelConfig) -> Result<Self> {
        let mut known: HashMap<Layout, Arc<Layout>> = HashMap::new();
        let mut layers = Vec::with_capacity(config.layers);
        for layer in 0..config.layers {
            let count = if config.is_dense(layer) { 0 } else { config.experts };
            let mut experts = Vec::with_capacity(count);
            for expert in 0..count {
                let (pieces, layout) = match config.family.spec().expert_names {
                    ExpertNames::Each(_) => each(table, config, layer, expert)?,
                    ExpertNames::Fused => fused(table, config, layer, expert)?,
                };
                let shared = known.entry(layout).or_insert_with_key(|new| Arc::new(new.clone()));
                experts.push(Expert { pieces, layout: shared.clone() });
            }
            layers.push(experts);
        }
        Ok(Self { layers })
    }
}

/// Every name that the routed experts' tensors may have.
///
/// # Errors
/// Bug, as [`expert_tensors`].
pub(super) fn names(config: &ModelConfig) -> Result<Vec<String>> {
    let spec = config.family.spec();
    let mut names = Vec::new();
    for layer in (0..config.layers).filter(|layer| !config.is_dense(*layer)) {
        match spec.expert_names {
            ExpertNames::Each(_) => {
                for expert in 0..config.experts {
                    names.extend(expert_tensors(config, layer, expert)?.map(|(name, _)| name));
                }
            }
            ExpertNames::Fused => {
                for projection in ["gate_up_proj", "down_proj"] {
                    for suffix in ["", "_blocks", "_scales", "_bias"] {
                        let experts = spec.experts;
                        names.push(format!("model.layers.{layer}.{experts}.{projection}{suffix}"));
                    }
                }
            }
        }
    }
    Ok(names)
}

/// Pieces being listed; each gets the span that stands for it.
#[derive(Default)]
struct Pieces(Vec<Piece>);

impl Pieces {
    fn add(&mut self, piece: Piece) -> Span {
        self.0.push(piece);
        Span { piece: self.0.len() - 1, start: 0, len: piece.len as usize }
    }

    /// Part `index` of a tensor that holds `count` equal ones.
    fn add_part(&mut self, place: &Place, index: usize, count: usize) -> Span {
        let len = place.piece.len / count as u64;
        let offset = place.piece.offset + len * index as u64;
        self.add(Piece { file: place.piece.file, offset, len })
    }
}

/// Three matrices of an expert's own.
fn each(
    table: &Table,
    config: &ModelConfig,
    layer: usize,
    expert: usize,
) -> Result<(Vec<Piece>, Layout)> {
    let mut pieces = Pieces::default();
    let mut matrix = |name: &str, [rows, cols]: [usize; 2]| -> Result<MatrixAt> {
        let Found { encoding, data, scales } = table.weight(name, &[rows, cols])?;
        let data = pieces.add(data.piece);
        let scales = scales.map(|scales| pieces.add(scales.piece));
        Ok(MatrixAt { encoding, rows, cols, transposed: false, data, scales, bias: None })
    };
    let [gate, up, down] = expert_tensors(config, layer, expert)?;
    let gate_up = GateUpAt::Apart { gate: matrix(&gate.0, gate.1)?, up: matrix(&up.0, up.1)? };
    let layout = Layout { gate_up, down: matrix(&down.0, down.1)? };
    Ok((pieces.0, layout))
}

/// gpt-oss: a slice of each of a layer's tensors.
fn fused(
    table: &Table,
    config: &ModelConfig,
    layer: usize,
    expert: usize,
) -> Result<(Vec<Piece>, Layout)> {
    let (h, f) = (config.hidden, config.expert_width);
    let prefix = format!("model.layers.{layer}.{}", config.family.spec().experts);
    let mut pieces = Pieces::default();
    let mut matrix = |name: &str, rows: usize, cols: usize| {
        fused_matrix(
            table,
            &mut pieces,
            &format!("{prefix}.{name}"),
            config.experts,
            expert,
            [rows, cols],
        )
    };
    let gate_up = GateUpAt::Interleaved(matrix("gate_up_proj", 2 * f, h)?);
    let layout = Layout { gate_up, down: matrix("down_proj", h, f)? };
    Ok((pieces.0, layout))
}

fn fused_matrix(
    table: &Table,
    pieces: &mut Pieces,
    name: &str,
    experts: usize,
    expert: usize,
    [rows, cols]: [usize; 2],
) -> Result<MatrixAt> {
    let blocks = format!("{name}_blocks");
    let (encoding, data, scales) = if table.has(&blocks) {
        let block = Encoding::Mxfp4.block();
        if !cols.is_multiple_of(block) {
            let message = format!("rows of {cols} elements do not divide into blocks of {block}");
            return Err(Error::input(message).with("tensor", &blocks));
        }
        let data = bytes(table, &blocks, &[experts, rows, cols / block, block / 2])?;
        let scales = bytes(table, &format!("{name}_scales"), &[experts, rows, cols / block])?;
        (Encoding::Mxfp4, data, Some(scales))
    } else {
        let Found { encoding, data, .. } = table.weight(name, &[experts, cols, rows])?;
        if !encoding.is_float() {
            let message = format!("fused experts of type {} are not supported", data.stored);
            return Err(table.named(Error::input(message), name, data));
        }
        (encoding, data, None)
    };
    let bias_name = format!("{name}_bias");
    let bias = table.weight(&bias_name, &[experts, rows])?;
    if !bias.encoding.is_float() {
        let message = format!("a bias of type {} is not supported", bias.data.stored);
        return Err(table.named(Error::input(message), &bias_name, bias.data));
    }
    let data = pieces.add_part(data, expert, experts);
    let scales = scales.map(|scales| pieces.add_part(scales, expert, experts));
    let span = pieces.add_part(bias.data, expert, experts);
    Ok(MatrixAt {
        encoding,
        rows,
        cols,
        transposed: encoding != Encoding::Mxfp4,
        data,
        scales,
        bias: Some(BiasAt { encoding: bias.encoding, span }),
    })
}

/// A tensor of bytes.
fn bytes<'a>(table: &'a Table, name: &str, shape: &[usize]) -> Result<&'a Place> {
    let place = table.place(name, shape)?;
    if place.stored == Stored::Plain(Dtype::U8) {
        return Ok(place);
    }
    let message = format!("tensor is of type {} where U8 is needed", place.stored);
    Err(table.named(Error::input(message), name, place))
}
