//! The trait that every backend keeps, and the handle of an operation under way.

use crate::base::{Error, Result};
use std::fmt;
use tch::Tensor;

/// What an operation is, for messages and checks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    AllToAllV,
    AllGather,
    /// With the rank that sends.
    Broadcast(usize),
    Barrier,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AllToAllV => f.write_str("all_to_all_v"),
            Self::AllGather => f.write_str("all_gather"),
            Self::Broadcast(root) => write!(f, "broadcast from rank {root}"),
            Self::Barrier => f.write_str("barrier"),
        }
    }
}

/// An operation under way, as a backend keeps it.
pub trait Pending: Send {
    /// Whether [`Pending::wait`] would return at once. Never blocks.
    fn test(&mut self) -> Result<bool>;
    /// Blocks until the operation is complete and gives what it brought.
    fn wait(self: Box<Self>) -> Result<Vec<Tensor>>;
}

/// An operation under way. Handles may be waited for in any order; one that is dropped lets its
/// operation finish and discards what it brings.
#[must_use = "an operation brings its result, or its error, only through its handle"]
pub struct Handle(State);

enum State {
    Ready(Vec<Tensor>),
    Pending(Box<dyn Pending>),
}

impl Handle {
    /// A handle of an operation that is complete.
    pub fn ready(tensors: Vec<Tensor>) -> Self {
        Self(State::Ready(tensors))
    }

    pub fn pending(pending: impl Pending + 'static) -> Self {
        Self(State::Pending(Box::new(pending)))
    }

    /// Whether [`Handle::wait`] would return at once. Never blocks.
    ///
    /// # Errors
    /// A rank that the operation needs is gone or did something else.
    pub fn test(&mut self) -> Result<bool> {
        match &mut self.0 {
            State::Ready(_) => Ok(true),
            State::Pending(pending) => pending.test(),
        }
    }

    /// Blocks until the operation is complete. Gives one tensor a rank, in rank order, of
    /// `all_to_all_v` and `all_gather`; one of `broadcast`; none of `barrier`.
    ///
    /// # Errors
    /// A rank that the operation needs is gone, did something else, or was silent for longer than
    /// the timeout; the message names the rank and the operation.
    pub fn wait(self) -> Result<Vec<Tensor>> {
        match self.0 {
            State::Ready(tensors) => Ok(tensors),
            State::Pending(pending) => pending.wait(),
        }
    }

    /// [`Handle::wait`] for an operation that brings one tensor.
    ///
    /// # Errors
    /// As `wait`; also if it brought another number of tensors.
    pub fn wait_one(self) -> Result<Tensor> {
        let mut tensors = self.wait()?;
        match (tensors.pop(), tensors.len()) {
            (Some(tensor), 0) => Ok(tensor),
            (_, more) => {
                Err(Error::bug("an operation brought other than one tensor").with("more", more))
            }
        }
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match &self.0 {
            State::Ready(_) => "Handle(ready)",
            State::Pending(_) => "Handle(pending)",
        })
    }
}

/// Sums of up to this many elements go whole to every rank (one exchange); longer ones are
/// divided among the ranks (two exchanges, and each element travels twice instead of N-1 times).
const WHOLE_SUM: usize = 4096;

/// One rank's end of a group of ranks. Dropping it takes the rank out of the group.
///
/// A tensor that goes in is given away: it may be a view of a larger buffer only if nobody writes
/// to that part any more, since another rank's thread will read it, and may write to it.
///
/// The first four operations return at once. Every rank of the group calls the same operations in
/// the same order; handles may be waited for in any order.
pub trait Collective: Send {
    /// This rank, from 0.
    fn rank(&self) -> usize;

    /// How many ranks there are.
    fn size(&self) -> usize;

    /// Sends `parts[r]` to rank r (any shapes, also empty) and brings what each rank sent here,
    /// in rank order. This rank's own part comes back as it went in.
    fn all_to_all_v(&mut self, parts: Vec<Tensor>) -> Result<Handle>;

    /// Brings every rank's tensor, in rank order. No two ranks share storage.
    fn all_gather(&mut self, tensor: Tensor) -> Result<Handle>;

    /// Brings rank `root`'s tensor to every rank. Only the root gives one.
    fn broadcast(&mut self, tensor: Option<Tensor>, root: usize) -> Result<Handle>;

    /// Completes once every rank has called it.
    fn barrier(&mut self) -> Result<Handle>;

    /// Sends `parts[r]` to rank r and sums what the ranks sent here in rank order
    /// (((0 + 1) + 2) + …). Blocks. Parts for one rank have one shape.
    fn reduce_scatter_sum(&mut self, parts: Vec<Tensor>) -> Result<Tensor> {
        let parts = self.all_to_all_v(parts)?.wait()?;
        sum_in_order(parts)
    }

    /// Sums one tensor a rank, all of one shape and kind, in rank order: every rank gets
    /// identical bits, and each element is summed as if by one rank alone. Blocks.
    fn all_reduce_sum(&mut self, tensor: Tensor) -> Result<Tensor> {
        let elements = tensor.numel();
        if self.size() == 1 {
            return Ok(tensor);
        }
        if elements <= WHOLE_SUM {
            let all = self.all_gather(tensor)?.wait()?;
            return sum_in_order(all);
        }
        let shape = tensor.size();
        let flat = tensor.f_reshape([-1])?;
        let ranks = self.size() as i64;
        let chunk = (elements as i64 + ranks - 1) / ranks;
        let mut parts = Vec::with_capacity(self.size());
        for rank in 0..ranks {
            let start = (rank * chunk).min(elements as i64);
            let length = chunk.min(elements as i64 - start);
            // A copy, so that the part that travels shares no storage with what stays.
            parts.push(copy_of(&flat.f_narrow(0, start, length)?)?);
        }
        drop(flat);
        drop(tensor);
        let own = self.reduce_scatter_sum(parts)?;
        let chunks = self.all_gather(own)?.wait()?;
        Ok(Tensor::f_cat(&chunks, 0)?.f_reshape(shape)?)
    }

    /// [`Collective::all_reduce_sum`] of a few numbers, such as counts an expert.
    fn all_reduce_sum_f32(&mut self, values: &[f32]) -> Result<Vec<f32>> {
        let sum = self.all_reduce_sum(Tensor::f_from_slice(values)?)?;
        Ok(Vec::try_from(&sum)?)
    }

    /// [`Collective::all_reduce_sum`] of a few numbers in double precision, such as squared
    /// norms.
    fn all_reduce_sum_f64(&mut self, values: &[f64]) -> Result<Vec<f64>> {
        let sum = self.all_reduce_sum(Tensor::f_from_slice(values)?)?;
        Ok(Vec::try_from(&sum)?)
    }
}

fn sum_in_order(parts: Vec<Tensor>) -> Result<Tensor> {
    let mut parts = parts.into_iter();
    let mut sum = parts.next().ok_or_else(|| Error::bug("a sum over no ranks"))?;
    for (i, part) in parts.enumerate() {
        if part.size() != sum.size() || part.kind() != sum.kind() {
            return Err(Error::bug("ranks sum tensors of different shapes or kinds")
                .with("one", format!("{:?} {:?}", sum.size(), sum.kind()))
                .with("other", format!("{:?} {:?}", part.size(), part.kind())));
        }
        // The first operand may be a view of the caller's; what was made here may be written.
        sum = if i == 0 { sum.f_add(&part)? } else { sum.f_add_(&part)? };
    }
    Ok(sum)
}

/// A tensor with storage of its own.
pub(super) fn copy_of(tensor: &Tensor) -> Result<Tensor> {
    let mut copy = tensor.f_empty_like()?;
    copy.f_copy_(tensor)?;
    Ok(copy)
}
