//! What a generator takes from a checkpoint's headers: the context, where the experts lie, and how
//! they are encoded.

use crate::base::{BlockId, Error, Result};
use crate::model::checkpoint::Source;
use crate::model::config::ModelConfig;
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
