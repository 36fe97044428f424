//! Experts of many rows each, as prompts have them (a grouped product): all of a pass in two regions of the
//! threads, where each by itself would take four, and x is rounded once for all of them.
//!
//! While some experts of few rows wait for their weights others are busy with many rows: half of the threads
//! begin with those of the most rows, half with those of the fewest, until they meet.
//!
//! For weights of bf16 whose products take pairs (see [`super::pairs`]): there a row of x is anywhere.
//!
//! Legend: T rows of a pass, K experts a row, N rows of an expert, H hidden, F expert width.

use super::biases::Biases;
use super::encoding::Encoding;
use super::expert::{ExpertWeights, GateUp, Projection, add_all, join, join_pairs};
use super::input::{Form, Input, pair_stride, round_pairs};
use super::matrix::Matrix;
#[cfg(target_arch = "x86_64")]
use super::pairs;
use super::pool::Disjoint;
use super::work::{Scratch, Work, sized};
use crate::base::{Error, Result};
use crate::model::kernels::past_caches::Writer;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

/// An expert, and where its outputs go: ascending places t · K + k.
#[derive(Debug, Clone, Copy)]
pub struct Routed<'a> {
    pub weights: ExpertWeights<'a>,
    pub places: &'a [u32],
}

/// Up to this many rows of x long runs of memory are what matters.
const FEW: usize = 4;
/// Rows of W a task, for few rows of x and for more.
const STEPS: [usize; 2] = [256, 48];

/// Whether these experts can be computed together.
pub fn can_group(experts: &[Routed<'_>], work: &Work) -> bool {
    let fits = |p: &Projection<'_>| {
        let w = &p.matrix;
        let bf16 = w.encoding == Encoding::Bf16 && !w.transposed;
        bf16 && Form::of(w.encoding, w.cols, work.level) == Form::Pairs
    };
    experts.iter().all(|e| {
        fits(&e.weights.down)
            && match &e.weights.gate_up {
                GateUp::Apart { gate, up } => fits(gate) && fits(up),
                GateUp::Stacked(p) | GateUp::Interleaved(p) => fits(p),
            }
    })
}

/// Bytes of scratch that [`experts_of_rows`] takes at most, for T rows in all.
pub fn grouped_bytes(
    (rows, top_k): (usize, usize),
    (hidden, width): (usize, usize),
    threads: usize,
) -> usize {
    let numbers = pair_stride(hidden) + top_k * pair_stride(width);
    let task = (STEPS[0] * (2 * FEW + 1)).max(STEPS[1] * (2 * rows + 1));
    2 * rows * numbers + 4 * threads * task + 4 * rows * top_k
}

/// `out[place, :] = weight[place] · expert(x[place / K, :])` for every place of every expert: x `[T, H]`,
/// weight `[T, K]`, out `[T, K, H]`. The bits are those of [`super::expert_at`].
///
/// # Errors
/// [`crate::base::ErrorKind::Input`] when matrices and their bytes do not fit together;
/// [`crate::base::ErrorKind::Bug`] when x, weights and out do not, or unless [`can_group`].
pub fn experts_of_rows(
    experts: &[Routed<'_>],
    x_th: &[f32],
    top_k: usize,
    weight_tk: &[f32],
    out_tkh: &mut [f32],
    work: &mut Work,
) -> Result<()> {
    let Some(first) = experts.first() else { return Ok(()) };
    let (hidden, width) = first.weights.shape()?;
    let rows = x_th.len() / hidden.max(1);
    let mut free = vec![true; rows * top_k];
    // Nobody else has this place.
    let mut takes = |place: &u32| free.get_mut(*place as usize).is_some_and(std::mem::take);
    let mut fits = |e: &Routed<'_>| {
        e.weights.shape().is_ok_and(|shape| shape == (hidden, width))
            && e.places.is_sorted()
            && e.places.iter().all(&mut takes)
    };
    let fit = x_th.len() == rows * hidden
        && weight_tk.len() == rows * top_k
        && out_tkh.len() == weight_tk.len() * hidden;
    if !fit || !can_group(experts, work) || !experts.iter().all(&mut fits) {
        let text = "grouped experts, their rows, weights and outputs do not fit together";
        return Err(Error::bug(text).with("experts", experts.len()).with("rows", rows));
    }
    let Work { pool, scratch, .. } = work;
    let Scratch { inputs: [x, act], gate_up, bias, .. } = scratch;
    let biases = Biases::decode(experts.iter().map(|e| &e.weights), (hidden, width), bias)?;
    let group = Group::new(experts, top_k, (hidden, width), biases);

    x.take(Form::Pairs, x_th, hidden, pool)?;
    let act_nf = Disjoint::new(act.pairs_for(group.sources.len(), width)?);
    let tasks = group.tasks(width);
    let own = Own::new(gate_up, pool.threads(), group.room(&tasks));
    let ends = Ends::new(tasks.len());
    pool.run(tasks.len(), &|thread, _| {
        // SAFETY: matrices are checked, x was taken in, each task has columns of its own.
        unsafe { group.gate_up(&tasks[ends.take(thread)], x, own.of(thread), &act_nf) }
    })?;

    let tasks = group.tasks(hidden);
    let own = Own::new(gate_up, pool.threads(), group.room(&tasks));
    let writer = Writer::to(out_tkh.len());
    let (out, act, ends) = (Disjoint::new(out_tkh), &*act, Ends::new(tasks.len()));
    pool.run(tasks.len(), &|thread, _| {
        // SAFETY: as above; no two rows have the same place.
        unsafe {
            group.down(&tasks[ends.take(thread)], act, own.of(thread), weight_tk, (&out, writer))
        }
    })
}

/// Columns `from..to` of gate and up, or of down's outputs, of an expert.
struct Task {
    expert: usize,
    from: usize,
    to: usize,
}

/// Tasks that are taken from both ends.
struct Ends {
    taken: [AtomicUsize; 2],
    tasks: usize,
}

impl Ends {
    fn new(tasks: usize) -> Self {
        Self { taken: [AtomicUsize::new(0), AtomicUsize::new(0)], tasks }
    }

    /// The next task of a thread. As many calls as there are tasks give each once.
    fn take(&self, thread: usize) -> usize {
        let end = thread % 2;
        let nth = self.taken[end].fetch_add(1, Ordering::Relaxed);
        if end == 0 { nth } else { self.tasks - 1 - nth }
    }
}

/// Room of each thread.
struct Own<'a> {
    room: Disjoint<'a, f32>,
    each: usize,
}

impl<'a> Own<'a> {
    fn new(buffer: &'a mut Vec<f32>, threads: usize, each: usize) -> Self {
        Self { room: Disjoint::new(sized(buffer, threads * each)), each }
    }

    /// # Safety
    /// Each thread asks for its own, and lets go of it before it asks again.
    #[expect(clippy::mut_from_ref, reason = "as of the slice that it is a part of")]
    unsafe fn of(&self, thread: usize) -> &mut [f32] {
        // SAFETY: the caller's.
        unsafe { self.room.range(thread * self.each, self.each) }
    }
}

/// The experts, and their rows one expert after the other.
struct Group<'a> {
    experts: &'a [Routed<'a>],
    /// By the number of their rows, the most first.
    order: Vec<usize>,
    /// Where an expert's rows begin among those of all.
    firsts: Vec<usize>,
    /// The row of x that each is.
    sources: Vec<u32>,
    biases: Biases<'a>,
    hidden: usize,
    width: usize,
}

impl<'a> Group<'a> {
    fn new(
        experts: &'a [Routed<'a>],
        top_k: usize,
        (hidden, width): (usize, usize),
        biases: Biases<'a>,
    ) -> Self {
        let mut order: Vec<usize> = (0..experts.len()).collect();
        order.sort_by_key(|e| std::cmp::Reverse(experts[*e].places.len()));
        let (mut firsts, mut sources) = (Vec::with_capacity(experts.len()), Vec::new());
        for e in experts {
            firsts.push(sources.len());
            sources.extend(e.places.iter().map(|place| place / top_k as u32));
        }
        Self { experts, order, firsts, sources, biases, hidden, width }
    }

    /// All of `columns` of every expert.
    fn tasks(&self, columns: usize) -> Vec<Task> {
        let of = |expert: usize| {
            let step = STEPS[usize::from(self.experts[expert].places.len() > FEW)];
            let task = move |from| Task { expert, from, to: columns.min(from + step) };
            (0..columns).step_by(step).map(task)
        };
        self.order.iter().copied().flat_map(of).collect()
    }

    /// Numbers that a task needs room for at most: gate and up, and a row of what they join to.
    fn room(&self, tasks: &[Task]) -> usize {
        let of =
            |task: &Task| (2 * self.experts[task.expert].places.len() + 1) * (task.to - task.from);
        tasks.iter().map(of).max().unwrap_or(0)
    }

    /// Columns of gate and up, joined and rounded into `act_nf`.
    ///
    /// # Safety
    /// The experts can be grouped, x was taken in, and no other thread holds these columns.
    unsafe fn gate_up(&self, task: &Task, x: &Input, own: &mut [f32], act_nf: &Disjoint<'_, u16>) {
        let &Task { expert, from, to } = task;
        let Routed { weights, places } = &self.experts[expert];
        let (len, n, width, first) = (to - from, places.len(), self.width, self.firsts[expert]);
        let rows =
            Rows { x: x.pairs.as_ptr(), stride: x.pair_stride, list: &self.sources[first..], n };
        let (both, act) = own.split_at_mut(2 * len * n);
        let (gate, up) = both.split_at_mut(len * n);
        // SAFETY: the caller's.
        unsafe {
            match &weights.gate_up {
                GateUp::Apart { gate: g, up: u } => {
                    rows.times(&g.matrix, from..to, gate);
                    rows.times(&u.matrix, from..to, up);
                }
                GateUp::Stacked(p) => {
                    rows.times(&p.matrix, from..to, gate);
                    rows.times(&p.matrix, width + from..width + to, up);
                }
                GateUp::Interleaved(p) => rows.times(&p.matrix, 2 * from..2 * to, both),
            }
        }
        let stride = pair_stride(width);
        // The last columns are followed by zeros.
        let end = if to == width { stride } else { to };
        let bias = self.biases.of(expert).map(|(bias, _)| bias);
        let act = &mut act[..len];
        for row in 0..n {
            // SAFETY: the caller's.
            let rounded = unsafe { act_nf.range((first + row) * stride + from, end - from) };
            if matches!(weights.gate_up, GateUp::Interleaved(_)) {
                let pairs = &mut both[row * 2 * len..][..2 * len];
                if let Some(bias) = bias {
                    add_all(pairs, &bias[2 * from..2 * to]);
                }
                join_pairs(weights.activation, pairs, act);
                round_pairs(act, rounded);
            } else {
                let (gate, up) = both.split_at_mut(len * n);
                let (gate, up) = (&mut gate[row * len..][..len], &mut up[row * len..][..len]);
                if let Some(bias) = bias {
                    add_all(gate, &bias[from..to]);
                    add_all(up, &bias[width + from..width + to]);
                }
                let (rounded, behind) = rounded.split_at_mut(len);
                join(weights.activation, gate, up, rounded);
                behind.fill(0);
            }
        }
    }

    /// Columns of the outputs, weighted, in their places.
    ///
    /// # Safety
    /// As [`Self::gate_up`], whose columns are all there.
    unsafe fn down(
        &self,
        task: &Task,
        act: &Input,
        own: &mut [f32],
        weight_tk: &[f32],
        (out, writer): (&Disjoint<'_, f32>, Writer),
    ) {
        let &Task { expert, from, to } = task;
        let Routed { weights, places } = &self.experts[expert];
        let (len, n, stride) = (to - from, places.len(), pair_stride(self.width));
        let x = act.pairs.as_ptr().wrapping_add(self.firsts[expert] * stride);
        // SAFETY: the caller's.
        unsafe { Rows { x, stride, list: &[], n }.times(&weights.down.matrix, from..to, own) };
        for (place, y) in places.iter().zip(own.chunks_mut(len)) {
            if let Some((_, bias)) = self.biases.of(expert) {
                add_all(y, &bias[from..to]);
            }
            let place = *place as usize;
            // SAFETY: the caller's.
            let out = unsafe { out.range(place * self.hidden + from, len) };
            writer.weigh(weight_tk[place], y, out);
        }
        writer.finish();
    }
}

/// Rows of x, as [`pairs::Call`] has them.
struct Rows<'a> {
    x: *const u16,
    stride: usize,
    list: &'a [u32],
    n: usize,
}

impl Rows<'_> {
    /// Times rows `of` of W: out `[N, of]`.
    ///
    /// # Safety
    /// W is checked and its products take pairs; x and `out` have room for them.
    #[cfg(target_arch = "x86_64")]
    unsafe fn times(&self, w: &Matrix<'_>, of: Range<usize>, out: &mut [f32]) {
        let call = pairs::Call {
            w: w.data.as_ptr(),
            row_bytes: w.data.len() / w.rows,
            x: self.x,
            x_stride: self.stride,
            x_rows: if self.list.is_empty() { std::ptr::null() } else { self.list.as_ptr() },
            n: self.n,
            k: w.cols,
            from: of.start,
            to: of.end,
            out: out.as_mut_ptr().wrapping_sub(of.start),
            out_stride: of.len(),
            add: false,
        };
        // SAFETY: the caller's.
        unsafe { pairs::run(&call) }
    }

    /// There are none of these products.
    #[cfg(not(target_arch = "x86_64"))]
    unsafe fn times(&self, _: &Matrix<'_>, _: Range<usize>, _: &mut [f32]) {}
}
