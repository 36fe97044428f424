//! A gated MLP over encoded weights: down(act(gate x, up x)), in two regions of the threads.
//!
//! A task of the first region has some columns of gate and up and joins them; one of the second
//! has some rows of down, and adds them to the outputs.
//!
//! Legend: N rows, H hidden, F expert width.

use super::biases::Biases;
use super::input::{Form, Input};
use super::matrix::{Matrix, Vector};
use super::pool::{Disjoint, Pool};
use super::product::{self, Outputs};
use super::simd::Level;
use super::work::{Scratch, Work, sized};
use crate::base::{Error, Result};
use crate::model::kernels::dispatch::dispatched;
use crate::model::kernels::float::{Number, sigmoid};
use crate::model::kernels::past_caches::Writer;
use serde::{Deserialize, Serialize};

/// Numbers of a vector.
const LANES: usize = 16;

/// What joins gate and up.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// silu(gate) · up (Shazeer, 2020).
    SwiGlu,
    /// gpt-oss: gate at most `limit`, up within ±`limit`; (up + 1) · gate · sigmoid(alpha · gate).
    ClampedSwiGlu { limit: f32, alpha: f32 },
}

impl Activation {
    #[inline(always)]
    pub(super) fn of(self, gate: f32, up: f32) -> f32 {
        match self {
            Self::SwiGlu => gate * sigmoid(gate) * up,
            Self::ClampedSwiGlu { limit, alpha } => {
                let gate = gate.min(limit);
                let up = up.clamp(-limit, limit);
                (up + 1.0) * (gate * sigmoid(alpha * gate))
            }
        }
    }
}

/// A matrix with the bias of its outputs.
#[derive(Debug, Clone, Copy)]
pub struct Projection<'a> {
    pub matrix: Matrix<'a>,
    pub bias: Option<Vector<'a>>,
}

impl<'a> From<Matrix<'a>> for Projection<'a> {
    fn from(matrix: Matrix<'a>) -> Self {
        Self { matrix, bias: None }
    }
}

/// How gate and up lie.
#[derive(Debug, Clone, Copy)]
pub enum GateUp<'a> {
    /// Two matrices [F, H].
    Apart { gate: Projection<'a>, up: Projection<'a> },
    /// One matrix [2F, H]: rows of gate, then rows of up.
    Stacked(Projection<'a>),
    /// One matrix [2F, H]: row 2f is gate's, row 2f + 1 up's (gpt-oss).
    Interleaved(Projection<'a>),
}

/// A routed or shared expert, or a dense MLP.
#[derive(Debug, Clone, Copy)]
pub struct ExpertWeights<'a> {
    pub gate_up: GateUp<'a>,
    /// [H, F].
    pub down: Projection<'a>,
    pub activation: Activation,
}

impl ExpertWeights<'_> {
    /// (H, F), if the matrices fit together.
    ///
    /// # Errors
    /// [`crate::base::ErrorKind::Input`] when they do not.
    pub fn shape(&self) -> Result<(usize, usize)> {
        let down = &self.down.matrix;
        let (hidden, width) = (down.rows, down.cols);
        let fits = match &self.gate_up {
            GateUp::Apart { gate, up } => {
                [gate, up].iter().all(|p| (p.matrix.rows, p.matrix.cols) == (width, hidden))
            }
            GateUp::Stacked(p) | GateUp::Interleaved(p) => {
                (p.matrix.rows, p.matrix.cols) == (2 * width, hidden)
            }
        };
        if fits {
            return Ok((hidden, width));
        }
        let text = "an expert's matrices do not fit together";
        Err(Error::input(text).with("hidden", hidden).with("width", width))
    }
}

/// `out[n, :] += weight[n] · expert(x[n, :])` for the N rows given: x and out `[N, H]`.
///
/// Law 4: a row's result depends on its x and weight alone, as [`super::linear`]'s does.
///
/// # Errors
/// [`crate::base::ErrorKind::Input`] when matrices and their bytes do not fit together;
/// [`crate::base::ErrorKind::Bug`] when x, weights and out do not.
pub fn expert(
    e: &ExpertWeights<'_>,
    x_nh: &[f32],
    weight_n: &[f32],
    out_nh: &mut [f32],
    work: &mut Work,
) -> Result<()> {
    let fit = out_nh.len() == x_nh.len();
    run(e, x_nh, weight_n, out_nh, fit, None, work)
}

/// `out[places[n], :] = weight[n] · expert(x[n, :])` for the N rows given, each with a place of its own: x
/// `[N, H]`, out `[K, H]`. The bits are those of [`expert`] onto zeros.
///
/// # Errors
/// As [`expert`].
pub fn expert_at(
    e: &ExpertWeights<'_>,
    x_nh: &[f32],
    weight_n: &[f32],
    places: &[u32],
    out_kh: &mut [f32],
    work: &mut Work,
) -> Result<()> {
    let rows = out_kh.len() / e.down.matrix.rows.max(1);
    let fit = places.len() == weight_n.len()
        && places.is_sorted_by(|a, b| a < b)
        && places.last().is_none_or(|last| (*last as usize) < rows);
    run(e, x_nh, weight_n, out_kh, fit, Some(places), work)
}

/// Both; without places row n goes to place n and is added. `fit`: out has these places.
fn run(
    e: &ExpertWeights<'_>,
    x_nh: &[f32],
    weight_n: &[f32],
    out: &mut [f32],
    fit: bool,
    places: Option<&[u32]>,
    work: &mut Work,
) -> Result<()> {
    let (hidden, width) = e.shape()?;
    let rows = weight_n.len();
    if x_nh.len() != rows * hidden || !fit {
        let text = "an expert's rows, weights and outputs do not fit together";
        return Err(Error::bug(text)
            .with("rows", rows)
            .with("hidden", hidden)
            .with("x", x_nh.len())
            .with("out", out.len()));
    }
    let writer = Writer::to(out.len());
    let target = Disjoint::new(out);
    let Work { pool, scratch, level } = work;
    let Scratch { inputs, gate_up, act, out, bias } = scratch;
    let biases = Biases::decode(std::iter::once(e), (hidden, width), bias)?;
    let act_nf = sized(act, rows * width);

    e.take_in(inputs, x_nh, hidden, *level, pool)?;
    let call = GateUpCall {
        e,
        level: *level,
        x_nh,
        inputs,
        bias: biases.of(0).map(|(bias, _)| bias),
        width,
        first: 0,
        gate_up: Disjoint::new(sized(gate_up, rows * 2 * width)),
        act: Disjoint::new(act_nf),
    };
    let step = product::task_rows(e.first(), 2 * rows, *level, pool.threads(), 1);
    pool.run(width.div_ceil(step), &|_, task| {
        // SAFETY: matrices are checked, x was taken in, each task has columns of its own.
        unsafe { call.columns(task * step, width.min((task + 1) * step)) }
    })?;

    let [input, _] = inputs;
    let down = &e.down.matrix;
    take(input, down, act_nf, *level, pool)?;
    let y = sized(out, rows * hidden);
    let y = Outputs { all: Disjoint::new(y), stride: hidden, offset: 0, add: false };
    let (act_nf, input, level) = (&*act_nf, &*input, *level);
    let step = product::task_rows(down, rows, level, pool.threads(), 1);
    pool.run(hidden.div_ceil(step), &|_, task| {
        let (from, to) = (task * step, hidden.min((task + 1) * step));
        // SAFETY: as above.
        unsafe { product::rows(level, down, act_nf, input, &y, from, to) };
        for (n, weight) in weight_n.iter().enumerate() {
            let place = places.map_or(n, |places| places[n] as usize);
            let len = to - from;
            // SAFETY: these rows of W are this task's, and so are their outputs; no two rows of x have
            // the same place.
            let (out, y) = unsafe {
                (target.range(place * hidden + from, len), y.all.range(n * hidden + from, len))
            };
            if let Some((_, bias)) = biases.of(0) {
                add_all(y, &bias[from..to]);
            }
            match places {
                Some(_) => writer.weigh(*weight, y, out),
                None => out.iter_mut().zip(y).for_each(|(out, y)| *out += weight * *y),
            }
        }
        writer.finish();
    })
}

pub(super) fn add_all(y: &mut [f32], bias: &[f32]) {
    for (y, bias) in y.iter_mut().zip(bias) {
        *y += bias;
    }
}

/// Takes x in as W wants it.
pub(super) fn take(
    input: &mut Input,
    w: &Matrix<'_>,
    x_nk: &[f32],
    level: Level,
    pool: &mut Pool,
) -> Result<()> {
    if w.transposed {
        return Ok(());
    }
    input.take(Form::of(w.encoding, w.cols, level), x_nk, w.cols, pool)
}

impl ExpertWeights<'_> {
    /// Whether both have the same shape, and want activations in the same form.
    pub(super) fn is_like(&self, other: &Self, level: Level) -> bool {
        let kind = |e: &Self| std::mem::discriminant(&e.gate_up);
        let mut pairs = self.projections().into_iter().zip(other.projections());
        let alike = |a: &Projection<'_>, b: &Projection<'_>| {
            let shape = |p: &Projection<'_>| (p.matrix.rows, p.matrix.cols);
            shape(a) == shape(b) && same_form(a, b, level)
        };
        kind(self) == kind(other) && pairs.all(|(a, b)| alike(a, b))
    }

    /// Gate, up (the same one where both are in one matrix), down.
    pub(super) fn projections(&self) -> [&Projection<'_>; 3] {
        match &self.gate_up {
            GateUp::Apart { gate, up } => [gate, up, &self.down],
            GateUp::Stacked(p) | GateUp::Interleaved(p) => [p, p, &self.down],
        }
    }

    /// Gate, or gate and up.
    pub(super) fn first(&self) -> &Matrix<'_> {
        match &self.gate_up {
            GateUp::Apart { gate, .. } => &gate.matrix,
            GateUp::Stacked(p) | GateUp::Interleaved(p) => &p.matrix,
        }
    }

    pub(super) fn take_in(
        &self,
        inputs: &mut [Input; 2],
        x_nh: &[f32],
        hidden: usize,
        level: Level,
        pool: &mut Pool,
    ) -> Result<()> {
        debug_assert_eq!(self.first().cols, hidden);
        let [first, second] = inputs;
        take(first, self.first(), x_nh, level, pool)?;
        match &self.gate_up {
            GateUp::Apart { gate, up } if !same_form(gate, up, level) => {
                take(second, &up.matrix, x_nh, level, pool)
            }
            _ => Ok(()),
        }
    }
}

fn same_form(a: &Projection<'_>, b: &Projection<'_>, level: Level) -> bool {
    let form = |p: &Projection<'_>| {
        (Form::of(p.matrix.encoding, p.matrix.cols, level), p.matrix.transposed)
    };
    form(a) == form(b)
}

/// The first half of an expert.
pub(super) struct GateUpCall<'a> {
    pub e: &'a ExpertWeights<'a>,
    pub level: Level,
    pub x_nh: &'a [f32],
    pub inputs: &'a [Input; 2],
    pub bias: Option<&'a [f32]>,
    pub width: usize,
    /// The first of its rows of what follows.
    pub first: usize,
    /// [N, 2F], as the projections lie: gate, then up; or in turn.
    pub gate_up: Disjoint<'a, f32>,
    pub act: Disjoint<'a, f32>,
}

impl GateUpCall<'_> {
    /// Columns `from..to` of the activations of all rows.
    ///
    /// # Safety
    /// As [`product::rows`].
    pub(super) unsafe fn columns(&self, from: usize, to: usize) {
        let width = self.width;
        // SAFETY: the caller's.
        unsafe {
            match &self.e.gate_up {
                GateUp::Apart { gate, up } => {
                    let second = usize::from(!same_form(gate, up, self.level));
                    self.rows(&gate.matrix, 0, 0, from, to);
                    self.rows(&up.matrix, second, width, from, to);
                }
                GateUp::Stacked(p) => {
                    self.rows(&p.matrix, 0, 0, from, to);
                    self.rows(&p.matrix, 0, 0, width + from, width + to);
                }
                GateUp::Interleaved(p) => self.rows(&p.matrix, 0, 0, 2 * from, 2 * to),
            }
        }
        for n in 0..self.x_nh.len() / self.first_cols() {
            // SAFETY: these columns are this task's.
            unsafe { self.activate(self.first + n, from, to - from) }
        }
    }

    fn first_cols(&self) -> usize {
        self.e.first().cols.max(1)
    }

    /// # Safety
    /// As [`product::rows`].
    unsafe fn rows(&self, w: &Matrix<'_>, input: usize, offset: usize, from: usize, to: usize) {
        let (all, stride) = (self.gate_up.again(), 2 * self.width);
        let out = Outputs { all, stride, offset: self.first * stride + offset, add: false };
        // SAFETY: the caller's.
        unsafe { product::rows(self.level, w, self.x_nh, &self.inputs[input], &out, from, to) }
    }

    /// Joins gate and up of row `n`.
    ///
    /// # Safety
    /// No other thread holds these columns.
    unsafe fn activate(&self, n: usize, from: usize, len: usize) {
        let (width, row) = (self.width, n * 2 * self.width);
        // SAFETY: the caller's.
        let act = unsafe { self.act.range(n * width + from, len) };
        let activation = self.e.activation;
        if matches!(self.e.gate_up, GateUp::Interleaved(_)) {
            // SAFETY: the caller's.
            let pairs = unsafe { self.gate_up.range(row + 2 * from, 2 * len) };
            if let Some(bias) = self.bias {
                add_all(pairs, &bias[2 * from..2 * (from + len)]);
            }
            return join_pairs(activation, pairs, act);
        }
        // SAFETY: the caller's; gate and up lie apart.
        let (gate, up) = unsafe {
            (self.gate_up.range(row + from, len), self.gate_up.range(row + width + from, len))
        };
        if let Some(bias) = self.bias {
            add_all(gate, &bias[from..from + len]);
            add_all(up, &bias[width + from..width + from + len]);
        }
        join(activation, gate, up, act);
    }
}

dispatched! {
    /// What gate and up come to, in f32 or bf16.
    pub(super) fn join<T: Number>(activation: Activation, gate: &[f32], up: &[f32], act: &mut [T]) = join_body;
}
dispatched! {
    pub(super) fn join_pairs(activation: Activation, pairs: &[f32], act: &mut [f32]) = join_pairs_body;
}

#[inline(always)]
fn join_body<T: Number>(activation: Activation, gate: &[f32], up: &[f32], act: &mut [T]) {
    // Whole vectors as arrays: a task has few columns, fewer than a loop is unrolled to. (Closures over
    // arrays would leave this function, and its instruction set.)
    let (acts, act) = act.as_chunks_mut::<LANES>();
    let (gates, gate) = gate.as_chunks::<LANES>();
    let (ups, up) = up.as_chunks::<LANES>();
    for ((act, gate), up) in acts.iter_mut().zip(gates).zip(ups) {
        for i in 0..LANES {
            act[i] = T::store(activation.of(gate[i], up[i]));
        }
    }
    for ((act, gate), up) in act.iter_mut().zip(gate).zip(up) {
        *act = T::store(activation.of(*gate, *up));
    }
}

#[inline(always)]
fn join_pairs_body(activation: Activation, pairs: &[f32], act: &mut [f32]) {
    for (act, pair) in act.iter_mut().zip(pairs.as_chunks::<2>().0) {
        *act = activation.of(pair[0], pair[1]);
    }
}
