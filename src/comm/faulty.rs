//! The faulty twin: any backend, with one planned fault, so that tests need no luck.

use super::collective::{Collective, Handle};
use crate::base::{Error, ErrorKind, Result};
use tch::Tensor;

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The call fails here; the rank stays in its group and sends nothing.
    Error,
    /// The rank leaves its group (as if its thread had died) and the call fails here.
    Death,
    /// The rank stays in its group and sends nothing; the call brings nothing back.
    Silence,
}

/// Passes operations on, until the one with number `at` (from 0) meets `fault`. After that every
/// operation meets it.
#[derive(Debug)]
pub struct Faulty<C> {
    inner: Option<C>,
    rank: usize,
    size: usize,
    fault: Fault,
    at: u64,
    operations: u64,
}

impl<C: Collective> Faulty<C> {
    pub fn new(inner: C, fault: Fault, at: u64) -> Self {
        let (rank, size) = (inner.rank(), inner.size());
        Self { inner: Some(inner), rank, size, fault, at, operations: 0 }
    }

    fn pass(&mut self, call: impl FnOnce(&mut C) -> Result<Handle>) -> Result<Handle> {
        let operation = self.operations;
        self.operations += 1;
        if operation < self.at
            && let Some(inner) = &mut self.inner
        {
            return call(inner);
        }
        match self.fault {
            Fault::Silence => return Ok(Handle::ready(Vec::new())),
            Fault::Error => {}
            Fault::Death => self.inner = None,
        }
        Err(Error::new(ErrorKind::Peer, "a planned fault of a collective")
            .with("rank", self.rank)
            .with("operation", operation))
    }
}

impl<C: Collective> Collective for Faulty<C> {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn all_to_all_v(&mut self, parts: Vec<Tensor>) -> Result<Handle> {
        self.pass(|inner| inner.all_to_all_v(parts))
    }

    fn all_gather(&mut self, tensor: Tensor) -> Result<Handle> {
        self.pass(|inner| inner.all_gather(tensor))
    }

    fn broadcast(&mut self, tensor: Option<Tensor>, root: usize) -> Result<Handle> {
        self.pass(|inner| inner.broadcast(tensor, root))
    }

    fn barrier(&mut self) -> Result<Handle> {
        self.pass(Collective::barrier)
    }
}
