//! The forward pass of a model on plain f32 slices: everything but the routed experts, which
//! whoever calls it runs where they are.
//!
//! ```text
//! tokens ─embed─► x ─┬─ attention ─► x, y ─ route ─► experts' choice ··► x += routed experts
//!                    │                  └── shared ─► x
//!                    └────────────────◄─ next layer ◄─┘         x ─ head ─► logits
//! ```
//!
//! Law 4: a row's numbers depend on its own token, position and cache, never on the other rows
//! of the call, on the number of threads or on how its prompt was cut into chunks.
//!
//! Weights stay encoded as their file has them, activations are f32. Buffers grow to the largest
//! call and stay, so steady decoding allocates nothing.
//!
//! Legend: T rows of a call, H hidden, E experts, K top-k, V vocabulary.

mod attention;
mod cache;
mod embedding;
mod latent;
mod memory;
mod mlp;
mod router;
mod rows;
mod tensors;
#[cfg(test)]
mod tests;

pub use cache::{KvCache, KvType};
pub use embedding::StoredRows;
pub use router::Routes;
pub use rows::{Row, each_row};
pub use tensors::{Tensors, matrix_shape};

use super::config::ModelConfig;
use super::family::Slot;
use super::kernels::linear::{Encoding, OwnedMatrix, Work, linear};
use super::kernels::rows::rms_norm;
use super::rotary::{Angles, Rotary};
use crate::base::{Error, Result};
use attention::{Attention, Call, Part, sized};
use embedding::Embedding;
use mlp::Tail;
use rows::{Run, divide};
use std::cell::RefCell;
use tensors::Weights;

struct Layer {
    input_norm: Vec<f32>,
    attention: Attention,
    post_norm: Vec<f32>,
    tail: Tail,
}

/// Buffers of a call, kept from one to the next.
#[derive(Default)]
struct Buffers {
    embedding: Vec<u8>,
    normed: Vec<f32>,
    runs: Vec<Run>,
    angles: Angles,
    asked_runs: Vec<Run>,
    asked_angles: Angles,
    attention: attention::Buffers,
    router: router::Buffers,
    mlp: mlp::Buffers,
}

/// A model's dense weights, and what is computed with them.
pub struct Forward {
    config: ModelConfig,
    embed: Embedding,
    layers: Vec<Layer>,
    final_norm: Vec<f32>,
    /// None where tied to the embedding.
    head: Option<OwnedMatrix>,
    rotary: Rotary,
    buffers: RefCell<Buffers>,
}

impl Forward {
    /// Reads the dense weights, tensor by tensor.
    ///
    /// # Errors
    /// Input, by name, for tensors that are missing, misshapen or in an unknown encoding.
    pub fn load(config: &ModelConfig, tensors: &dyn Tensors) -> Result<Self> {
        let weights = Weights::new(config, tensors);
        Self::with(config, &weights, Embedding::held(&weights)?)
    }

    /// As [`Forward::load`], but the embedding stays in its file where that can be
    /// ([`Forward::embedding_bytes`]), and each token reads its row.
    ///
    /// # Errors
    /// As [`Forward::load`].
    pub fn load_but_embedding(config: &ModelConfig, tensors: &dyn Tensors) -> Result<Self> {
        let weights = Weights::new(config, tensors);
        Self::with(config, &weights, Embedding::stored(config, &weights)?)
    }

    fn with(config: &ModelConfig, weights: &Weights<'_>, embed: Embedding) -> Result<Self> {
        config.validate()?;
        let layer = |layer: usize| -> Result<Layer> {
            Ok(Layer {
                input_norm: weights.need_floats(Some(layer), Slot::InputNorm)?,
                attention: Attention::load(config, weights, layer)?,
                post_norm: weights.need_floats(Some(layer), Slot::PostNorm)?,
                tail: Tail::load(config, weights, layer)?,
            })
        };
        Ok(Self {
            config: config.clone(),
            embed,
            layers: (0..config.layers).map(layer).collect::<Result<_>>()?,
            final_norm: weights.need_floats(None, Slot::FinalNorm)?,
            head: weights.matrix(None, Slot::Head)?,
            rotary: Rotary::new(config),
            buffers: RefCell::default(),
        })
    }

    /// Bytes that [`Forward::load`] keeps in memory, from headers alone.
    ///
    /// # Errors
    /// As [`Forward::load`], as far as headers tell.
    pub fn resident_bytes(config: &ModelConfig, tensors: &dyn Tensors) -> Result<u64> {
        memory::resident_bytes(config, tensors)
    }

    /// How much less [`Forward::load_but_embedding`] keeps: 0 where the embedding has to be in memory.
    ///
    /// # Errors
    /// As [`Forward::resident_bytes`].
    pub fn embedding_bytes(config: &ModelConfig, tensors: &dyn Tensors) -> Result<u64> {
        memory::embedding_bytes(config, tensors)
    }

    /// Bytes of dense weights that a token reads, by the encoding in which they are kept, from
    /// headers alone: all but the embedding, of which it takes a row unless the head is tied to it.
    ///
    /// # Errors
    /// As [`Forward::resident_bytes`].
    pub fn active_bytes(
        config: &ModelConfig,
        tensors: &dyn Tensors,
    ) -> Result<Vec<(Encoding, u64)>> {
        memory::active_bytes(config, tensors)
    }

    /// Most bytes that buffers come to in calls of at most `rows` rows of `sequences` over caches of at
    /// most `positions`, on `threads` threads; scratch of the products is apart.
    pub fn buffer_bytes(
        config: &ModelConfig,
        rows: usize,
        sequences: usize,
        positions: usize,
        threads: usize,
    ) -> u64 {
        memory::buffer_bytes(config, rows, sequences, positions, threads)
    }

    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Embeddings of `tokens`, `x_th` `[T,H]`.
    ///
    /// # Errors
    /// Input for a token outside the vocabulary; Io if its row cannot be read.
    pub fn embed(&self, tokens: &[u32], x_th: &mut [f32]) -> Result<()> {
        self.fits("embed", tokens.len(), x_th)?;
        let bytes = &mut self.buffers.borrow_mut().embedding;
        for (token, x) in tokens.iter().zip(x_th.chunks_mut(self.config.hidden)) {
            let row = *token as usize;
            if row >= self.config.vocab {
                return Err(Error::input(format!(
                    "token {row} is outside the model's vocabulary of {}",
                    self.config.vocab
                )));
            }
            self.embed.decode(row, bytes, x)?;
        }
        Ok(())
    }

    /// Adds attention of `layer` to the residual stream `x_th` `[T,H]`: appends the rows' keys
    /// and values to their caches and attends over them. `y_th` becomes the normed input of the
    /// router, the shared experts and the routed ones.
    ///
    /// # Errors
    /// Bug for rows that do not continue their caches, or a cache without room.
    pub fn attention(
        &self,
        layer: usize,
        x_th: &mut [f32],
        rows: &[Row],
        caches: &mut [KvCache],
        y_th: &mut [f32],
        work: &mut Work,
    ) -> Result<()> {
        self.attend(layer, (x_th, y_th), rows, None, caches, work)
    }

    /// As [`Forward::attention`], where nobody will ask for more than the rows `asked`, ascending: of the
    /// last layer the others have only keys and values to give. Those that are asked for come first in
    /// `x_th` and `y_th`; what is behind them is of no use.
    ///
    /// # Errors
    /// As [`Forward::attention`]; Bug for rows that are not there, or not ascending.
    #[expect(clippy::too_many_arguments, reason = "those of attention, and what is asked for")]
    pub fn attention_of(
        &self,
        layer: usize,
        x_th: &mut [f32],
        rows: &[Row],
        asked: &[usize],
        caches: &mut [KvCache],
        y_th: &mut [f32],
        work: &mut Work,
    ) -> Result<()> {
        let there = asked.last().is_none_or(|last| *last < rows.len());
        if !there || !asked.is_sorted_by(|a, b| a < b) {
            let text = "attention is asked for rows that are not there, or not in order";
            return Err(Error::bug(text).with("rows", rows.len()));
        }
        self.attend(layer, (x_th, y_th), rows, Some(asked), caches, work)
    }

    fn attend(
        &self,
        layer: usize,
        (x_th, y_th): (&mut [f32], &mut [f32]),
        rows: &[Row],
        which: Option<&[usize]>,
        caches: &mut [KvCache],
        work: &mut Work,
    ) -> Result<()> {
        self.fits("attention", rows.len(), x_th)?;
        self.fits("attention", rows.len(), y_th)?;
        let of = self.layer(layer)?;
        let mut buffers = self.buffers.borrow_mut();
        let Buffers { normed, runs, angles, asked_runs, asked_angles, attention, .. } =
            &mut *buffers;
        divide(rows.iter().copied(), caches.len(), runs)?;
        self.rotary.at(rows.iter().map(|row| row.position), angles);
        let fed = Part { rows: rows.len(), runs, angles };
        let asked = match which {
            None => fed,
            Some(which) => {
                let asked = which.iter().map(|row| rows[*row]);
                divide(asked.clone(), caches.len(), asked_runs)?;
                self.rotary.at(asked.map(|row| row.position), asked_angles);
                Part { rows: which.len(), runs: asked_runs, angles: asked_angles }
            }
        };
        let normed = sized(normed, x_th.len());
        self.norm(x_th, &of.input_norm, normed, work)?;
        let call = Call { fed, asked, which };
        of.attention.apply(normed, x_th, &call, caches, attention, work)?;
        let kept = asked.rows * self.config.hidden;
        self.norm(&x_th[..kept], &of.post_norm, &mut y_th[..kept], work)
    }

    /// The experts of each row of `y_th`. Answers false, with no routes, for a dense layer.
    ///
    /// # Errors
    /// NonFinite when a row's logits are not numbers.
    pub fn route(
        &self,
        layer: usize,
        y_th: &[f32],
        routes: &mut Routes,
        work: &mut Work,
    ) -> Result<bool> {
        let Some(router) = &self.layer(layer)?.tail.router else {
            routes.clear(self.config.top_k);
            return Ok(false);
        };
        router.apply(y_th, routes, &mut self.buffers.borrow_mut().router, work)?;
        Ok(true)
    }

    /// Adds the shared experts, or the MLP of a dense layer, to `x_th`. May run after the
    /// routes were announced, while routed experts are read.
    pub fn shared(
        &self,
        layer: usize,
        y_th: &[f32],
        x_th: &mut [f32],
        work: &mut Work,
    ) -> Result<()> {
        let buffers = &mut self.buffers.borrow_mut().mlp;
        self.layer(layer)?.tail.apply(y_th, x_th, self.config.hidden, buffers, work)
    }

    /// The experts that `layer` would choose for the present residual stream `x_th`, whatever
    /// layer that comes from; for the rows `asked` of it, or all. Answers as [`Forward::route`].
    ///
    /// # Errors
    /// As [`Forward::route`].
    pub fn guess(
        &self,
        layer: usize,
        x_th: &[f32],
        asked: Option<&[usize]>,
        routes: &mut Routes,
        work: &mut Work,
    ) -> Result<bool> {
        let of = self.layer(layer)?;
        let Some(router) = &of.tail.router else {
            routes.clear(self.config.top_k);
            return Ok(false);
        };
        let mut buffers = self.buffers.borrow_mut();
        let Buffers { normed, router: kept, .. } = &mut *buffers;
        let (hidden, eps) = (self.config.hidden, self.config.norm_eps as f32);
        let rows = asked.map_or(x_th.len() / hidden, <[usize]>::len);
        let normed = sized(normed, rows * hidden);
        each_row(work.pool(), normed, hidden, |row, out| {
            let row = asked.map_or(row, |asked| asked[row]);
            rms_norm(&x_th[row * hidden..(row + 1) * hidden], &of.post_norm, eps, out);
        })?;
        router.apply(normed, routes, kept, work)?;
        Ok(true)
    }

    /// Logits `[T,V]` of the residual stream `x_th` after the last layer.
    pub fn head(&self, x_th: &[f32], logits: &mut Vec<f32>, work: &mut Work) -> Result<()> {
        let rows = x_th.len() / self.config.hidden;
        self.fits("the head", rows, x_th)?;
        let mut buffers = self.buffers.borrow_mut();
        let normed = sized(&mut buffers.normed, x_th.len());
        self.norm(x_th, &self.final_norm, normed, work)?;
        logits.resize(rows * self.config.vocab, 0.0);
        let head = self.head.as_ref().map_or_else(|| self.embed.matrix(), Ok)?;
        linear(&head.view(), normed, logits, false, work)
    }

    fn norm(&self, x_th: &[f32], weight: &[f32], out: &mut [f32], work: &mut Work) -> Result<()> {
        let (hidden, eps) = (self.config.hidden, self.config.norm_eps as f32);
        each_row(work.pool(), out, hidden, |row, out| {
            rms_norm(&x_th[row * hidden..(row + 1) * hidden], weight, eps, out);
        })
    }

    fn layer(&self, layer: usize) -> Result<&Layer> {
        self.layers.get(layer).ok_or_else(|| {
            Error::bug("the model has fewer layers")
                .with("layer", layer)
                .with("layers", self.layers.len())
        })
    }

    fn fits(&self, what: &str, rows: usize, x_th: &[f32]) -> Result<()> {
        if x_th.len() == rows * self.config.hidden {
            return Ok(());
        }
        Err(Error::bug(format!("{what} was given rows of another width"))
            .with("rows", rows)
            .with("hidden", self.config.hidden)
            .with("elements", x_th.len()))
    }
}
