//! Which block leaves when room is needed.
//!
//! ```text
//! hierarchy ── accessed, offer, withdraw, evicted ──▶ policy
//!           ◀── victim ───────────────────────────────
//! ```
//!
//! A policy only ranks: the hierarchy offers it the blocks that may leave, and asks for the one
//! that should. Pinned and dirty blocks, budgets and write-back are not its business, so a bad
//! policy costs time and never breaks a law. There is one policy object for each part.

mod adaptive;
mod counts;
mod lfu;
mod lru;
mod order;
mod planned;
mod random;
mod se_moe;

pub use adaptive::Adaptive;
pub use lfu::Lfu;
pub use lru::Lru;
pub use planned::Planned;
pub use random::Random;
pub use se_moe::SeMoe;

use crate::base::{BlockId, Error};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Ranks the blocks that may leave.
pub trait Policy: Send {
    fn name(&self) -> &'static str;

    /// A ticket asks for `block`, resident or not. Comes before the block is offered again.
    fn accessed(&mut self, block: BlockId);

    /// `block` may leave from now on; the planner expects its next use at `next_use`. Not called
    /// for a block that is on offer.
    fn offer(&mut self, block: BlockId, next_use: u64);

    /// `block` may not leave any more. Not called for a block that is not on offer.
    fn withdraw(&mut self, block: BlockId);

    /// The planner's hour is `now`: uses that were expected before it did not come.
    fn hour(&mut self, _now: u64) {}

    /// `block`, withdrawn before, has lost its slot.
    fn evicted(&mut self, _block: BlockId) {}

    /// The block that should leave; it stays on offer until it is withdrawn. With `later_than`
    /// only a block whose next use is later qualifies; a policy may give up after a short search.
    fn victim(&mut self, later_than: Option<u64>) -> Option<BlockId>;

    /// The block that should leave for one that is needed now and next at `next_use`; `u64::MAX` if that
    /// is not known. Where it is, this is a sweep over more blocks than there are slots, in which uses
    /// alone would give up each block just before its turn: policies of uses let blocks leave first whose
    /// hour came without a use, and then those that are needed furthest in the future.
    fn victim_for(&mut self, _next_use: u64) -> Option<BlockId> {
        self.victim(None)
    }
}

/// How many candidates a policy looks at for one that is needed later than a speculative load.
const SEARCH: usize = 8;

/// The policies that a configuration can name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum PolicyKind {
    /// The block whose next use the planner expects furthest in the future: Belady's choice where
    /// the planner knows the order, as in a training sweep.
    Planned,
    /// The block that was not used for the longest time.
    Lru,
    /// The block with the fewest uses, old uses counting less.
    Lfu,
    /// Algorithm 2 of SE-MoE: hits with a threshold and decay.
    SeMoe,
    /// `lfu` with the memory that would have missed least of late.
    Adaptive,
}

impl PolicyKind {
    pub const ALL: [Self; 5] = [Self::Planned, Self::Lru, Self::Lfu, Self::SeMoe, Self::Adaptive];

    pub fn name(self) -> &'static str {
        match self {
            Self::Planned => "planned",
            Self::Lru => "lru",
            Self::Lfu => "lfu",
            Self::SeMoe => "se-moe",
            Self::Adaptive => "adaptive",
        }
    }
}

impl fmt::Display for PolicyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for PolicyKind {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        Self::ALL.into_iter().find(|kind| kind.name() == text).ok_or_else(|| {
            let known = Self::ALL.map(Self::name).join(", ");
            Error::config(format!("\"{text}\" is no cache policy; there are {known}"))
        })
    }
}

/// A policy with its parameters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PolicyConfig {
    pub kind: PolicyKind,
    /// `se-moe`: a block with fewer hits has not had its chance yet and leaves only if all are so.
    pub threshold: f64,
    /// `se-moe`, `lfu` and `adaptive`: hits are multiplied by this, in (0, 1] ...
    pub beta: f64,
    /// ... every so many accesses to blocks of the part (`adaptive` finds that number).
    pub every: u64,
}

impl Default for PolicyConfig {
    fn default() -> Self {
        Self { kind: PolicyKind::Planned, threshold: 2.0, beta: 0.5, every: 64 }
    }
}

impl PolicyConfig {
    /// For decoding, where texts differ in how long their habits last.
    pub fn for_decoding() -> Self {
        Self { kind: PolicyKind::Adaptive, every: 2048, ..Self::default() }
    }

    /// `kind` with the default parameters.
    pub fn of(kind: PolicyKind) -> Self {
        Self { kind, ..Self::default() }
    }

    /// # Errors
    /// `Config` for a parameter that means nothing.
    pub fn check(&self) -> Result<(), Error> {
        if !(self.beta > 0.0 && self.beta <= 1.0) {
            return Err(Error::config("the policy's beta must be over 0 and at most 1")
                .with("beta", self.beta));
        }
        if !(self.threshold >= 0.0 && self.threshold.is_finite()) {
            return Err(Error::config("the policy's threshold must be a number from 0")
                .with("threshold", self.threshold));
        }
        if self.every == 0 {
            return Err(Error::config("the policy's every must be at least 1 access"));
        }
        Ok(())
    }

    /// A fresh policy, for one part that has `slots`.
    pub fn build(&self, slots: u32) -> Box<dyn Policy> {
        match self.kind {
            PolicyKind::Planned => Box::new(Planned::default()),
            PolicyKind::Lru => Box::new(Lru::default()),
            PolicyKind::Lfu => Box::new(Lfu::new(self.beta, self.every)),
            PolicyKind::Adaptive => Box::new(Adaptive::new(slots, self.beta)),
            PolicyKind::SeMoe => Box::new(SeMoe::new(self.threshold, self.beta, self.every)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn block(expert: usize) -> BlockId {
        BlockId::weights(0, expert)
    }

    #[test]
    fn names_are_read_back() {
        for kind in PolicyKind::ALL {
            assert_eq!(kind.name().parse::<PolicyKind>().unwrap(), kind);
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.name());
            assert_eq!(PolicyConfig::of(kind).build(20).name(), kind.name());
        }
        let refused = "belady".parse::<PolicyKind>().unwrap_err().to_string();
        assert!(refused.contains("planned, lru"), "{refused}");
    }

    #[test]
    fn parameters_are_checked() {
        assert!(PolicyConfig::default().check().is_ok());
        assert!(PolicyConfig { beta: 0.0, ..Default::default() }.check().is_err());
        assert!(PolicyConfig { beta: f64::NAN, ..Default::default() }.check().is_err());
        assert!(PolicyConfig { threshold: -1.0, ..Default::default() }.check().is_err());
        assert!(PolicyConfig { every: 0, ..Default::default() }.check().is_err());
    }

    /// What every policy owes the hierarchy: offered blocks come out, each once, and no others.
    #[test]
    fn every_policy_gives_up_exactly_what_is_offered() {
        let random: Box<dyn Policy> = Box::new(Random::new(7));
        let named = PolicyKind::ALL.map(|kind| PolicyConfig::of(kind).build(20));
        for mut policy in named.into_iter().chain([random]) {
            for expert in 0..20 {
                policy.accessed(block(expert));
                policy.offer(block(expert), expert as u64 * 10);
            }
            policy.withdraw(block(3));
            let mut left = Vec::new();
            while let Some(victim) = policy.victim(None) {
                policy.withdraw(victim);
                policy.evicted(victim);
                left.push(victim);
            }
            left.sort_unstable();
            let expected: Vec<_> = (0..20).filter(|e| *e != 3).map(block).collect();
            assert_eq!(left, expected, "{}", policy.name());
        }
    }

    #[test]
    fn speculative_loads_push_out_only_what_is_needed_later() {
        let random: Box<dyn Policy> = Box::new(Random::new(7));
        let named = PolicyKind::ALL.map(|kind| PolicyConfig::of(kind).build(20));
        for mut policy in named.into_iter().chain([random]) {
            for expert in 0..4 {
                policy.accessed(block(expert));
                policy.offer(block(expert), expert as u64 * 10);
            }
            assert_eq!(policy.victim(Some(30)), None, "{}", policy.name());
            assert_eq!(policy.victim(Some(29)), Some(block(3)), "{}", policy.name());
        }
    }
}
