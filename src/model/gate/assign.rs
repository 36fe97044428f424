//! The dispatched choices of a chunk of tokens, sorted by expert.
//!
//! Law 3: each dispatched (token, choice) pair appears exactly once, in token order within its
//! expert.

use super::Selection;
use super::capacity::for_each_choice;
use crate::base::Result;
use std::ops::Range;

/// Rows of all experts, one after the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assignments {
    /// Rows of expert e are `offsets[e]..offsets[e + 1]`: [E + 1].
    pub offsets: Vec<usize>,
    /// Token of each row.
    pub tokens: Vec<i64>,
    /// token · K + choice of each row: where it lies in a [T, K] tensor.
    pub slots: Vec<i64>,
}

impl Assignments {
    /// Sorts the dispatched choices of `selection` by expert.
    ///
    /// # Errors
    /// [`crate::base::ErrorKind::Bug`] when a choice lies outside 0..E.
    pub fn new(selection: &Selection, experts: usize) -> Result<Self> {
        let mut offsets = vec![0; experts + 1];
        for_each_choice(selection, experts, |_, _, e, kept| offsets[e + 1] += usize::from(kept))?;
        for e in 0..experts {
            offsets[e + 1] += offsets[e];
        }
        let rows = offsets[experts];
        let (mut tokens, mut slots) = (vec![0; rows], vec![0; rows]);
        let mut next = offsets.clone();
        let top_k = selection.top_k();
        for_each_choice(selection, experts, |t, k, e, kept| {
            if !kept {
                return;
            }
            tokens[next[e]] = t as i64;
            slots[next[e]] = (t * top_k + k) as i64;
            next[e] += 1;
        })?;
        Ok(Self { offsets, tokens, slots })
    }

    /// Rows of one expert.
    pub fn rows(&self, expert: usize) -> Range<usize> {
        self.offsets[expert]..self.offsets[expert + 1]
    }

    /// Experts that have rows, in order.
    pub fn experts(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.offsets.len() - 1).filter(|e| !self.rows(*e).is_empty())
    }
}
