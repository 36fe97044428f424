//! Where an expert's parameters, states and gradient lie in the bytes of their blocks.

use super::Precision;
use crate::base::{Error, Result};
use crate::model::kernels::split::{join_master, split_master};
use crate::model::kernels::view::{cast, cast_mut};
use crate::model::optim::{Master, Params};
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// The shape of an expert and the layout that follows from it.
///
/// Elements lie flat: gate rows, up rows [2F, H], padding to 64; down rows [H, F], padding to
/// 64. Parts of a block start at multiples of 64 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ExpertShape {
    pub hidden: usize,
    pub width: usize,
    pub precision: Precision,
}

/// Byte ranges of an optimizer-state block. `low` is empty in f32.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateRanges {
    /// Lower halves of the masters, i16.
    pub low: Range<usize>,
    /// First moments, f32.
    pub m: Range<usize>,
    /// Second moments, f32.
    pub v: Range<usize>,
}

const ALIGN_ELEMENTS: usize = 64;

impl ExpertShape {
    pub fn new(hidden: usize, width: usize, precision: Precision) -> Self {
        Self { hidden, width, precision }
    }

    /// Parameters of one expert, without padding: 3 F H.
    pub fn parameters(&self) -> usize {
        3 * self.hidden * self.width
    }

    /// Elements of [gate; up], the tensor [2F, H].
    pub fn gate_up(&self) -> Range<usize> {
        0..2 * self.width * self.hidden
    }

    /// Elements of gate, [F, H].
    pub fn gate(&self) -> Range<usize> {
        0..self.width * self.hidden
    }

    /// Elements of up, [F, H].
    pub fn up(&self) -> Range<usize> {
        self.width * self.hidden..2 * self.width * self.hidden
    }

    /// Elements of down, the tensor [H, F].
    pub fn down(&self) -> Range<usize> {
        let start = self.gate_up().end.next_multiple_of(ALIGN_ELEMENTS);
        start..start + self.hidden * self.width
    }

    /// Elements with padding: the length of every flat array of an expert.
    pub fn elements(&self) -> usize {
        self.down().end.next_multiple_of(ALIGN_ELEMENTS)
    }

    /// Payload bytes of [`crate::base::Part::Weights`].
    pub fn weights_bytes(&self) -> u64 {
        (self.elements() * self.precision.bytes()) as u64
    }

    /// Payload bytes of [`crate::base::Part::State`].
    pub fn state_bytes(&self) -> u64 {
        self.state().v.end as u64
    }

    /// Payload bytes of [`crate::base::Part::Grad`]: f32.
    pub fn grad_bytes(&self) -> u64 {
        (self.elements() * 4) as u64
    }

    /// Where the arrays of a state block lie.
    pub fn state(&self) -> StateRanges {
        let n = self.elements();
        let low = match self.precision {
            Precision::F32 => 0..0,
            Precision::Bf16 => 0..2 * n,
        };
        let m = low.end..low.end + 4 * n;
        StateRanges { m: m.clone(), v: m.end..m.end + 4 * n, low }
    }

    /// The parameters in the bytes of a weights and a state block (at least the payloads).
    ///
    /// # Errors
    /// [`crate::base::ErrorKind::Bug`] when a slice is too short or misaligned.
    pub fn params<'a>(&self, weights: &'a mut [u8], state: &'a mut [u8]) -> Result<Params<'a>> {
        let weights = payload_mut(weights, self.weights_bytes())?;
        let state = payload_mut(state, self.state_bytes())?;
        let ranges = self.state();
        let (low, moments) = state.split_at_mut(ranges.low.end);
        let (m, v) = moments.split_at_mut(ranges.m.len());
        self.params_of(weights, [low, m, v])
    }

    /// The parameters in the bytes of a run of elements: of the weights, and of the arrays of the
    /// state.
    pub(super) fn params_of<'a>(
        &self,
        weights: &'a mut [u8],
        [low, m, v]: [&'a mut [u8]; 3],
    ) -> Result<Params<'a>> {
        let master = match self.precision {
            Precision::F32 => Master::F32(cast_mut(weights)?),
            Precision::Bf16 => Master::Split { hi: cast_mut(weights)?, lo: cast_mut(low)? },
        };
        Ok(Params { master, m: cast_mut(m)?, v: cast_mut(v)? })
    }

    /// Writes masters (flat, [`Self::elements`] long) with zero moments.
    ///
    /// # Errors
    /// As [`Self::params`]; also when `master` has another length.
    pub fn write_master(&self, master: &[f32], weights: &mut [u8], state: &mut [u8]) -> Result<()> {
        let params = self.params(weights, state)?;
        params.m.fill(0.0);
        params.v.fill(0.0);
        match params.master {
            Master::F32(w) if w.len() == master.len() => w.copy_from_slice(master),
            Master::F32(w) => {
                return Err(wrong_length("master", master.len(), w.len()));
            }
            Master::Split { hi, lo } => split_master(master, hi, lo)?,
        }
        Ok(())
    }

    /// Reads masters into `out` (flat, [`Self::elements`] long).
    ///
    /// # Errors
    /// [`crate::base::ErrorKind::Bug`] when a slice is too short or misaligned.
    pub fn read_master(&self, weights: &[u8], state: &[u8], out: &mut [f32]) -> Result<()> {
        let weights = payload(weights, self.weights_bytes())?;
        match self.precision {
            Precision::F32 => {
                let w: &[f32] = cast(weights)?;
                if w.len() != out.len() {
                    return Err(wrong_length("master", out.len(), w.len()));
                }
                out.copy_from_slice(w);
                Ok(())
            }
            Precision::Bf16 => {
                let low = payload(state, self.state().low.end as u64)?;
                join_master(cast(weights)?, cast(low)?, out)
            }
        }
    }

    /// The gradient in the bytes of a gradient block.
    ///
    /// # Errors
    /// As [`Self::params`].
    pub fn grad<'a>(&self, bytes: &'a [u8]) -> Result<&'a [f32]> {
        cast(payload(bytes, self.grad_bytes())?)
    }

    /// The gradient in the bytes of a gradient block, to be changed.
    ///
    /// # Errors
    /// As [`Self::params`].
    pub fn grad_mut<'a>(&self, bytes: &'a mut [u8]) -> Result<&'a mut [f32]> {
        cast_mut(payload_mut(bytes, self.grad_bytes())?)
    }
}

pub(super) fn payload(bytes: &[u8], len: u64) -> Result<&[u8]> {
    let have = bytes.len();
    bytes.get(..len as usize).ok_or_else(|| wrong_length("slot", have, len as usize))
}

pub(super) fn payload_mut(bytes: &mut [u8], len: u64) -> Result<&mut [u8]> {
    let have = bytes.len();
    bytes.get_mut(..len as usize).ok_or_else(|| wrong_length("slot", have, len as usize))
}

pub(super) fn wrong_length(what: &str, got: usize, want: usize) -> Error {
    Error::bug(format!("{what} has the wrong length")).with("got", got).with("wanted", want)
}
