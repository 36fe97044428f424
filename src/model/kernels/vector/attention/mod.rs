//! Causal attention of whole sequences, forward and backward, in f32 vector arithmetic.
//!
//! ```text
//! forward    A  = softmax(s Q Kᵀ)          O = A V, and the logarithm of each row's sum is kept
//! backward   dV = Aᵀ dO                    dS = A ∘ (dO Vᵀ − rowsum(dO ∘ O))
//!            dQ = s dS K                   dK = s dSᵀ Q
//! ```
//!
//! (Dao et al. 2022, FlashAttention, whose backward pass recomputes A from the kept logarithms.) A
//! task is one key/value head of one sequence with all the query heads that share it; queries pass
//! in blocks, each over the keys up to its last query. Law 4: a task computes alone, in a fixed
//! order, so threads change nothing.
//!
//! B sequences, S tokens of one, N query heads, G key/value heads, D head width, P columns of a
//! panel; s = 1/√D.

mod backward;
mod forward;
mod parts;

pub use backward::{AttentionTape, attention_backward};
pub use forward::attention;

use super::floats::padded;
use super::panel;
use super::simd::Simd;
use crate::base::{Error, Result};
use parts::BLOCK;

/// Shape of one call.
#[derive(Debug, Clone, Copy)]
pub struct Heads {
    pub sequences: usize,
    pub tokens: usize,
    pub query_heads: usize,
    pub kv_heads: usize,
    pub dim: usize,
}

impl Heads {
    /// Elements of Q and of the output.
    fn wide(&self) -> usize {
        self.sequences * self.tokens * self.query_heads * self.dim
    }

    /// Elements of K and of V.
    fn narrow(&self) -> usize {
        self.sequences * self.tokens * self.kv_heads * self.dim
    }

    /// Rows of all heads.
    fn rows(&self) -> usize {
        self.sequences * self.tokens * self.query_heads
    }

    fn check(&self, parts: &[(usize, usize)]) -> Result<()> {
        let whole = self.tokens > 0
            && self.kv_heads > 0
            && self.query_heads.is_multiple_of(self.kv_heads)
            && self.dim > 0;
        if whole && parts.iter().all(|(got, want)| got == want) {
            return Ok(());
        }
        let text = "slices of an attention do not fit its shape";
        Err(Error::bug(text).with("shape", format!("{self:?}")).with("sizes", format!("{parts:?}")))
    }

    /// Tokens and elements of a head in whole panels.
    fn panels<S: Simd>(&self) -> [usize; 2] {
        [self.tokens, self.dim].map(|n| n.next_multiple_of(S::PANEL))
    }

    /// Bytes of a thread's scratch.
    pub fn scratch(&self) -> usize {
        let [tokens, dim] = [self.tokens, self.dim].map(|n| n.next_multiple_of(panel()));
        let head = tokens * (2 * self.dim + dim) + 2 * self.tokens * dim;
        let block = BLOCK * (2 * padded(tokens) + 4 * dim);
        4 * (head + block)
    }
}

#[cfg(test)]
mod tests;
