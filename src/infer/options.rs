//! What is asked of a generator, and what was put in place.

use super::foresight::PredictorKind;
use super::opening;
use crate::base::units::Bytes;
use crate::base::{Error, Result};
use crate::model::forward::KvType;
use crate::model::kernels::linear::Activations;
use crate::storage::disk::{IoEffective, IoOptions};
use crate::storage::policy::PolicyConfig;
use serde::Serialize;
use std::fmt;
use std::path::PathBuf;

/// What is asked.
#[derive(Debug, Clone)]
pub struct Options {
    /// A folder in the Hugging Face layout, a GGUF file, or an imported store.
    pub model: PathBuf,
    /// Memory that the whole process may take; without it, what holds the model, or else nine
    /// tenths of what is free.
    pub memory: Option<Bytes>,
    /// Positions that a sequence may reach; 0 is what the model is meant for, at most 4096.
    pub context: usize,
    /// Sequences that are served at once.
    pub sequences: usize,
    /// Prompt tokens that pass the layers together.
    pub chunk: usize,
    /// Threads of the kernels; 0 is all cores.
    pub threads: usize,
    /// Type of the keys and values that are kept.
    pub kv: KvType,
    /// Type that activations have in products with bf16 and FP8 weights; None: the processor's fastest.
    pub activations: Option<Activations>,
    pub policy: PolicyConfig,
    pub predictor: PredictorKind,
    pub io: IoOptions,
    /// Where the accesses of the run are recorded, for `semoe cache replay`.
    pub accesses: Option<PathBuf>,
    /// Use at most so many slots, whatever the memory.
    pub slots: Option<u32>,
    /// Begin with the experts that were used most before.
    pub warm: bool,
    /// The folder of the checkpoints' indices; None: nothing is kept, and headers are read each
    /// time.
    pub index: Option<PathBuf>,
}

impl Options {
    pub fn new(model: impl Into<PathBuf>) -> Self {
        Self {
            model: model.into(),
            memory: None,
            context: 0,
            sequences: 1,
            chunk: 512,
            threads: 0,
            kv: KvType::F32,
            activations: None,
            policy: PolicyConfig::for_decoding(),
            predictor: PredictorKind::GateLookahead,
            io: IoOptions::default(),
            accesses: None,
            slots: None,
            warm: false,
            index: opening::cache_folder(),
        }
    }

    /// # Errors
    /// `Config` for a size that means nothing.
    pub fn check(&self) -> Result<()> {
        for (name, value, most) in [
            ("sequences", self.sequences, 4096),
            ("chunk", self.chunk, 1 << 16),
            ("threads", self.threads.max(1), 1024),
        ] {
            if value == 0 || value > most {
                return Err(Error::config(format!("{name} must be 1 to {most}")).with(name, value));
            }
        }
        if self.slots == Some(0) {
            return Err(Error::config("slots must be at least 1"));
        }
        self.activations.map_or(Ok(()), Activations::check)?;
        self.policy.check()?;
        self.io.validate()
    }
}

/// A type of keys and values by its name.
///
/// # Errors
/// `Config` for another name.
pub fn kv_type(name: &str) -> Result<KvType> {
    match name {
        "f32" => Ok(KvType::F32),
        "bf16" => Ok(KvType::Bf16),
        _ => Err(Error::config(format!("\"{name}\" is no type for keys and values: f32 or bf16"))),
    }
}

pub(super) fn kv_name(kv: KvType) -> &'static str {
    match kv {
        KvType::F32 => "f32",
        KvType::Bf16 => "bf16",
    }
}

/// A type of activations by its name; None for `auto`.
///
/// # Errors
/// `Config` for another name.
pub fn activations(name: &str) -> Result<Option<Activations>> {
    match name {
        "auto" => Ok(None),
        "f32" => Ok(Some(Activations::F32)),
        "bf16" => Ok(Some(Activations::Bf16)),
        _ => {
            Err(Error::config(format!("\"{name}\" is no type for activations: auto, f32 or bf16")))
        }
    }
}

/// What was asked and what was put in place, for people and for programs.
#[derive(Debug, Clone, Serialize)]
pub struct Settings {
    pub requested: Requested,
    pub effective: Effective,
}

#[derive(Debug, Clone, Serialize)]
pub struct Requested {
    pub memory: Option<Bytes>,
    pub policy: &'static str,
    pub predictor: PredictorKind,
    pub io_engine: String,
    pub direct: String,
    pub threads: usize,
    pub context: usize,
    pub kv: &'static str,
    pub activations: &'static str,
    pub warm: bool,
}

#[derive(Debug, Clone, Serialize)]
pub struct Effective {
    /// Bytes that the plan takes, at most the promise.
    pub memory: Bytes,
    pub policy: &'static str,
    /// What guesses; none where everything is resident and nothing is left to guess.
    pub predictor: PredictorKind,
    pub io: IoEffective,
    /// Encodings of the experts' weights, as they are in the file.
    pub weights: Vec<String>,
    /// Activations have this type in products with bf16 and FP8 weights; they are f32 elsewhere, and are
    /// rounded to int8 by groups for integer weights.
    pub activations: &'static str,
    /// The instructions that products use.
    pub instructions: &'static str,
    pub kv: &'static str,
    pub threads: usize,
    pub context: usize,
    pub sequences: usize,
    pub chunk: usize,
    pub slots: u32,
    pub blocks: u32,
    /// Experts that were read because earlier runs used them most; None: it was not asked for.
    pub warm: Option<u32>,
    pub slot_bytes: u64,
    pub huge_pages: bool,
}

impl fmt::Display for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Effective { policy, io, weights, activations, kv, threads, .. } = &self.effective;
        let e = &self.effective;
        let held = if e.slots >= e.blocks { "all resident" } else { "streaming" };
        let pages = if e.huge_pages { "huge pages" } else { "plain pages" };
        let guess = e.predictor.name();
        writeln!(
            f,
            "  experts   {} of {} in memory ({held}), policy {policy}, predictor {guess}",
            e.slots, e.blocks
        )?;
        match e.warm {
            None => {}
            Some(0) => writeln!(f, "  warm      no: nothing is known of earlier runs")?,
            Some(warm) => writeln!(f, "  warm      {warm} experts that earlier runs used most")?,
        }
        writeln!(f, "  io        {io}")?;
        writeln!(
            f,
            "  numbers   weights {}, activations {}, keys and values {kv}",
            weights.join(" + "),
            match *activations {
                "f32" => "f32".to_owned(),
                _ => format!("f32, rounded to bf16 for {} weights", Activations::rounded_for()),
            },
        )?;
        write!(
            f,
            "  compute   {threads} threads ({}), context {}, {} sequences, chunks of {}, {pages}",
            e.instructions, e.context, e.sequences, e.chunk
        )
    }
}
