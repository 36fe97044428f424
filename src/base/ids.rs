//! Names of things that travel between layers.

use serde::{Deserialize, Serialize};
use std::fmt;

/// An optimizer step, counted from 1; 0 is the state before the first.
pub type Step = u64;

/// What a block of an expert holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum Part {
    /// The weights in the compute type (f32, or the upper half of the f32 master in bf16).
    Weights = 0,
    /// Optimizer state: the lower half of the master (bf16 only), then m, then v.
    State = 1,
    /// The gradient in f32, waiting for its update. Scratch: never committed.
    Grad = 2,
    /// The dense parameters with their optimizer state: one block a rank.
    Dense = 3,
    /// Activations at a layer boundary that backward needs. Scratch: never committed.
    Activation = 4,
}

impl Part {
    pub const ALL: [Self; 5] =
        [Self::Weights, Self::State, Self::Grad, Self::Dense, Self::Activation];

    /// Whether blocks of this part belong to a committed state.
    pub fn is_durable(self) -> bool {
        matches!(self, Self::Weights | Self::State | Self::Dense)
    }
}

/// The unit of storage and movement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct BlockId {
    pub layer: u16,
    pub expert: u16,
    pub part: Part,
}

impl BlockId {
    pub fn new(layer: usize, expert: usize, part: Part) -> Self {
        Self { layer: layer as u16, expert: expert as u16, part }
    }

    pub fn weights(layer: usize, expert: usize) -> Self {
        Self::new(layer, expert, Part::Weights)
    }

    pub fn state(layer: usize, expert: usize) -> Self {
        Self::new(layer, expert, Part::State)
    }

    pub fn grad(layer: usize, expert: usize) -> Self {
        Self::new(layer, expert, Part::Grad)
    }
}

impl fmt::Display for BlockId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let part = match self.part {
            Part::Weights => "weights",
            Part::State => "state",
            Part::Grad => "grad",
            Part::Dense => "dense",
            Part::Activation => "activation",
        };
        write!(f, "layer{}.expert{}.{part}", self.layer, self.expert)
    }
}
