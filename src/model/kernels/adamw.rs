//! AdamW over flat slices: one pass over master, m, v and gradient.
//!
//! The arithmetic is PyTorch's (`torch.optim.AdamW`, single tensor), in this order:
//! p ← p (1 − lr wd);  m ← m + (g − m)(1 − β1);  v ← v β2 + (1 − β2) g g;
//! p ← p − (lr / bc1) m / (√v / √bc2 + ε), with bc_i = 1 − β_i^step.
//! Elements are independent, so the result does not depend on how the work is divided.

use super::dispatch::dispatched;
use super::parallel::{Threads, parallel_each};
use super::split::{join, split};
use crate::base::{Error, Result, Step};

/// Elements of one unit of work: its five streams fit the second-level cache, so that steps
/// replayed over it cost no further memory traffic.
const CHUNK: usize = 16 * 1024;

/// One step of AdamW (Loshchilov and Hutter, 2019): its number (from 1), its learning rate and
/// its constants.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamStep {
    pub step: Step,
    pub lr: f64,
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f64,
    pub weight_decay: f64,
    /// Gradients are multiplied by it first (clipping by global norm).
    pub grad_scale: f64,
}

/// The step's constants as the loop uses them.
#[derive(Debug, Clone, Copy)]
struct Constants {
    decay: f32,
    take1: f32,
    beta2: f32,
    take2: f32,
    step_size: f32,
    root2: f32,
    eps: f32,
    scale: f32,
}

impl Constants {
    fn of(s: &AdamStep) -> Self {
        let power = s.step.min(i32::MAX as Step) as i32;
        let correction1 = 1.0 - s.beta1.powi(power);
        let correction2 = 1.0 - s.beta2.powi(power);
        Self {
            decay: (1.0 - s.lr * s.weight_decay) as f32,
            take1: (1.0 - s.beta1) as f32,
            beta2: s.beta2 as f32,
            take2: (1.0 - s.beta2) as f32,
            step_size: (s.lr / correction1) as f32,
            root2: (1.0 / correction2.sqrt()) as f32,
            eps: s.eps as f32,
            scale: s.grad_scale as f32,
        }
    }
}

#[inline(always)]
fn element(c: &Constants, w: f32, m: &mut f32, v: &mut f32, g: f32) -> f32 {
    let g = g * c.scale;
    *m += (g - *m) * c.take1;
    *v = *v * c.beta2 + c.take2 * g * g;
    w * c.decay - c.step_size * (*m / (v.sqrt() * c.root2 + c.eps))
}

#[inline(always)]
fn f32_body(c: &Constants, w: &mut [f32], m: &mut [f32], v: &mut [f32], g: &[f32]) {
    for (((w, m), v), &g) in w.iter_mut().zip(m).zip(v).zip(g) {
        *w = element(c, *w, m, v, g);
    }
}

#[inline(always)]
fn f32_idle_body(c: &Constants, w: &mut [f32], m: &mut [f32], v: &mut [f32]) {
    for ((w, m), v) in w.iter_mut().zip(m).zip(v) {
        *w = element(c, *w, m, v, 0.0);
    }
}

#[inline(always)]
fn split_body(
    c: &Constants,
    hi: &mut [u16],
    lo: &mut [i16],
    m: &mut [f32],
    v: &mut [f32],
    g: &[f32],
) {
    for ((((hi, lo), m), v), &g) in hi.iter_mut().zip(lo).zip(m).zip(v).zip(g) {
        (*hi, *lo) = split(element(c, join(*hi, *lo), m, v, g));
    }
}

#[inline(always)]
fn split_idle_body(c: &Constants, hi: &mut [u16], lo: &mut [i16], m: &mut [f32], v: &mut [f32]) {
    for (((hi, lo), m), v) in hi.iter_mut().zip(lo).zip(m).zip(v) {
        (*hi, *lo) = split(element(c, join(*hi, *lo), m, v, 0.0));
    }
}

dispatched! {
    fn f32_run(c: &Constants, w: &mut [f32], m: &mut [f32], v: &mut [f32], g: &[f32]) = f32_body;
}
dispatched! {
    fn f32_idle(c: &Constants, w: &mut [f32], m: &mut [f32], v: &mut [f32]) = f32_idle_body;
}
dispatched! {
    fn split_run(c: &Constants, hi: &mut [u16], lo: &mut [i16], m: &mut [f32], v: &mut [f32], g: &[f32]) = split_body;
}
dispatched! {
    fn split_idle(c: &Constants, hi: &mut [u16], lo: &mut [i16], m: &mut [f32], v: &mut [f32]) = split_idle_body;
}

/// Applies `steps` to f32 masters `w`, moments `m` and `v` (all of one length). All steps but
/// the last have a zero gradient (an idle expert's missed steps, law 6); `g` is the last one's,
/// `None` meaning zeros: the result is bit for bit that of passing zeros.
///
/// # Errors
/// [`crate::base::ErrorKind::Bug`] when lengths differ; otherwise as [`parallel_each`].
pub fn adamw_f32(
    steps: &[AdamStep],
    w: &mut [f32],
    m: &mut [f32],
    v: &mut [f32],
    g: Option<&[f32]>,
    threads: Threads,
) -> Result<()> {
    same_length(w.len(), &[m.len(), v.len(), g.map_or(w.len(), <[f32]>::len)])?;
    let constants: Vec<Constants> = steps.iter().map(Constants::of).collect();
    let mut gradients = g.map(|g| g.chunks(CHUNK));
    let jobs: Vec<_> = (w.chunks_mut(CHUNK).zip(m.chunks_mut(CHUNK)).zip(v.chunks_mut(CHUNK)))
        .map(|((w, m), v)| (w, m, v, gradients.as_mut().and_then(Iterator::next)))
        .collect();
    parallel_each(threads, jobs, |_, (w, m, v, g)| {
        for (i, c) in constants.iter().enumerate() {
            match g {
                Some(g) if i + 1 == constants.len() => f32_run(c, w, m, v, g),
                _ => f32_idle(c, w, m, v),
            }
        }
    })
}

/// As [`adamw_f32`], for masters kept as halves (see [`super::split`]).
///
/// # Errors
/// As [`adamw_f32`].
pub fn adamw_split(
    steps: &[AdamStep],
    hi: &mut [u16],
    lo: &mut [i16],
    m: &mut [f32],
    v: &mut [f32],
    g: Option<&[f32]>,
    threads: Threads,
) -> Result<()> {
    same_length(hi.len(), &[lo.len(), m.len(), v.len(), g.map_or(hi.len(), <[f32]>::len)])?;
    let constants: Vec<Constants> = steps.iter().map(Constants::of).collect();
    let mut gradients = g.map(|g| g.chunks(CHUNK));
    let halves = hi.chunks_mut(CHUNK).zip(lo.chunks_mut(CHUNK));
    let jobs: Vec<_> = (halves.zip(m.chunks_mut(CHUNK)).zip(v.chunks_mut(CHUNK)))
        .map(|(((hi, lo), m), v)| (hi, lo, m, v, gradients.as_mut().and_then(Iterator::next)))
        .collect();
    parallel_each(threads, jobs, |_, (hi, lo, m, v, g)| {
        for (i, c) in constants.iter().enumerate() {
            match g {
                Some(g) if i + 1 == constants.len() => split_run(c, hi, lo, m, v, g),
                _ => split_idle(c, hi, lo, m, v),
            }
        }
    })
}

fn same_length(n: usize, others: &[usize]) -> Result<()> {
    if others.iter().all(|o| *o == n) {
        return Ok(());
    }
    let text = "parameters, moments and gradient differ in length";
    Err(Error::bug(text).with("parameters", n).with("others", format!("{others:?}")))
}
