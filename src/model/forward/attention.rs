//! Attention of one layer over the caches of its rows' sequences.
//!
//! ```text
//! y ─► q, k, v (bias, norm, clamp) ─► rotate ─► append k, v ─► attend ─► output ─(+)─► x
//! ```
//!
//! Legend: T rows, H hidden, N query heads, G key/value heads, D head width.

use super::cache::KvCache;
use super::latent::Latents;
use super::rows::{Run, each_row, each_task};
use super::tensors::Weights;
use crate::base::Result;
use crate::model::config::ModelConfig;
use crate::model::family::{QkNorm, Slot};
use crate::model::kernels::attend::{self, QUERIES, Query};
use crate::model::kernels::linear::{
    Activations, Disjoint, OwnedMatrix, Pool, Work, linear, linears,
};
use crate::model::kernels::rows::{add, rms_norm_onto, rotate_halves, rotate_pairs};
use crate::model::rotary::Angles;

/// A matrix with the bias of its outputs.
#[derive(Debug)]
pub(super) struct Projection {
    pub(super) matrix: OwnedMatrix,
    pub(super) bias: Option<Vec<f32>>,
}

impl Projection {
    pub(super) fn load(
        weights: &Weights<'_>,
        layer: usize,
        matrix: Slot,
        bias: Slot,
    ) -> Result<Self> {
        let layer = Some(layer);
        Ok(Self { matrix: weights.need(layer, matrix)?, bias: weights.floats(layer, bias)? })
    }

    /// out = W x + bias for every row, added to what is there where `onto`.
    pub(super) fn apply(
        &self,
        x: &[f32],
        out: &mut [f32],
        onto: bool,
        work: &mut Work,
    ) -> Result<()> {
        linear(&self.matrix.view(), x, out, onto, work)?;
        self.add_bias(out);
        Ok(())
    }

    fn add_bias(&self, out: &mut [f32]) {
        if let Some(bias) = &self.bias {
            out.chunks_mut(bias.len()).for_each(|out| add(out, bias));
        }
    }
}

/// Buffers of a call, kept from one to the next.
#[derive(Default)]
pub(super) struct Buffers {
    pub(super) q: Vec<f32>,
    pub(super) k: Vec<f32>,
    pub(super) v: Vec<f32>,
    pub(super) latent: Vec<f32>,
    pub(super) queries: Vec<f32>,
    pub(super) context: Vec<f32>,
    pub(super) heads: Vec<f32>,
    pub(super) passes: Vec<Pass>,
    pub(super) threads: Vec<Thread>,
}

/// What each thread keeps.
pub(super) struct Thread {
    attend: attend::Scratch,
    /// Outputs of a pass.
    attended: Vec<f32>,
    pub(super) work: Work,
    pub(super) x: Vec<f32>,
    pub(super) out: Vec<f32>,
    /// Rows that the buffers of latent attention have room for.
    pub(super) rows: usize,
}

impl Buffers {
    /// Bytes that it holds.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        let Self { q, k, v, latent, queries, context, heads, passes, threads } = self;
        let all = [q, k, v, latent, queries, context, heads];
        let of = |t: &Thread| [&t.attended, &t.x, &t.out].map(Vec::capacity).iter().sum::<usize>();
        let thread = |t: &Thread| 4 * of(t) + t.attend.bytes();
        all.iter().map(|buffer| 4 * buffer.capacity()).sum::<usize>()
            + passes.capacity() * size_of::<Pass>()
            + threads.iter().map(thread).sum::<usize>()
    }

    pub(super) fn for_threads(&mut self, threads: usize, activations: Activations) -> Result<()> {
        while self.threads.len() < threads {
            self.threads.push(Thread {
                attend: attend::Scratch::default(),
                attended: Vec::new(),
                work: Work::new(1, activations)?,
                x: Vec::new(),
                out: Vec::new(),
                rows: 0,
            });
        }
        Ok(())
    }
}

/// The first `len` elements of a buffer that grows, to just what is asked, and never shrinks.
pub(super) fn sized(buffer: &mut Vec<f32>, len: usize) -> &mut [f32] {
    if buffer.len() < len {
        buffer.reserve_exact(len - buffer.len());
        buffer.resize(len, 0.0);
    }
    &mut buffer[..len]
}

/// One pass of the kernel: some queries of one key/value head.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pass {
    run: Run,
    head: usize,
    /// Queries of the run and head are counted row by row, in each the query heads of the group.
    first: usize,
    queries: usize,
}

/// Where the queries lie: a row's query of head n is at `row · row_stride + n · head_stride`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Queries<'a> {
    pub(super) data: &'a [f32],
    pub(super) dim: usize,
    pub(super) row_stride: usize,
    pub(super) head_stride: usize,
}

/// Where the outputs go: those of a row's query head n at `row · row_stride + n · head_stride`.
pub(super) struct Outputs<'a> {
    pub(super) data: &'a mut [f32],
    pub(super) row_stride: usize,
    pub(super) head_stride: usize,
}

/// What the scores of a layer obey.
#[derive(Debug)]
pub(super) struct Rules {
    pub(super) layer: usize,
    heads: usize,
    kv_heads: usize,
    value_dim: usize,
    window: Option<usize>,
    sinks: Option<Vec<f32>>,
}

/// Attention of one layer.
#[derive(Debug)]
pub(super) struct Attention {
    kind: Kind,
    rules: Rules,
    o: Projection,
}

#[derive(Debug)]
enum Kind {
    Heads(Heads),
    Latent(Latents),
}

/// Keys and values of heads.
#[derive(Debug)]
struct Heads {
    q: Projection,
    k: Projection,
    v: Projection,
    q_norm: Option<Vec<f32>>,
    k_norm: Option<Vec<f32>>,
    norm: QkNorm,
    eps: f32,
    clip: Option<f32>,
    interleaved: bool,
    head_dim: usize,
    /// Factor of the scores: 1 / sqrt(D).
    scale: f32,
}

impl Attention {
    pub(super) fn load(config: &ModelConfig, weights: &Weights<'_>, layer: usize) -> Result<Self> {
        let at = Some(layer);
        let kind = match &config.latent {
            Some(latent) => Kind::Latent(Latents::load(config, latent, weights, layer)?),
            None => Kind::Heads(Heads {
                q: Projection::load(weights, layer, Slot::Q, Slot::QBias)?,
                k: Projection::load(weights, layer, Slot::K, Slot::KBias)?,
                v: Projection::load(weights, layer, Slot::V, Slot::VBias)?,
                q_norm: weights.floats(at, Slot::QNorm)?,
                k_norm: weights.floats(at, Slot::KNorm)?,
                norm: config.qk_norm,
                eps: config.norm_eps as f32,
                clip: config.clip_qkv.map(|clip| clip as f32),
                interleaved: config.rope_interleaved,
                head_dim: config.head_dim,
                scale: (config.head_dim as f32).sqrt().recip(),
            }),
        };
        let rules = Rules {
            layer,
            heads: config.heads,
            kv_heads: if config.latent.is_some() { 1 } else { config.kv_heads },
            value_dim: config.latent.map_or(config.head_dim, |latent| latent.kv_rank),
            window: config.window(layer),
            sinks: weights.floats(at, Slot::Sinks)?,
        };
        let o = Projection::load(weights, layer, Slot::O, Slot::OBias)?;
        Ok(Self { kind, rules, o })
    }

    /// Adds attention over `y_th`, the normed input, to `x_th`. Where the call asks for fewer rows, they come
    /// first in both.
    pub(super) fn apply(
        &self,
        y_th: &mut [f32],
        x_th: &mut [f32],
        call: &Call<'_>,
        caches: &mut [KvCache],
        buffers: &mut Buffers,
        work: &mut Work,
    ) -> Result<()> {
        buffers.for_threads(work.threads(), work.activations())?;
        match &self.kind {
            Kind::Heads(heads) => heads.apply(&self.rules, y_th, call, caches, buffers, work)?,
            Kind::Latent(latents) => {
                latents.apply(&self.rules, y_th, call, caches, buffers, work)?;
            }
        }
        let (rows, width) = (call.asked.rows, self.o.matrix.cols);
        if rows == 0 {
            return Ok(());
        }
        call.narrow(x_th);
        let x = &mut x_th[..rows * self.o.matrix.rows];
        self.o.apply(&buffers.context[..rows * width], x, true, work)
    }
}

/// Some rows and the angles of their positions.
#[derive(Clone, Copy)]
pub(super) struct Part<'a> {
    pub(super) rows: usize,
    pub(super) runs: &'a [Run],
    pub(super) angles: &'a Angles,
}

/// The rows of a call.
pub(super) struct Call<'a> {
    /// Those whose keys and values are appended.
    pub(super) fed: Part<'a>,
    /// Those that attend, and which of the fed ones they are; None: all.
    pub(super) asked: Part<'a>,
    pub(super) which: Option<&'a [usize]>,
}

impl Call<'_> {
    /// Moves the rows that are asked for to the front of all that are fed.
    pub(super) fn narrow(&self, fed: &mut [f32]) {
        let Some(which) = self.which else { return };
        let width = fed.len() / self.fed.rows.max(1);
        for (to, from) in which.iter().enumerate() {
            fed.copy_within(from * width..(from + 1) * width, to * width);
        }
    }
}

impl Heads {
    /// Leaves the outputs of the heads of the rows that are asked for, `[T, N·D]`, in `buffers.context`, and
    /// their `y_th` in front.
    fn apply(
        &self,
        rules: &Rules,
        y_th: &mut [f32],
        call: &Call<'_>,
        caches: &mut [KvCache],
        buffers: &mut Buffers,
        work: &mut Work,
    ) -> Result<()> {
        let Call { fed, asked, which } = call;
        let (q_width, kv_width) = (self.q.matrix.rows, self.k.matrix.rows);
        let q = sized(&mut buffers.q, asked.rows * q_width);
        let k = sized(&mut buffers.k, fed.rows * kv_width);
        let v = sized(&mut buffers.v, fed.rows * kv_width);
        let [wq, wk, wv] = [&self.q, &self.k, &self.v].map(|part| part.matrix.view());
        if which.is_none() {
            linears([(wq, &mut *q), (wk, &mut *k), (wv, &mut *v)], y_th, work)?;
        } else {
            linears([(wk, &mut *k), (wv, &mut *v)], y_th, work)?;
            call.narrow(y_th);
            linear(&wq, &y_th[..asked.rows * wq.cols], q, false, work)?;
        }
        for (part, out) in [(&self.q, &mut *q), (&self.k, &mut *k), (&self.v, &mut *v)] {
            part.add_bias(out);
        }
        let pool = work.pool();
        each_row(pool, q, q_width, |row, q| {
            self.turn(q, self.q_norm.as_deref(), asked.angles.row(row));
            q.iter_mut().for_each(|q| *q *= self.scale);
        })?;
        each_row(pool, k, kv_width, |row, k| {
            self.turn(k, self.k_norm.as_deref(), fed.angles.row(row));
        })?;
        if let Some(clip) = self.clip {
            v.iter_mut().for_each(|v| *v = v.clamp(-clip, clip));
        }
        for run in fed.runs {
            let rows = run.first * kv_width..(run.first + run.rows) * kv_width;
            let cache = &mut caches[run.sequence];
            cache.append(rules.layer, run.position, &k[rows.clone()], &v[rows], pool)?;
        }
        if asked.rows == 0 {
            return Ok(());
        }
        let d = self.head_dim;
        let queries = Queries { data: q, dim: d, row_stride: q_width, head_stride: d };
        let context = sized(&mut buffers.context, asked.rows * q_width);
        let outputs = Outputs { data: context, row_stride: q_width, head_stride: d };
        let Buffers { passes, threads, .. } = buffers;
        rules.attend((queries, outputs), asked.runs, caches, passes, threads, pool)
    }

    /// Norm, clamp and rotation of one row's heads. OLMoE clamps after its norm.
    fn turn(&self, x: &mut [f32], norm: Option<&[f32]>, (cos, sin): (&[f32], &[f32])) {
        let d = self.head_dim;
        match (self.norm, norm) {
            (QkNorm::Full, Some(norm)) => rms_norm_onto(x, norm, self.eps),
            (QkNorm::PerHead, Some(norm)) => {
                x.chunks_mut(d).for_each(|head| rms_norm_onto(head, norm, self.eps));
            }
            _ => {}
        }
        if let Some(clip) = self.clip {
            x.iter_mut().for_each(|x| *x = x.clamp(-clip, clip));
        }
        for head in x.chunks_mut(d) {
            rotate(&mut head[..2 * cos.len()], cos, sin, self.interleaved);
        }
    }
}

pub(super) fn rotate(x: &mut [f32], cos: &[f32], sin: &[f32], interleaved: bool) {
    if interleaved { rotate_pairs(x, cos, sin) } else { rotate_halves(x, cos, sin) }
}

impl Rules {
    /// Query heads of one key/value head.
    fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// Runs all queries of a call, on all threads.
    pub(super) fn attend(
        &self,
        (queries, outputs): (Queries<'_>, Outputs<'_>),
        runs: &[Run],
        caches: &[KvCache],
        passes: &mut Vec<Pass>,
        threads: &mut [Thread],
        pool: &mut Pool,
    ) -> Result<()> {
        passes.clear();
        for run in runs {
            let all = run.rows * self.group();
            for head in 0..self.kv_heads {
                passes.extend((0..all).step_by(QUERIES).map(|first| Pass {
                    run: *run,
                    head,
                    first,
                    queries: QUERIES.min(all - first),
                }));
            }
        }
        let longest = caches.iter().map(KvCache::capacity).max().unwrap_or(0);
        let any = caches.first().map(|cache| cache.head(self.layer, 0)).transpose()?;
        for thread in &mut *threads {
            any.iter().for_each(|head| thread.attend.reserve(longest, head));
            sized(&mut thread.attended, QUERIES * self.value_dim);
        }
        let Outputs { data, row_stride, head_stride } = outputs;
        let (data, dim) = (Disjoint::new(data), self.value_dim);
        each_task(pool, threads, passes.len(), |thread, task| {
            let pass = &passes[task];
            let head = caches[pass.run.sequence].head(self.layer, pass.head)?;
            let mut all = [Query::default(); QUERIES];
            let all = &mut all[..pass.queries];
            for (i, query) in all.iter_mut().enumerate() {
                *query = self.query(queries, pass, i);
            }
            let out = &mut thread.attended[..pass.queries * dim];
            attend::attend(&head, all, &mut thread.attend, out);
            for (i, out) in out.chunks(dim).enumerate() {
                let (row, n) = pass.query(i, self.group());
                let at = (pass.run.first + row) * row_stride + n * head_stride;
                // SAFETY: each query head of a row is one pass's.
                unsafe { data.range(at, dim) }.copy_from_slice(out);
            }
            Ok(())
        })
    }

    /// Query `i` of a pass, with the keys that its position and the window let it see.
    fn query<'a>(&self, queries: Queries<'a>, pass: &Pass, i: usize) -> Query<'a> {
        let (row, n) = pass.query(i, self.group());
        let at = (pass.run.first + row) * queries.row_stride + n * queries.head_stride;
        let end = pass.run.position + row + 1;
        Query {
            q: &queries.data[at..at + queries.dim],
            start: end.saturating_sub(self.window.unwrap_or(end)),
            end,
            sink: self.sinks.as_ref().map(|sinks| sinks[n]),
        }
    }
}

impl Pass {
    /// (row of the run, query head) of query `i`.
    fn query(&self, i: usize, group: usize) -> (usize, usize) {
        ((self.first + i) / group, self.head * group + (self.first + i) % group)
    }
}
