//! The group of one rank: every operation is complete at once and brings what went in. It is
//! what a run with one rank uses, and the noop twin of the other backends.

use super::collective::{Collective, Handle};
use crate::base::{Error, Result};
use tch::Tensor;

#[derive(Debug, Clone, Copy, Default)]
pub struct Solo;

impl Collective for Solo {
    fn rank(&self) -> usize {
        0
    }

    fn size(&self) -> usize {
        1
    }

    fn all_to_all_v(&mut self, parts: Vec<Tensor>) -> Result<Handle> {
        if parts.len() != 1 {
            return Err(Error::bug("all_to_all_v wants one part a rank")
                .with("parts", parts.len())
                .with("ranks", 1));
        }
        Ok(Handle::ready(parts))
    }

    fn all_gather(&mut self, tensor: Tensor) -> Result<Handle> {
        Ok(Handle::ready(vec![tensor]))
    }

    fn broadcast(&mut self, tensor: Option<Tensor>, root: usize) -> Result<Handle> {
        match tensor {
            Some(tensor) if root == 0 => Ok(Handle::ready(vec![tensor])),
            _ => Err(Error::bug("a broadcast wants a tensor from its root, and only from it")
                .with("root", root)
                .with("ranks", 1)),
        }
    }

    fn barrier(&mut self) -> Result<Handle> {
        Ok(Handle::ready(Vec::new()))
    }
}
