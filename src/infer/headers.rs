//! What a generator takes from a checkpoint's headers: the context, where the experts lie, how
//! they are encoded, and what a token reads of all that.

use super::forecast::{Amounts, Workload};
use super::options::Options;
use crate::base::{BlockId, Error, Result};
use crate::model::checkpoint::Source;
use crate::model::config::ModelConfig;
use crate::model::forward::{Forward, KvCache};
use crate::storage::in_place::{InPlace, Piece};

/// Positions that a sequence may reach unless more is asked for.
const CONTEXT: usize = 4096;

/// The context in effect.
pub fn context(config: &ModelConfig, asked: usize) -> Result<usize> {
    let most = config.max_position;
    match asked {
        0 => Ok(most.min(CONTEXT)),
        asked if asked <= most => Ok(asked),
        asked => Err(Error::config("the context is longer than the model is meant for")
            .with("context", asked)
            .with("model", most)),
    }
}

/// The experts' places in their files.
pub fn in_place(source: &Source) -> Result<InPlace> {
    let config = source.config();
    let mut blocks = Vec::new();
    for layer in 0..config.layers {
        for expert in 0..config.experts {
            let pieces = source.pieces(layer, expert);
            if pieces.is_empty() {
                continue;
            }
            let piece = |p: &crate::model::checkpoint::Piece| Piece {
                file: p.file,
                offset: p.offset,
                len: p.len,
            };
            let pieces = pieces.iter().map(piece).collect();
            blocks.push((BlockId::weights(layer, expert), pieces));
        }
    }
    InPlace::new(source.files(), blocks)
}

/// How the experts' weights are encoded, each encoding once.
pub fn encodings(source: &Source) -> Vec<String> {
    let config = source.config();
    let mut names = Vec::new();
    for layer in 0..config.layers {
        // A dense layer has no experts, and so no layout.
        let Ok(layout) = source.layout(layer, 0) else { continue };
        for matrix in layout.matrices() {
            let name = matrix.encoding.name().to_owned();
            if !names.contains(&name) {
                names.push(name);
            }
        }
    }
    names
}

/// What a token reads and computes.
///
/// # Errors
/// As [`Forward::resident_bytes`]; Bug for an expert without a layout.
pub fn workload(
    source: &Source,
    files: &InPlace,
    slots: u32,
    options: &Options,
) -> Result<Workload> {
    let config = source.config();
    let mut dense = Amounts::default();
    for (encoding, bytes) in Forward::active_bytes(config, source)? {
        dense.add(encoding.name(), bytes as f64);
    }
    let (mut of_experts, mut blocks, mut routed_layers) = (Amounts::default(), 0u32, 0);
    let (mut read_bytes, mut requests) = (0, 0);
    for layer in 0..config.layers {
        let before = blocks;
        for expert in 0..config.experts {
            if source.pieces(layer, expert).is_empty() {
                continue;
            }
            blocks += 1;
            for matrix in source.layout(layer, expert)?.matrices() {
                let bytes: usize = matrix.spans().iter().map(|span| span.len).sum();
                of_experts.add(matrix.encoding.name(), bytes as f64);
            }
            for fetch in files.fetches(BlockId::weights(layer, expert))? {
                read_bytes += fetch.extent.len;
                requests += fetch.extent.len.div_ceil(options.io.chunk);
            }
        }
        routed_layers += usize::from(blocks > before);
    }
    let each = 1.0 / f64::from(blocks.max(1));
    Ok(Workload {
        layers: config.layers,
        routed_layers,
        top_k: config.top_k,
        dense,
        expert: of_experts.scaled(each),
        expert_read: read_bytes as f64 * each,
        expert_requests: requests as f64 * each,
        kv_per_position: KvCache::bytes_per_token(config, options.kv),
        slots,
        blocks,
        depth: options.io.depth as u32,
    })
}
