//! Where everything of a run will be: slots in memory, blocks on SSD.
//!
//! A budget is divided by what a byte saves a step. A weights block is read twice a step and
//! written once, so a byte of it saves three; a state block is read and written once, so a byte
//! saves two, and so does a gradient that waits for the global norm. Hence weights first, then
//! states, then gradients.
//!
//! Without clipping a gradient is consumed at once and a few slots would do. But then states travel
//! during the backward pass alone, and the disk rests in the forward pass. So some updates are
//! carried over to the next forward pass, their gradients waiting in slots: a byte there moves five
//! bytes of traffic from one pass to the other, where a byte for a state saves two.

use crate::base::units::{Bytes, round_up};
use crate::base::{Error, ErrorKind, Part, Result};
use crate::graph::planner::train::Spread;
use crate::model::config::ModelConfig;
use crate::model::expert::ExpertShape;
use crate::model::params::DenseParams;
use crate::storage::hierarchy::SlotClass;
use crate::storage::store::{ClassSpec, StoreSpec};
use serde::Serialize;

/// Slots are multiples of it.
const PAGE: u64 = 4096;

/// Slots that a part which streams works well with: through so many the states pass that do not
/// stay.
const STREAMED: u64 = 12;

/// Updates that ask for their blocks at once.
pub const WINDOW: usize = 8;

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
    /// The share of travelling states whose update is carried over to the next forward pass.
    pub carry: f64,
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
    /// Updates of one rank that wait for the next forward pass, where nothing is clipped.
    pub carried: u32,
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
        fill(&mut slots, [blocks, 0, 0], &mut left, sizes);
        let mut carried = 0;
        if load.clipped {
            fill(&mut slots, [blocks; 3], &mut left, sizes);
        } else {
            fill(&mut slots, [0, 0, blocks.min(WINDOW as u64)], &mut left, sizes);
            carried = carried_of(load.carry, blocks - slots[1], left, (state, grad));
            left -= carried * grad;
            fill(&mut slots, [0, blocks, 0], &mut left, sizes);
            slots[2] += carried;
        }
        let [w, s, g] = slots.map(|n| n as u32);
        Ok(Self {
            blocks: blocks as u32,
            weights_bytes: weights,
            state_bytes: state,
            grad_bytes: grad,
            slots: Slots { weights: w, states: s, grads: g },
            carried: carried as u32,
            states_total: (weights + state + grad) * blocks * load.ranks as u64,
            clipped: load.clipped,
        })
    }

    /// What becomes of one rank's states.
    pub fn spread(&self) -> Spread {
        let all = self.slots.states >= self.blocks;
        let kept =
            if all { self.blocks } else { self.slots.states.saturating_sub(STREAMED as u32) };
        let [blocks, kept, carried] = [self.blocks, kept, self.carried].map(|n| n as usize);
        Spread { blocks, kept, carried }
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

    /// What one rank moves in a step when every expert is used, in steady state.
    pub fn traffic(&self) -> Traffic {
        let blocks = u64::from(self.blocks);
        let missing = |slots: u32| blocks - u64::from(slots).min(blocks);
        let weights = missing(self.slots.weights) * self.weights_bytes;
        let states = missing(self.spread().kept as u32) * self.state_bytes;
        let late = match self.clipped {
            true => states,
            false => u64::from(self.carried) * self.state_bytes,
        };
        let grads = if self.clipped { missing(self.slots.grads) * self.grad_bytes } else { 0 };
        Traffic {
            forward: Moved { read: weights + late + grads, written: late },
            backward: Moved {
                read: weights + states - late,
                written: weights + states - late + grads,
            },
        }
    }
}

/// Bytes that move in the passes of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Traffic {
    pub forward: Moved,
    pub backward: Moved,
}

/// Bytes read and written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Moved {
    pub read: u64,
    pub written: u64,
}

/// Takes slots of each part in turn, up to so many, as long as bytes are left.
fn fill(slots: &mut [u64; 3], most: [u64; 3], left: &mut u64, sizes: [u64; 3]) {
    for ((slots, most), size) in slots.iter_mut().zip(most).zip(sizes) {
        let more = (*left / size).min(most.saturating_sub(*slots));
        *slots += more;
        *left -= more * size;
    }
}

/// How many updates to carry over, where `travelling` states have no slot yet and `left` bytes are
/// for them and the gradients: `carry` of those states that will have none.
fn carried_of(carry: f64, travelling: u64, left: u64, (state, grad): (u64, u64)) -> u64 {
    let [travel, room] = [travelling, left].map(|n| n as f64);
    let [state, grad] = [state, grad].map(|n| n as f64);
    // more · state + carried · grad = room, with carried = carry · (travelling − more)
    let more = ((room - carry * travel * grad) / (state - carry * grad)).clamp(0.0, travel);
    let carried = (carry * (travel - more)) as u64;
    carried.min(left / grad as u64)
}
