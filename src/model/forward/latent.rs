//! Latent attention in its absorbed form: a query is taken into the latents' space, attends over
//! the latents themselves, and only its result is taken out to the head's values. So a position
//! costs one latent and one rotated key, and decoding reads nothing else.
//!
//! ```text
//! q_nope ─► keysᵀ of the head ─► [latent | rope] query ─► attend over latents ─► values of the head
//! ```
//!
//! Legend: T rows, N heads, R width of the latent, P elements that turn.

use super::attention::{
    Buffers, Call, Outputs, Part, Projection, Queries, Rules, Thread, rotate, sized,
};
use super::cache::KvCache;
use super::rows::{each_part, each_row};
use super::tensors::{Weights, decoded};
use crate::base::Result;
use crate::model::config::{Latent, ModelConfig};
use crate::model::family::Slot;
use crate::model::kernels::linear::{AlignedBytes, Encoding, OwnedMatrix, Work, linear};
use crate::model::kernels::rows::rms_norm_onto;

/// The latents' norms keep this whatever the config says of the others, as in DeepSeek's code.
const EPS: f32 = 1e-6;
/// Side of the tiles that share an FP8 scale.
const TILE: usize = 128;

/// Projections of one layer.
#[derive(Debug)]
pub(super) struct Latents {
    shape: Latent,
    heads: usize,
    /// Queries' latent and its norm, where queries have one.
    q_latent: Option<(Projection, Vec<f32>)>,
    /// Queries `[N·(nope + P)]` out of the latent, or of the input.
    q: OwnedMatrix,
    kv: Projection,
    kv_norm: Vec<f32>,
    /// For each head, `[R, nope]`: a query's part without position into the latents' space.
    keys: Vec<OwnedMatrix>,
    /// For each head, `[value, R]`: latents to the head's values.
    values: Vec<OwnedMatrix>,
    interleaved: bool,
    scale: f32,
}

impl Latents {
    pub(super) fn load(
        config: &ModelConfig,
        latent: &Latent,
        weights: &Weights<'_>,
        layer: usize,
    ) -> Result<Self> {
        let at = Some(layer);
        let (q_latent, q) = match latent.q_rank {
            None => (None, weights.need(at, Slot::Q)?),
            Some(_) => {
                let down = Projection::load(weights, layer, Slot::QLatent, Slot::QLatentBias)?;
                let norm = weights.need_floats(at, Slot::QLatentNorm)?;
                (Some((down, norm)), weights.need(at, Slot::QOut)?)
            }
        };
        let (keys, values) = divide(config, latent, weights.need(at, Slot::KvOut)?)?;
        let score_scale = config.yarn.map_or(1.0, |yarn| yarn.score_scale());
        Ok(Self {
            shape: *latent,
            heads: config.heads,
            q_latent,
            q,
            kv: Projection::load(weights, layer, Slot::KvLatent, Slot::KvLatentBias)?,
            kv_norm: weights.need_floats(at, Slot::KvLatentNorm)?,
            keys,
            values,
            interleaved: config.rope_interleaved,
            scale: (score_scale / (config.head_dim as f64).sqrt()) as f32,
        })
    }

    /// Leaves the outputs of the heads of the rows that are asked for, `[T, N·value]`, in `buffers.context`,
    /// and their `y_th` in front.
    pub(super) fn apply(
        &self,
        rules: &Rules,
        y_th: &mut [f32],
        call: &Call<'_>,
        caches: &mut [KvCache],
        buffers: &mut Buffers,
        work: &mut Work,
    ) -> Result<()> {
        let Latent { kv_rank, rope, nope, value, .. } = self.shape;
        let Call { fed, asked, .. } = call;
        let (t, cached) = (asked.rows, kv_rank + rope);

        let kv = sized(&mut buffers.k, fed.rows * cached);
        self.kv.apply(y_th, kv, false, work)?;
        each_row(work.pool(), kv, cached, |row, kv| {
            let (latent, key) = kv.split_at_mut(kv_rank);
            rms_norm_onto(latent, &self.kv_norm, EPS);
            let (cos, sin) = fed.angles.row(row);
            rotate(key, cos, sin, self.interleaved);
        })?;
        for run in fed.runs {
            let rows = run.first * cached..(run.first + run.rows) * cached;
            let cache = &mut caches[run.sequence];
            cache.append(rules.layer, run.position, &kv[rows], &[], work.pool())?;
        }

        if t == 0 {
            return Ok(());
        }
        call.narrow(y_th);
        self.project_queries(&y_th[..t * self.kv.matrix.cols], asked, buffers, work)?;
        for thread in &mut buffers.threads {
            self.make_room(thread, t)?;
        }
        let q = &buffers.q[..t * self.q.rows];
        let pool = work.pool();
        let queries = sized(&mut buffers.queries, self.heads * t * cached);
        each_part(pool, &mut buffers.threads, queries, t * cached, |thread, head, out| {
            let Thread { work, x, out: latents, .. } = thread;
            let (x, latents) = (sized(x, t * nope), sized(latents, t * kv_rank));
            let of = |row: usize| &q[row * self.q.rows + head * (nope + rope)..][..nope + rope];
            for (row, x) in x.chunks_mut(nope).enumerate() {
                x.copy_from_slice(&of(row)[..nope]);
            }
            linear(&self.keys[head].view(), x, latents, false, work)?;
            for (row, out) in out.chunks_mut(cached).enumerate() {
                out[..kv_rank].copy_from_slice(&latents[row * kv_rank..(row + 1) * kv_rank]);
                out[kv_rank..].copy_from_slice(&of(row)[nope..]);
            }
            Ok(())
        })?;

        let queries =
            Queries { data: queries, dim: cached, row_stride: cached, head_stride: t * cached };
        let latents = sized(&mut buffers.heads, self.heads * t * kv_rank);
        let outputs =
            Outputs { data: &mut *latents, row_stride: kv_rank, head_stride: t * kv_rank };
        let (passes, threads) = (&mut buffers.passes, &mut buffers.threads);
        rules.attend((queries, outputs), asked.runs, caches, passes, threads, pool)?;

        let latents = &*latents;
        let outs = sized(&mut buffers.v, self.heads * t * value);
        each_part(pool, &mut buffers.threads, outs, t * value, |thread, head, out| {
            let latents = &latents[head * t * kv_rank..][..t * kv_rank];
            linear(&self.values[head].view(), latents, out, false, &mut thread.work)
        })?;
        let context = sized(&mut buffers.context, t * self.heads * value);
        for (row, context) in context.chunks_mut(self.heads * value).enumerate() {
            for (head, context) in context.chunks_mut(value).enumerate() {
                context.copy_from_slice(&outs[(head * t + row) * value..][..value]);
            }
        }
        Ok(())
    }

    /// Lets a thread's buffers grow before they are needed, so that it does not matter which
    /// thread comes late: both products once, with whatever numbers lie there.
    fn make_room(&self, thread: &mut Thread, rows: usize) -> Result<()> {
        if rows <= thread.rows {
            return Ok(());
        }
        let Latent { kv_rank, nope, value, .. } = self.shape;
        let Thread { work, x, out, .. } = thread;
        let x = sized(x, rows * nope.max(kv_rank));
        let out = sized(out, rows * value.max(kv_rank));
        let (key, latent) = (rows * nope, rows * kv_rank);
        linear(&self.keys[0].view(), &x[..key], &mut out[..latent], false, work)?;
        linear(&self.values[0].view(), &x[..latent], &mut out[..rows * value], false, work)?;
        thread.rows = rows;
        Ok(())
    }

    /// Queries `[T, N·(nope + P)]`, rotated and scaled, in `buffers.q`.
    fn project_queries(
        &self,
        y_th: &[f32],
        of: &Part<'_>,
        buffers: &mut Buffers,
        work: &mut Work,
    ) -> Result<()> {
        let q = sized(&mut buffers.q, of.rows * self.q.rows);
        match &self.q_latent {
            None => linear(&self.q.view(), y_th, q, false, work)?,
            Some((down, norm)) => {
                let latent = sized(&mut buffers.latent, of.rows * norm.len());
                down.apply(y_th, latent, false, work)?;
                latent.chunks_mut(norm.len()).for_each(|row| rms_norm_onto(row, norm, EPS));
                linear(&self.q.view(), latent, q, false, work)?;
            }
        }
        let (nope, head_dim) = (self.shape.nope, self.shape.nope + self.shape.rope);
        each_row(work.pool(), q, self.q.rows, |row, q| {
            let (cos, sin) = of.angles.row(row);
            for head in q.chunks_mut(head_dim) {
                rotate(&mut head[nope..], cos, sin, self.interleaved);
                head.iter_mut().for_each(|q| *q *= self.scale);
            }
        })
    }
}

/// Whether the up-projection of latents can be divided between heads without being decoded.
pub(super) fn divides(config: &ModelConfig, encoding: Encoding) -> bool {
    let whole =
        |latent: &Latent| latent.nope.is_multiple_of(TILE) && latent.value.is_multiple_of(TILE);
    match encoding {
        Encoding::Fp8 => config.latent.as_ref().is_some_and(whole),
        _ => encoding.is_float(),
    }
}

/// The up-projection `[N·(nope + value), R]`, for each head as keys `[R, nope]` and values
/// `[value, R]`.
fn divide(
    config: &ModelConfig,
    latent: &Latent,
    up: OwnedMatrix,
) -> Result<(Vec<OwnedMatrix>, Vec<OwnedMatrix>)> {
    let up = match divides(config, up.encoding) {
        true => up,
        false => OwnedMatrix::from_f32(up.rows, up.cols, &decoded(&up)?)?,
    };
    let encoding = up.encoding;
    let rank = latent.kv_rank;
    let row_bytes = encoding.row_bytes(rank)?;
    let tiles = rank.div_ceil(TILE);
    // Rows `first..first + rows` with the scales of their tiles.
    let part = |first: usize, rows: usize| {
        let data = &up.data[first * row_bytes..(first + rows) * row_bytes];
        let scales = match encoding {
            Encoding::Fp8 => {
                &up.scales[first / TILE * tiles * 4..(first + rows) / TILE * tiles * 4]
            }
            _ => &[],
        };
        (data, scales)
    };
    let (mut keys, mut values) = (Vec::new(), Vec::new());
    for head in 0..config.heads {
        let first = head * (latent.nope + latent.value);
        let (data, scales) = part(first, latent.nope);
        let turned = encoding == Encoding::Fp8;
        keys.push(OwnedMatrix {
            encoding,
            rows: rank,
            cols: latent.nope,
            // Floats are multiplied as they lie; bytes with scales are laid out anew.
            transposed: !turned,
            data: if turned { turn(data, rank, 1) } else { AlignedBytes::copy_of(data) },
            scales: turn(scales, tiles, 4),
        });
        let (data, scales) = part(first + latent.nope, latent.value);
        values.push(OwnedMatrix {
            encoding,
            rows: latent.value,
            cols: rank,
            transposed: false,
            data: AlignedBytes::copy_of(data),
            scales: AlignedBytes::copy_of(scales),
        });
    }
    Ok((keys, values))
}

/// A matrix of `width`-byte elements in rows of `cols`, transposed.
fn turn(bytes: &[u8], cols: usize, width: usize) -> AlignedBytes {
    let mut out = AlignedBytes::zeroed(bytes.len());
    let rows = bytes.len() / (cols * width);
    for (row, line) in bytes.chunks(cols * width).enumerate() {
        for (col, element) in line.chunks(width).enumerate() {
            let at = (col * rows + row) * width;
            out[at..at + width].copy_from_slice(element);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::family::Family;
    use crate::model::kernels::linear::encode;

    fn matrix(encoding: Encoding, rows: usize, cols: usize) -> OwnedMatrix {
        let noise = |i: usize| i * 7919 % 1009;
        if encoding != Encoding::Fp8 {
            let values: Vec<f32> = (0..rows * cols).map(|i| noise(i) as f32 - 500.0).collect();
            return encode(encoding, rows, cols, &values).unwrap().0;
        }
        let mut data = AlignedBytes::zeroed(rows * cols);
        data.iter_mut().enumerate().for_each(|(i, byte)| *byte = (noise(i) % 127) as u8);
        let mut scales = AlignedBytes::zeroed(encoding.scale_bytes(rows, cols));
        for (i, scale) in scales.as_chunks_mut::<4>().0.iter_mut().enumerate() {
            *scale = (0.5 + i as f32).to_le_bytes();
        }
        OwnedMatrix { encoding, rows, cols, transposed: false, data, scales }
    }

    /// Each head's parts are the up-projection's own numbers, whatever it is encoded in.
    #[test]
    fn an_up_projection_divides_exactly() {
        let whole =
            Latent { q_rank: None, kv_rank: 192, nope: 128, rope: 64, value: 128, bias: false };
        let uneven = Latent { nope: 96, value: 32, ..whole };
        for latent in [whole, uneven] {
            let heads = 3;
            let head_dim = latent.nope + latent.rope;
            let config = ModelConfig {
                heads,
                kv_heads: heads,
                head_dim,
                latent: Some(latent),
                ..ModelConfig::of_family(Family::DeepseekV3)
            };
            let (rows, cols) = (heads * (latent.nope + latent.value), latent.kv_rank);
            for encoding in [Encoding::F32, Encoding::Bf16, Encoding::Fp8, Encoding::Int8] {
                let up = matrix(encoding, rows, cols);
                let want = decoded(&up).unwrap();
                let kept = divides(&config, encoding);
                assert_eq!(
                    kept,
                    encoding.is_float() || encoding == Encoding::Fp8 && latent == whole
                );
                let (keys, values) = divide(&config, &latent, up).unwrap();
                for (head, (keys, values)) in keys.iter().zip(&values).enumerate() {
                    assert_eq!(values.encoding, if kept { encoding } else { Encoding::F32 });
                    let first = head * (latent.nope + latent.value);
                    let keys = decoded(keys).unwrap();
                    for (i, key) in keys.iter().enumerate() {
                        let (r, n) = (i / latent.nope, i % latent.nope);
                        assert_eq!(*key, want[(first + n) * cols + r]);
                    }
                    let part = (first + latent.nope) * cols..;
                    assert_eq!(decoded(values).unwrap(), want[part][..latent.value * cols]);
                }
            }
        }
    }
}
