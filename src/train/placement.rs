//! Where everything of a run will be: slots in memory, blocks on SSD.
//!
//! A budget is divided by what a byte saves a step. A weights block is read twice a step and
//! written once, so a byte of it saves three; a state block is read and written once, so a byte
//! saves two, and so does a gradient that waits for the global norm. Hence weights first, then
//! states, then gradients. Gradients that are consumed at once need a few slots only.

use crate::base::units::{Bytes, round_up};
use crate::base::{Error, ErrorKind, Part, Result};
use crate::model::config::ModelConfig;
use crate::model::expert::ExpertShape;
use crate::model::params::DenseParams;
use crate::storage::hierarchy::SlotClass;
use crate::storage::store::{ClassSpec, StoreSpec};
use serde::Serialize;

/// Slots are multiples of it.
const PAGE: u64 = 4096;

/// Slots that a part which streams works well with.
const STREAMED: u64 = 12;

/// What placement depends on.
#[derive(Debug, Clone)]
pub struct Load {
    pub config: ModelConfig,
    pub shape: ExpertShape,
    /// Bytes for slots over all ranks.
    pub host: u64,
    pub ranks: usize,
    /// Sequences and tokens of a step over all ranks.
    pub batch: usize,
    pub micro_batches: usize,
    pub seq: usize,
    pub clipped: bool,
    pub keep_dense: bool,
    pub keep_experts: bool,
    /// Named checkpoints to reserve disk for.
    pub checkpoints: u32,
    pub index_cache: u64,
    /// Threads of one rank's executor.
    pub threads: usize,
}

/// Slots of one rank, by part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Slots {
    pub weights: u32,
    pub states: u32,
    pub grads: u32,
}

/// Where everything of a run will be.
#[derive(Debug, Clone, Serialize)]
pub struct Placement {
    /// Blocks of each part a rank: its experts.
    pub blocks: u32,
    pub weights_bytes: u64,
    pub state_bytes: u64,
    pub grad_bytes: u64,
    pub slots: Slots,
    /// Expert weights, masters, moments and gradients of all ranks.
    pub states_total: u64,
    pub clipped: bool,
}

impl Placement {
    /// Divides the budget.
    ///
    /// # Errors
    /// Budget, with the smallest figure that works.
    pub fn new(load: &Load) -> Result<Self> {
        let blocks = (load.config.layers * load.config.experts / load.ranks) as u64;
        let weights = round_up(load.shape.weights_bytes(), PAGE);
        let state = round_up(load.shape.state_bytes(), PAGE);
        let grad = round_up(load.shape.grad_bytes(), PAGE);
        let minimum = (weights + state + grad) * load.ranks as u64;
        if load.host < minimum {
            return Err(Error::new(
                ErrorKind::Budget,
                format!(
                    "storage.host = {} cannot hold one expert's weights, state and gradient on \
                     each rank: set it to {} or more",
                    Bytes(load.host),
                    Bytes(minimum).rounded_up()
                ),
            ));
        }
        let mut left = load.host / load.ranks as u64;
        let mut slots = [1u64; 3];
        left -= weights + state + grad;
        let sizes = [weights, state, grad];
        // A little of each first, so that loads, computation and updates overlap at all; then, of a
        // budget with room for it, enough states to read and write several while one is updated.
        for (floor, parts, room) in [(4, &[2, 0, 1][..], 1), (STREAMED, &[1], 8)] {
            for floor in 2..=blocks.min(floor) {
                for &part in parts {
                    if left >= room * sizes[part] && slots[part] < floor {
                        slots[part] += 1;
                        left -= sizes[part];
                    }
                }
            }
        }
        let grads = if load.clipped { blocks } else { blocks.min(8) };
        for (part, most) in [(0, blocks), (1, blocks), (2, grads)] {
            let more = (left / sizes[part]).min(most.saturating_sub(slots[part]));
            slots[part] += more;
            left -= more * sizes[part];
        }
        let [w, s, g] = slots.map(|n| n as u32);
        Ok(Self {
            blocks: blocks as u32,
            weights_bytes: weights,
            state_bytes: state,
            grad_bytes: grad,
            slots: Slots { weights: w, states: s, grads: g },
            states_total: (weights + state + grad) * blocks * load.ranks as u64,
            clipped: load.clipped,
        })
    }

    /// The slot classes of one rank.
    pub fn classes(&self) -> Vec<SlotClass> {
        let class = |part, slot_bytes, slots| SlotClass { part, slot_bytes, slots };
        vec![
            class(Part::Weights, self.weights_bytes, self.slots.weights),
            class(Part::State, self.state_bytes, self.slots.states),
            class(Part::Grad, self.grad_bytes, self.slots.grads),
        ]
    }

    /// Bytes of one rank's slots.
    pub fn slot_bytes(&self) -> u64 {
        self.classes().iter().map(|c| c.slot_bytes * u64::from(c.slots)).sum()
    }

    /// What one rank's store must hold.
    pub fn store(&self, load: &Load, identity: serde_json::Value) -> StoreSpec {
        let blocks = u64::from(self.blocks);
        let dense = round_up(DenseParams::state_bytes_of(&load.config), PAGE);
        let class = |part, block_bytes, blocks| ClassSpec { part, block_bytes, blocks };
        let mut classes = vec![
            class(Part::Weights, self.weights_bytes, blocks),
            class(Part::State, self.state_bytes, blocks),
            class(Part::Dense, dense, 1),
        ];
        // Gradients that wait for the norm are spilled when slots run out; a resume may have
        // fewer slots than the run began with.
        if self.clipped {
            classes.push(class(Part::Grad, self.grad_bytes, blocks));
        }
        // Several ranks keep the commit that they have in common.
        let keep = load.checkpoints + u32::from(load.ranks > 1);
        StoreSpec { classes, keep, identity }
    }

    /// Bytes read and written a step by one rank when every expert is used, in steady state.
    pub fn traffic(&self) -> (u64, u64) {
        let blocks = u64::from(self.blocks);
        let missing = |slots: u32| blocks - u64::from(slots).min(blocks);
        let (w, s) = (missing(self.slots.weights), missing(self.slots.states));
        let g = if self.clipped { missing(self.slots.grads) } else { 0 };
        let read = 2 * w * self.weights_bytes + s * self.state_bytes + g * self.grad_bytes;
        let written = w * self.weights_bytes + s * self.state_bytes + g * self.grad_bytes;
        (read, written)
    }
}
