//! Attention of a few queries over the cached keys and values of one head.
//!
//! Law 4: each query's numbers come from its own keys in their order, whichever queries share the
//! pass: a score is a sum over elements in order, the softmax sums by the distance from the
//! query's first key, and values are added key after key. So prefill at once, in chunks, and
//! decoding give the same bits.
//!
//! Keys lie in tiles of [`TILE`]: `[tile][element][key]`, so that a load holds one element of
//! many keys and scores need no sum across lanes. Values lie `[key][element]`. Latent attention
//! keeps one copy: its values are the first elements of its keys.

mod tiles;

use super::linear::simd::{Level, level};
use super::softmax::exponentials;
use std::ops::Range;
use tiles::{Cached, Scores, Weighted};

/// Keys of a tile.
pub const TILE: usize = 16;
/// Most queries of one pass; a stored tile is read once for all of them.
pub const QUERIES: usize = 16;
/// Most tiles of keys at once.
const TILES: usize = 4;

/// Cached numbers as they are stored.
#[derive(Debug, Clone, Copy)]
pub enum Stored<'a> {
    F32(&'a [f32]),
    Bf16(&'a [u16]),
}

/// One query, already scaled, and the keys `start..end` that it sees.
#[derive(Debug, Clone, Copy, Default)]
pub struct Query<'a> {
    pub q: &'a [f32],
    pub start: usize,
    pub end: usize,
    /// A logit that takes part in the softmax and has no value.
    pub sink: Option<f32>,
}

/// The cache of one key/value head.
#[derive(Debug, Clone, Copy)]
pub struct Head<'a> {
    pub keys: Stored<'a>,
    /// None where values are the first `value_dim` elements of the keys.
    pub values: Option<Stored<'a>>,
    pub key_dim: usize,
    pub value_dim: usize,
}

/// What a thread keeps between passes.
#[derive(Debug, Default)]
pub struct Scratch {
    scores: Vec<f32>,
    packed: Vec<f32>,
    /// Of latent attention: a tile of values.
    values: Vec<f32>,
}

impl Scratch {
    /// Makes room for passes over caches of `keys` keys, of which `head` is one, so that neither a growing
    /// cache nor a thread that comes late allocates.
    pub fn reserve(&mut self, keys: usize, head: &Head<'_>) {
        sized(&mut self.scores, QUERIES * row_of_scores(keys.div_ceil(TILE)));
        sized(&mut self.packed, QUERIES * head.key_dim);
        if head.values.is_none() {
            sized(&mut self.values, TILE * head.value_dim);
        }
    }

    /// Bytes that it holds.
    #[cfg(test)]
    pub(in crate::model) fn bytes(&self) -> usize {
        let buffers = [&self.scores, &self.packed, &self.values];
        buffers.iter().map(|buffer| 4 * buffer.capacity()).sum()
    }
}

/// Numbers of a query's row of scores over so many tiles: an odd number of lines, so that rows do not share
/// sets of the first-level cache.
pub fn row_of_scores(tiles: usize) -> usize {
    (tiles | 1) * TILE
}

/// The first `len` elements of a buffer that grows and never shrinks.
#[inline(always)]
fn sized(buffer: &mut Vec<f32>, len: usize) -> &mut [f32] {
    if buffer.len() < len {
        buffer.reserve_exact(len - buffer.len());
        buffer.resize(len, 0.0);
    }
    &mut buffer[..len]
}

/// Queries in groups of 16 and 8 (if that many may pass), 4, 2 and 1: (first, how many).
fn groups(queries: usize, most: usize) -> impl Iterator<Item = (usize, usize)> {
    let mut first = 0;
    std::iter::from_fn(move || {
        let size = match (queries - first).min(most) {
            0 => return None,
            1 => 1,
            2 | 3 => 2,
            4..8 => 4,
            8..16 => 8,
            _ => 16,
        };
        first += size;
        Some((first - size, size))
    })
}

/// `out[i] = Σ_j softmax(q_i · k_j) v_j` over the keys of query i, at most [`QUERIES`] of them;
/// `out` is [queries, value_dim].
pub fn attend(head: &Head<'_>, queries: &[Query<'_>], scratch: &mut Scratch, out: &mut [f32]) {
    let from = queries.iter().map(|q| q.start).min().unwrap_or(0) / TILE;
    let to = queries.iter().map(|q| q.end).max().unwrap_or(0).div_ceil(TILE).max(from);
    let pass = Pass { queries, tiles: from..to, width: row_of_scores(to - from), level: level() };
    let Scratch { scores, packed, values } = scratch;
    let scores = sized(scores, queries.len() * pass.width);
    let packed = pass.pack(sized(packed, queries.len() * head.key_dim), head.key_dim);
    match head.keys {
        Stored::F32(keys) => pass.score(keys, head.key_dim, packed, scores),
        Stored::Bf16(keys) => pass.score(keys, head.key_dim, packed, scores),
    }

    let mut inverse = [0.0f32; QUERIES];
    for (i, (query, inverse)) in queries.iter().zip(&mut inverse).enumerate() {
        let row = &mut scores[i * pass.width..];
        let seen = &mut row[query.start - from * TILE..query.end - from * TILE];
        *inverse = 1.0 / exponentials(seen, query.sink).1;
    }

    out.fill(0.0);
    let dim = head.value_dim;
    for tile in pass.tiles.clone() {
        let rows = tile * TILE * dim..(tile + 1) * TILE * dim;
        match (head.values, head.keys) {
            (Some(Stored::F32(values)), _) => pass.weigh(tile, &values[rows], scores, out),
            (Some(Stored::Bf16(values)), _) => pass.weigh(tile, &values[rows], scores, out),
            (None, keys) => {
                let values = sized(values, TILE * dim);
                let start = tile * TILE * head.key_dim;
                match keys {
                    Stored::F32(keys) => transpose(&keys[start..], values, dim),
                    Stored::Bf16(keys) => transpose(&keys[start..], values, dim),
                }
                pass.weigh(tile, values, scores, out);
            }
        }
    }
    for (out, inverse) in out.chunks_mut(dim).zip(&inverse) {
        out.iter_mut().for_each(|out| *out *= inverse);
    }
}

/// Queries over the tiles that they see.
struct Pass<'a> {
    queries: &'a [Query<'a>],
    tiles: Range<usize>,
    /// Numbers from one query's scores to the next one's.
    width: usize,
    level: Level,
}

impl Pass<'_> {
    fn groups(&self) -> impl Iterator<Item = (usize, usize)> + use<> {
        groups(self.queries.len(), tiles::most(self.level))
    }

    /// The queries as [`Scores`] takes them, group by group.
    fn pack<'b>(&self, packed: &'b mut [f32], dim: usize) -> &'b [f32] {
        for (first, size) in self.groups() {
            let group = &mut packed[first * dim..(first + size) * dim];
            for (r, query) in self.queries[first..first + size].iter().enumerate() {
                for (d, q) in query.q.iter().enumerate() {
                    group[d * size + r] = *q;
                }
            }
        }
        packed
    }

    fn score<T: Cached>(&self, keys: &[T], dim: usize, packed: &[f32], scores: &mut [f32]) {
        // Many queries keep the processor busy with one tile, which stays in the first-level cache.
        let most = if self.queries.len() < 8 { TILES } else { 1 };
        for tile in self.tiles.clone().step_by(most) {
            let tiles = most.min(self.tiles.end - tile);
            let keys = &keys[tile * TILE * dim..(tile + tiles) * TILE * dim];
            let at = (tile - self.tiles.start) * TILE;
            for (first, size) in self.groups() {
                let q = &packed[first * dim..(first + size) * dim];
                let out = &mut scores[first * self.width + at..];
                Scores { q, keys, tiles, queries: size, out, stride: self.width }.run(self.level);
            }
        }
    }

    /// Adds the values `rows` of a tile, each times its weight, to the outputs.
    fn weigh<T: Cached>(&self, tile: usize, rows: &[T], scores: &[f32], out: &mut [f32]) {
        let (begin, dim) = (tile * TILE, rows.len() / TILE);
        let (at, stride, level) = (begin - self.tiles.start * TILE, self.width, self.level);
        for (first, size) in self.groups() {
            let group = &self.queries[first..first + size];
            let out = &mut out[first * dim..(first + size) * dim];
            let p = &scores[first * stride + at..];
            if group.iter().all(|q| q.start <= begin && begin + TILE <= q.end) {
                Weighted { p, stride, rows, queries: size, out }.run(level);
                continue;
            }
            for (r, (query, out)) in group.iter().zip(out.chunks_mut(dim)).enumerate() {
                let (a, b) = (query.start.max(begin), query.end.min(begin + TILE));
                if a < b {
                    let p = &p[r * stride + a - begin..r * stride + b - begin];
                    let rows = &rows[(a - begin) * dim..(b - begin) * dim];
                    Weighted { p, stride, rows, queries: 1, out }.run(level);
                }
            }
        }
    }
}

/// The first `dim` elements of a tile `[element][key]` as `[key][element]`.
fn transpose<T: Cached>(tile: &[T], out: &mut [f32], dim: usize) {
    for (d, keys) in tile.as_chunks::<TILE>().0[..dim].iter().enumerate() {
        for (key, value) in keys.iter().enumerate() {
            out[key * dim + d] = value.load();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Cache {
        keys: Vec<f32>,
        values: Vec<f32>,
        tiled: Vec<f32>,
    }

    fn noise(seed: u32, len: usize) -> Vec<f32> {
        let mut state = seed;
        let mut draw = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..len).map(|_| draw()).collect()
    }

    fn cache(keys: usize, key_dim: usize, value_dim: usize) -> Cache {
        let room = keys.next_multiple_of(TILE);
        let plain = noise(1, room * key_dim);
        let mut tiled = vec![0.0; room * key_dim];
        for key in 0..room {
            for d in 0..key_dim {
                let at = (key / TILE * key_dim + d) * TILE + key % TILE;
                tiled[at] = plain[key * key_dim + d];
            }
        }
        Cache { keys: plain, values: noise(2, room * value_dim), tiled }
    }

    /// Queries whose last keys are neighbours, the last query's the last of all.
    fn ending_one_by_one(q: &[f32], dim: usize, keys: usize) -> Vec<Query<'_>> {
        let all = q.len() / dim;
        (q.chunks(dim).enumerate())
            .map(|(i, q)| Query { q, start: 3, end: keys + 1 + i - all, sink: None })
            .collect()
    }

    /// The definition, in f64.
    fn plain(cache: &Cache, query: &Query<'_>, value_dim: usize) -> Vec<f64> {
        let dim = query.q.len();
        let score = |j: usize| -> f64 {
            let key = &cache.keys[j * dim..(j + 1) * dim];
            query.q.iter().zip(key).map(|(q, k)| f64::from(*q) * f64::from(*k)).sum()
        };
        let scores: Vec<f64> = (query.start..query.end).map(score).collect();
        let sink = query.sink.map(f64::from);
        let most = scores.iter().copied().chain(sink).fold(f64::NEG_INFINITY, f64::max);
        let total: f64 = scores.iter().copied().chain(sink).map(|s| (s - most).exp()).sum();
        let mut out = vec![0.0; value_dim];
        for (j, score) in (query.start..query.end).zip(scores) {
            for (out, v) in out.iter_mut().zip(&cache.values[j * value_dim..]) {
                *out += (score - most).exp() / total * f64::from(*v);
            }
        }
        out
    }

    #[test]
    fn queries_together_and_alone_agree_and_match_the_definition() {
        for (key_dim, value_dim, keys, queries) in [
            (24, 16, 40, 13),
            (128, 128, 77, 16),
            (128, 144, 150, 7),
            (40, 36, 16, 13),
            (8, 8, 1, 2),
        ] {
            let cache = cache(keys, key_dim, value_dim);
            let head = Head {
                keys: Stored::F32(&cache.tiled),
                values: Some(Stored::F32(&cache.values)),
                key_dim,
                value_dim,
            };
            let q = noise(3, QUERIES * key_dim);
            let queries: Vec<Query<'_>> = (0..queries)
                .map(|i| Query {
                    q: &q[i * key_dim..(i + 1) * key_dim],
                    start: if i % 3 == 0 { keys.saturating_sub(20 + i) } else { 0 },
                    end: keys - (queries - 1 - i).min(keys - 1),
                    sink: (i % 4 == 1).then_some(0.3),
                })
                .filter(|q| q.start < q.end)
                .collect();
            let mut scratch = Scratch::default();
            let mut together = vec![f32::NAN; queries.len() * value_dim];
            attend(&head, &queries, &mut scratch, &mut together);
            for (query, together) in queries.iter().zip(together.chunks(value_dim)) {
                let mut alone = vec![f32::NAN; value_dim];
                attend(&head, std::slice::from_ref(query), &mut scratch, &mut alone);
                assert_eq!(alone, together);
                for (out, want) in alone.iter().zip(plain(&cache, query, value_dim)) {
                    assert!((f64::from(*out) - want).abs() < 2e-5, "{out} {want}");
                }
            }
        }
    }

    #[test]
    fn values_inside_the_keys_are_found() {
        let (key_dim, value_dim, keys) = (40, 32, 37);
        let mut cache = cache(keys, key_dim, value_dim);
        let rows = cache.values.chunks_mut(value_dim).zip(cache.keys.chunks(key_dim));
        rows.for_each(|(value, key)| value.copy_from_slice(&key[..value_dim]));
        let apart = Head {
            keys: Stored::F32(&cache.tiled),
            values: Some(Stored::F32(&cache.values)),
            key_dim,
            value_dim,
        };
        let within = Head { values: None, ..apart };
        let q = noise(3, QUERIES * key_dim);
        for queries in [1, 5, QUERIES] {
            let queries = ending_one_by_one(&q[..queries * key_dim], key_dim, keys);
            let mut scratch = Scratch::default();
            let [mut a, mut b] = [0.0, 1.0].map(|x| vec![x; queries.len() * value_dim]);
            attend(&apart, &queries, &mut scratch, &mut a);
            attend(&within, &queries, &mut scratch, &mut b);
            assert_eq!(a, b);
        }
    }

    #[test]
    fn bf16_is_read_as_the_numbers_it_stands_for() {
        use crate::model::kernels::float::{from_bf16, to_bf16};
        let (dim, keys) = (32, 50);
        let mut cache = cache(keys, dim, dim);
        let bits = |values: &[f32]| values.iter().map(|v| to_bf16(*v)).collect::<Vec<u16>>();
        let (k, v) = (bits(&cache.tiled), bits(&cache.values));
        let round =
            |values: &mut [f32]| values.iter_mut().for_each(|v| *v = from_bf16(to_bf16(*v)));
        round(&mut cache.tiled);
        round(&mut cache.values);
        let q = noise(3, QUERIES * dim);
        for (queries, within) in [1, 5, QUERIES].into_iter().flat_map(|n| [(n, false), (n, true)]) {
            let queries = ending_one_by_one(&q[..queries * dim], dim, keys);
            let outs = [
                (Stored::F32(&cache.tiled), Stored::F32(&cache.values)),
                (Stored::Bf16(&k), Stored::Bf16(&v)),
            ]
            .map(|(keys, values)| {
                let values = (!within).then_some(values);
                let head = Head { keys, values, key_dim: dim, value_dim: dim };
                let mut out = vec![f32::NAN; queries.len() * dim];
                attend(&head, &queries, &mut Scratch::default(), &mut out);
                out
            });
            assert_eq!(outs[0], outs[1], "{} queries", queries.len());
        }
    }
}
