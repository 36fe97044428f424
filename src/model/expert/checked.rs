//! An update of an expert that also takes the checksum of its state block: of the bytes that it
//! finds, of those that it leaves, or of both.
//!
//! Law: the parameters are bit for bit those of the plain update.
//!
//! An update goes over all bytes of the state. An elementwise one is made piece by piece, and a
//! piece's checksums are taken while it is in the second-level cache, by the thread that updates it.

use super::ExpertShape;
use super::shape::{payload_mut, wrong_length};
use crate::base::Result;
use crate::base::checksum::{self, Joiner};
use crate::model::kernels::parallel::{Threads, parallel_each};
use crate::model::optim::{Optimizer, Update};
use std::sync::{Mutex, PoisonError};

/// Elements of a piece: with the checksums' passes over it, its streams fit the cache.
const PIECE: usize = 16 * 1024;

/// What is wanted or known of a state block's bytes, all of its slot.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sums<T> {
    /// As the update finds them.
    pub before: T,
    /// As it leaves them.
    pub after: T,
}

/// The checksums of a piece of each array, each with its length.
type ArraySums = [(u32, usize); 3];

/// Elements of an expert that are updated at once.
struct Piece<'a> {
    weights: &'a mut [u8],
    /// Of each array of the state: low halves (none in f32), first and second moments.
    state: [&'a mut [u8]; 3],
    grad: Option<&'a [f32]>,
    sums: Sums<ArraySums>,
    result: Result<()>,
}

impl Piece<'_> {
    fn sum(&self) -> ArraySums {
        self.state.each_ref().map(|bytes| (checksum::crc32c(bytes), bytes.len()))
    }

    fn update(
        &mut self,
        optimizer: &dyn Optimizer,
        shape: ExpertShape,
        update: &Update<'_>,
    ) -> Result<()> {
        let update = Update { grad: self.grad, threads: Threads::Calling, ..*update };
        let state = self.state.each_mut().map(|bytes| &mut **bytes);
        optimizer.update(&update, shape.params_of(self.weights, state)?)
    }
}

/// Updates the parameters in the bytes of a weights and a state block, and takes the checksums of
/// the state that are wanted. `joiner` keeps what it learns for the next call.
///
/// # Errors
/// As [`ExpertShape::params`] and [`Optimizer::update`].
pub fn update(
    optimizer: &dyn Optimizer,
    shape: ExpertShape,
    u: &Update<'_>,
    (weights, state): (&mut [u8], &mut [u8]),
    wanted: Sums<bool>,
    joiner: &Mutex<Joiner>,
) -> Result<Sums<Option<u32>>> {
    if !optimizer.is_elementwise() || wanted == Sums::default() {
        let before = wanted.before.then(|| sum(state, u.threads, joiner)).transpose()?;
        optimizer.update(u, shape.params(weights, state)?)?;
        let after = wanted.after.then(|| sum(state, u.threads, joiner)).transpose()?;
        return Ok(Sums { before, after });
    }
    let (state, padding) = split_payload(shape, state)?;
    let mut pieces = cut(shape, weights, state, u.grad)?;
    parallel_each(u.threads, pieces.iter_mut().collect(), |_, piece| {
        if wanted.before {
            piece.sums.before = piece.sum();
        }
        piece.result = piece.update(optimizer, shape, u);
        if wanted.after {
            piece.sums.after = piece.sum();
        }
    })?;
    for piece in &mut pieces {
        std::mem::replace(&mut piece.result, Ok(()))?;
    }
    let padding = (checksum::crc32c(padding), padding.len());
    let whole = |sums: fn(&Piece<'_>) -> ArraySums| {
        let arrays = (0..3).flat_map(|array| pieces.iter().map(move |piece| sums(piece)[array]));
        join(joiner, arrays.chain([padding]))
    };
    Ok(Sums {
        before: wanted.before.then(|| whole(|piece| piece.sums.before)),
        after: wanted.after.then(|| whole(|piece| piece.sums.after)),
    })
}

fn join(joiner: &Mutex<Joiner>, parts: impl IntoIterator<Item = (u32, usize)>) -> u32 {
    joiner.lock().unwrap_or_else(PoisonError::into_inner).join(parts)
}

/// The arrays of a state block, and what fills its slot up.
fn split_payload(shape: ExpertShape, state: &mut [u8]) -> Result<(&mut [u8], &[u8])> {
    payload_mut(state, shape.state_bytes())?;
    let (payload, padding) = state.split_at_mut(shape.state_bytes() as usize);
    Ok((payload, padding))
}

fn cut<'a>(
    shape: ExpertShape,
    weights: &'a mut [u8],
    state: &'a mut [u8],
    grad: Option<&'a [f32]>,
) -> Result<Vec<Piece<'a>>> {
    let elements = shape.elements();
    if let Some(grad) = grad.filter(|grad| grad.len() != elements) {
        return Err(wrong_length("gradient", grad.len(), elements));
    }
    let width = shape.precision.bytes();
    let weights = payload_mut(weights, shape.weights_bytes())?.chunks_mut(width * PIECE);
    let (low, moments) = state.split_at_mut(shape.state().low.end);
    let (m, v) = moments.split_at_mut(4 * elements);
    let mut low = low.chunks_mut(2 * PIECE);
    let mut grad = grad.map(|grad| grad.chunks(PIECE));
    let arrays = weights.zip(m.chunks_mut(4 * PIECE)).zip(v.chunks_mut(4 * PIECE));
    let pieces = arrays.map(|((weights, m), v)| Piece {
        weights,
        state: [low.next().unwrap_or_default(), m, v],
        grad: grad.as_mut().and_then(Iterator::next),
        sums: Sums::default(),
        result: Ok(()),
    });
    Ok(pieces.collect())
}

/// The checksum of `bytes`, by pieces.
fn sum(bytes: &[u8], threads: Threads, joiner: &Mutex<Joiner>) -> Result<u32> {
    let pieces = bytes.chunks(4 * PIECE);
    let mut parts: Vec<(u32, usize)> = pieces.clone().map(|piece| (0, piece.len())).collect();
    parallel_each(threads, parts.iter_mut().zip(pieces).collect(), |_, (part, piece)| {
        part.0 = checksum::crc32c(piece);
    })?;
    Ok(join(joiner, parts))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::config::Precision;
    use crate::model::kernels::parallel::same_on_threads;
    use crate::model::optim::{AdamW, Params, StepRate};
    use memmap2::MmapMut;

    const ADAMW: AdamW = AdamW { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1 };

    /// AdamW that is not known to be elementwise.
    struct Whole;

    impl Optimizer for Whole {
        fn name(&self) -> &'static str {
            "whole"
        }

        fn update(&self, update: &Update<'_>, params: Params<'_>) -> Result<()> {
            ADAMW.update(update, params)
        }
    }

    /// Weights and state of an expert, in slots that are longer.
    fn expert(shape: ExpertShape) -> (MmapMut, MmapMut) {
        let slot = |bytes: u64| MmapMut::map_anon(bytes as usize + 4096).unwrap();
        let (mut weights, mut state) = (slot(shape.weights_bytes()), slot(shape.state_bytes()));
        let noise = |at: usize| (at as u32).wrapping_mul(0x9e37_79b9) >> 9;
        let master: Vec<f32> =
            (0..shape.elements()).map(|at| noise(at) as f32 / (1 << 22) as f32 - 1.0).collect();
        shape.write_master(&master, &mut weights, &mut state).unwrap();
        let params = shape.params(&mut weights, &mut state).unwrap();
        params.m.copy_from_slice(&master);
        params.v.iter_mut().zip(&master).for_each(|(v, x)| *v = x * x);
        let padding = shape.state_bytes() as usize;
        state[padding..].fill(0xa5);
        (weights, state)
    }

    fn check(shape: ExpertShape, optimizer: &dyn Optimizer, wanted: Sums<bool>) {
        let grad: Vec<f32> = (0..shape.elements()).map(|at| (at % 77) as f32 - 38.0).collect();
        let steps = [StepRate { step: 3, lr: 0.1 }, StepRate { step: 4, lr: 0.05 }];
        let joiner = Mutex::new(Joiner::default());
        for grad in [Some(&grad[..]), None] {
            let threads = Threads::Pool;
            let u = Update { steps: &steps, grad, grad_scale: 0.5, decay: true, threads };
            let (mut weights, mut state) = expert(shape);
            let old = checksum::crc32c(&state);
            ADAMW.update(&u, shape.params(&mut weights, &mut state).unwrap()).unwrap();
            let new = checksum::crc32c(&state);
            let (mut w, mut s) = expert(shape);
            let sums = update(optimizer, shape, &u, (&mut w, &mut s), wanted, &joiner).unwrap();
            assert!(w[..] == weights[..] && s[..] == state[..] && old != new);
            let (before, after) = (wanted.before.then_some(old), wanted.after.then_some(new));
            assert_eq!(sums, Sums { before, after });
        }
    }

    #[test]
    fn parameters_are_those_of_the_plain_update_and_checksums_those_of_the_state() {
        // Less than a piece, several with a rest, and whole ones.
        for (hidden, width) in [(24, 8), (100, 173), (128, 128)] {
            for precision in [Precision::F32, Precision::Bf16] {
                let shape = ExpertShape::new(hidden, width, precision);
                same_on_threads(|| {
                    for (before, after) in [(true, true), (true, false), (false, true)] {
                        check(shape, &ADAMW, Sums { before, after });
                        check(shape, &Whole, Sums { before, after });
                    }
                    check(shape, &ADAMW, Sums::default());
                });
            }
        }
    }

    #[test]
    fn what_is_too_short_is_refused() {
        let shape = ExpertShape::new(24, 8, Precision::Bf16);
        let (mut weights, mut state) = expert(shape);
        let len = shape.state_bytes() as usize;
        let wanted = Sums { before: true, after: true };
        let joiner = Mutex::new(Joiner::default());
        let steps = [StepRate { step: 1, lr: 0.1 }];
        let grad = vec![0.0; shape.elements() - 1];
        let threads = Threads::Calling;
        let u = Update { steps: &steps, grad: None, grad_scale: 1.0, decay: true, threads };
        let mut run = |u: &Update<'_>, len: usize| {
            let blocks = (&mut weights[..], &mut state[..len]);
            update(&ADAMW, shape, u, blocks, wanted, &joiner).map(drop)
        };
        assert!(run(&u, len).is_ok());
        assert!(run(&u, len - 1).is_err());
        assert!(run(&Update { grad: Some(&grad), ..u }, len).is_err());
    }
}
