//! The keys and values of one sequence, allocated once for the positions that it may reach.
//!
//! Positions are appended in order, layer by layer. Layout: `[layer][head][tile][element][key]`
//! for keys, `[layer][head][key][element]` for values (see [`crate::model::kernels::attend`]).
//! Latent attention keeps one latent with its rotated key a position, and no values.

use crate::base::{Error, Result};
use crate::model::config::ModelConfig;
use crate::model::kernels::attend::{Head, Stored, TILE};
use crate::model::kernels::float::Number;
use crate::model::kernels::linear::{AlignedBytes, Disjoint, Pool};
use crate::model::kernels::view::{Plain, cast, cast_mut};

/// The type in which keys and values are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KvType {
    F32,
    Bf16,
}

impl KvType {
    fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }
}

/// What one position takes in one layer.
#[derive(Debug, Clone, Copy)]
struct Shape {
    heads: usize,
    key: usize,
    /// 0 where values are part of the keys.
    value: usize,
}

impl Shape {
    fn of(config: &ModelConfig) -> Self {
        match &config.latent {
            Some(latent) => Self { heads: 1, key: latent.kv_rank + latent.rope, value: 0 },
            None => Self { heads: config.kv_heads, key: config.head_dim, value: config.head_dim },
        }
    }
}

/// The cache of one sequence.
#[derive(Debug)]
pub struct KvCache {
    shape: Shape,
    kind: KvType,
    /// Elements that a query takes from the values (those of the keys where they are one).
    value_dim: usize,
    capacity: usize,
    /// Positions that each layer holds.
    filled: Vec<usize>,
    keys: AlignedBytes,
    values: AlignedBytes,
}

impl KvCache {
    /// Bytes of a position in all layers.
    pub fn bytes_per_token(config: &ModelConfig, kind: KvType) -> u64 {
        let shape = Shape::of(config);
        (config.layers * shape.heads * (shape.key + shape.value) * kind.bytes()) as u64
    }

    /// Bytes of a cache for `capacity` positions.
    pub fn bytes(config: &ModelConfig, capacity: usize, kind: KvType) -> u64 {
        capacity.next_multiple_of(TILE) as u64 * Self::bytes_per_token(config, kind)
    }

    /// An empty cache for `capacity` positions.
    pub fn new(config: &ModelConfig, capacity: usize, kind: KvType) -> Self {
        let shape = Shape::of(config);
        let room = capacity.next_multiple_of(TILE) * config.layers * shape.heads * kind.bytes();
        Self {
            shape,
            kind,
            value_dim: config.latent.map_or(shape.value, |latent| latent.kv_rank),
            capacity,
            filled: vec![0; config.layers],
            keys: AlignedBytes::zeroed(room * shape.key),
            values: AlignedBytes::zeroed(room * shape.value),
        }
    }

    /// Positions that all layers hold.
    pub fn len(&self) -> usize {
        self.filled.last().copied().unwrap_or(0)
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Forgets the positions from `len` on.
    pub fn truncate(&mut self, len: usize) {
        self.filled.iter_mut().for_each(|filled| *filled = len.min(*filled));
    }

    /// Appends `rows` positions from `position` on to `layer`: `k` `[rows, heads·key]`, `v`
    /// `[rows, heads·value]`, empty where there are no values.
    ///
    /// # Errors
    /// Bug when the position is not the next one or there is no room.
    pub(super) fn append(
        &mut self,
        layer: usize,
        position: usize,
        k: &[f32],
        v: &[f32],
        pool: &mut Pool,
    ) -> Result<()> {
        let rows = k.len() / (self.shape.heads * self.shape.key);
        let filled = self.filled[layer];
        if position != filled || position + rows > self.capacity {
            return Err(Error::bug("a cache takes the next position, and has room for it")
                .with("layer", layer)
                .with("next", filled)
                .with("position", position)
                .with("rows", rows)
                .with("capacity", self.capacity));
        }
        match self.kind {
            KvType::F32 => self.store::<f32>(layer, position, k, v, pool)?,
            KvType::Bf16 => self.store::<u16>(layer, position, k, v, pool)?,
        }
        self.filled[layer] = position + rows;
        Ok(())
    }

    fn store<T: Number + Plain>(
        &mut self,
        layer: usize,
        position: usize,
        k: &[f32],
        v: &[f32],
        pool: &mut Pool,
    ) -> Result<()> {
        let Shape { heads, key, value } = self.shape;
        let room = self.capacity.next_multiple_of(TILE);
        let rows = k.len() / (heads * key);
        let keys = cast_mut::<T>(&mut self.keys)?;
        let keys = Disjoint::new(&mut keys[layer * heads * room * key..][..heads * room * key]);
        let values = cast_mut::<T>(&mut self.values)?;
        let values =
            Disjoint::new(&mut values[layer * heads * room * value..][..heads * room * value]);
        let store = |_: usize, head: usize| {
            // SAFETY: each task has the part of its head.
            let keys = unsafe { keys.range(head * room * key, room * key) };
            // SAFETY: as above.
            let values = unsafe { values.range(head * room * value, room * value) };
            store_keys(keys, key, position, rows, |row| &k[(row * heads + head) * key..][..key]);
            for row in 0..rows {
                let to = &mut values[(position + row) * value..][..value];
                for (to, v) in to.iter_mut().zip(&v[(row * heads + head) * value..]) {
                    *to = T::store(*v);
                }
            }
        };
        if rows == 1 {
            // A region costs more than a row.
            (0..heads).for_each(|head| store(0, head));
            return Ok(());
        }
        pool.run(heads, &store)
    }

    /// What a query of `layer` reads of key/value head `head`.
    pub(super) fn head(&self, layer: usize, head: usize) -> Result<Head<'_>> {
        let Shape { heads, key, value } = self.shape;
        let room = self.capacity.next_multiple_of(TILE);
        let part = |bytes, width: usize| {
            let range =
                (layer * heads + head) * room * width..(layer * heads + head + 1) * room * width;
            self.stored(bytes, range)
        };
        Ok(Head {
            keys: part(&self.keys, key)?,
            values: if value == 0 { None } else { Some(part(&self.values, value)?) },
            key_dim: key,
            value_dim: self.value_dim,
        })
    }

    fn stored<'a>(
        &self,
        bytes: &'a AlignedBytes,
        range: std::ops::Range<usize>,
    ) -> Result<Stored<'a>> {
        Ok(match self.kind {
            KvType::F32 => Stored::F32(&cast::<f32>(bytes)?[range]),
            KvType::Bf16 => Stored::Bf16(&cast::<u16>(bytes)?[range]),
        })
    }
}

/// Stores the keys of `rows` positions into one head's tiles, tile by tile so that what lies
/// together is written together.
fn store_keys<'a, T: Number>(
    keys: &mut [T],
    dim: usize,
    position: usize,
    rows: usize,
    row: impl Fn(usize) -> &'a [f32],
) {
    let mut done = 0;
    while done < rows {
        let first = (position + done) % TILE;
        let count = (TILE - first).min(rows - done);
        let tile = (position + done) / TILE;
        let tile = &mut keys[tile * TILE * dim..(tile + 1) * TILE * dim];
        for key in 0..count {
            for (d, k) in row(done + key).iter().enumerate() {
                tile[d * TILE + first + key] = T::store(*k);
            }
        }
        done += count;
    }
}
