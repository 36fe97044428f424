//! What the forward pass takes in memory, known before anything is loaded.

use super::tensors::{Tensors, Weights, matrix_shape};
use crate::base::Result;
use crate::model::config::ModelConfig;
use crate::model::family::{Slot, dense_tensors};
use crate::model::kernels::attend::{QUERIES, TILE, row_of_scores};
use crate::model::kernels::linear::Encoding;

/// Bytes that the dense weights take once loaded, from headers alone: what is encoded stays
/// encoded; vectors, routers and gates become f32, and so does an up-projection of latents that
/// cannot be divided between heads as it is.
pub(super) fn resident_bytes(config: &ModelConfig, tensors: &dyn Tensors) -> Result<u64> {
    Ok(kept(config, tensors)?.iter().map(|(_, _, bytes)| bytes).sum())
}

/// Bytes of an embedding that may stay in its file.
pub(super) fn embedding_bytes(config: &ModelConfig, tensors: &dyn Tensors) -> Result<u64> {
    let weights = Weights::new(config, tensors);
    if config.tie_embeddings || weights.rows(None, Slot::Embed)?.is_none() {
        return Ok(0);
    }
    let embedding = kept(config, tensors)?.into_iter().filter(|(slot, ..)| *slot == Slot::Embed);
    Ok(embedding.map(|(_, _, bytes)| bytes).sum())
}

/// Bytes of dense weights that a token reads, by the encoding in which they are kept: all but the
/// embedding, of which it takes one row unless the head is tied to it.
pub(super) fn active_bytes(
    config: &ModelConfig,
    tensors: &dyn Tensors,
) -> Result<Vec<(Encoding, u64)>> {
    let mut kept = kept(config, tensors)?;
    kept.retain(|(slot, ..)| *slot != Slot::Embed || config.tie_embeddings);
    Ok(kept.into_iter().map(|(_, encoding, bytes)| (encoding, bytes)).collect())
}

/// Every dense tensor as it is kept.
fn kept(config: &ModelConfig, tensors: &dyn Tensors) -> Result<Vec<(Slot, Encoding, u64)>> {
    let mut all = Vec::new();
    for tensor in dense_tensors(config) {
        let (rows, cols) = matrix_shape(&tensor.shape);
        let mut encoding = tensors.encoding(&tensor.name, &tensor.shape)?;
        let exact = match tensor.slot {
            Slot::Router | Slot::SharedGate => true,
            Slot::KvOut => !super::latent::divides(config, encoding),
            _ => tensor.shape.len() == 1,
        };
        if exact {
            encoding = Encoding::F32;
        }
        let bytes = encoding.data_bytes(rows, cols)? + encoding.scale_bytes(rows, cols);
        all.push((tensor.slot, encoding, bytes as u64));
    }
    Ok(all)
}

/// Most bytes that the buffers of calls of at most `rows` rows of `sequences` come to, over caches of at
/// most `positions`, on `threads` threads. The products' own scratch is apart.
pub(super) fn buffer_bytes(
    config: &ModelConfig,
    rows: usize,
    sequences: usize,
    positions: usize,
    threads: usize,
) -> u64 {
    let kv_heads = if config.latent.is_some() { 1 } else { config.kv_heads };
    let group = config.heads / kv_heads;
    // Queries of one sequence share passes; the last one of each may be short.
    let passes = kv_heads * ((rows * group).div_ceil(QUERIES) + sequences.min(rows));
    let (key, value) = match &config.latent {
        Some(latent) => (latent.kv_rank + latent.rope, latent.kv_rank),
        None => (config.head_dim, config.head_dim),
    };
    let projected = match &config.latent {
        // Queries, latents, and queries and results in the latents' space.
        Some(latent) => {
            let heads = config.heads * (key + value + latent.value);
            config.q_width() + latent.q_rank.unwrap_or(0) + key + heads
        }
        None => config.q_width() + 2 * config.kv_width(),
    };
    // Of those that are fed, and of those that are asked for.
    let angles = 2 * config.rope_dim();
    let row = config.hidden + projected + config.value_width() + angles + 2 * config.experts + 1;
    // Of latents: rows in their space and out of it, and a tile of values.
    let own = match &config.latent {
        Some(latent) => {
            let row = latent.nope.max(latent.kv_rank) + latent.value.max(latent.kv_rank);
            rows * row + TILE * value
        }
        None => 0,
    };
    let queries = QUERIES * (row_of_scores(positions.div_ceil(TILE)) + key + value);
    let thread = queries + own;
    let numbers = rows * row + threads * thread;
    // Runs, passes and positions are a few words each, in lists that grow by doubling.
    (4 * numbers + 128 * (rows + passes)) as u64
}
