//! What a pass keeps between its tasks: the activations of each layer and micro-batch.
//!
//! T tokens of the micro-batch on this rank, H hidden, E experts, K choices; N rows that arrived
//! at this rank's experts (T·K where all experts are local).

use super::routes::Rows;
use crate::actors::stage::Batch;
use crate::base::{Error, Result};
use crate::model::dense::LayerTape;
use crate::model::expert::Kept;
use crate::model::gate::{Assignments, RouterStats, Selection};
use tch::Tensor;

/// Rows at this rank's experts, for one layer and micro-batch.
#[derive(Default)]
pub struct Inbox {
    /// Expert inputs in the compute type: token rows `[T, H]`, or what arrived `[N, H]`.
    pub rows: Option<Tensor>,
    /// By local expert.
    pub of_expert: Vec<Rows>,
    /// Rows that each source rank sent; empty where all experts are local.
    pub from_rank: Vec<i64>,
    /// Expert outputs `[N, H]`, compute type.
    pub out: Option<Tensor>,
    /// By local expert: what its forward pass kept.
    pub kept: Vec<Option<Kept>>,
    /// d loss / d weighted output, by input row.
    pub grad_rows: Option<Tensor>,
    /// Router weights `[N]`, f32.
    pub weights_n: Option<Tensor>,
    /// d loss / d input `[N, H]` and d loss / d weight `[N]`, by output row.
    pub dx: Option<Tensor>,
    pub dw: Option<Tensor>,
}

/// One layer of one micro-batch.
#[derive(Default)]
pub struct Cell {
    /// Residual stream at the layer's input, f32 `[B, S, H]`.
    pub x: Option<Tensor>,
    /// Residual stream after attention and shared expert, f32 `[T, H]`.
    pub h: Option<Tensor>,
    /// Expert input, compute type `[T, H]`.
    pub y: Option<Tensor>,
    /// Router logits, f32 `[T, E]`.
    pub logits: Option<Tensor>,
    pub tape: Option<LayerTape>,
    pub selection: Option<Selection>,
    /// Router weights, f32 `[T, K]`.
    pub weights: Option<Tensor>,
    pub assigned: Option<Assignments>,
    pub stats: RouterStats,
    pub dropped: u64,
    pub inbox: Inbox,
    /// Expert outputs back at their tokens, `[T * K, H]`.
    pub outputs: Option<Tensor>,
    /// d loss / d expert input, f32 `[T, H]`, and d loss / d logits, f32 `[T, E]`.
    pub dy: Option<Tensor>,
    pub dlogits: Option<Tensor>,
}

/// One micro-batch.
pub struct MicroBatch {
    /// Token ids and targets, i64 `[B, S]`.
    pub ids: Tensor,
    pub targets: Tensor,
    pub first_token: u64,
    /// d loss / d residual stream, f32 `[B, S, H]`, at the layer that backward has reached.
    pub dx: Option<Tensor>,
    pub layers: Vec<Cell>,
}

/// One pass.
pub struct PassTable {
    pub micro_batches: Vec<MicroBatch>,
    pub sequences: usize,
    pub length: usize,
    pub total_tokens: u64,
    pub total_targets: u64,
    /// Local experts of each layer whose forward, or backward, is still to come.
    pub remaining: Vec<Option<usize>>,
}

impl PassTable {
    pub fn new(batch: Batch, layers: usize) -> Result<Self> {
        let shape = [batch.sequences as i64, batch.length as i64];
        let mut micro_batches = Vec::with_capacity(batch.ids.len());
        for ((ids, targets), first_token) in
            batch.ids.iter().zip(&batch.targets).zip(&batch.first_token)
        {
            micro_batches.push(MicroBatch {
                ids: Tensor::f_from_slice(ids)?.f_reshape(shape)?,
                targets: Tensor::f_from_slice(targets)?.f_reshape(shape)?,
                first_token: *first_token,
                dx: None,
                layers: std::iter::repeat_with(Cell::default).take(layers).collect(),
            });
        }
        Ok(Self {
            micro_batches,
            sequences: batch.sequences,
            length: batch.length,
            total_tokens: batch.total_tokens,
            total_targets: batch.total_targets,
            remaining: vec![None; layers],
        })
    }

    pub fn cell(&mut self, layer: usize, mb: usize) -> Result<&mut Cell> {
        self.micro_batches
            .get_mut(mb)
            .and_then(|mb| mb.layers.get_mut(layer))
            .ok_or_else(|| Error::bug("a task names a layer or micro-batch that does not exist"))
    }

    /// Counts one expert of `layer` as done; true when it was the last. `used` is how many there
    /// are at the first call.
    pub fn expert_done(&mut self, layer: usize, used: impl FnOnce(&Self) -> usize) -> bool {
        let left = match self.remaining[layer] {
            Some(left) => left,
            None => used(self),
        };
        let left = left.saturating_sub(1);
        self.remaining[layer] = (left > 0).then_some(left);
        left == 0
    }

    /// Local experts of `layer` that have rows in any micro-batch.
    pub fn used_experts(&self, layer: usize) -> usize {
        let inboxes = || self.micro_batches.iter().map(|mb| &mb.layers[layer].inbox);
        let local = inboxes().map(|inbox| inbox.of_expert.len()).max().unwrap_or(0);
        (0..local)
            .filter(|&e| inboxes().any(|i| i.of_expert.get(e).is_some_and(|rows| rows.count > 0)))
            .count()
    }
}

/// Takes a tensor that an earlier task must have left.
pub fn take<T>(from: &mut Option<T>, what: &'static str) -> Result<T> {
    from.take().ok_or_else(|| missing(what))
}

/// Borrows a tensor that an earlier task must have left.
pub fn have<'a, T>(from: &'a Option<T>, what: &'static str) -> Result<&'a T> {
    from.as_ref().ok_or_else(|| missing(what))
}

fn missing(what: &'static str) -> Error {
    Error::bug("a task ran before what it needs was there").with("needs", what)
}
