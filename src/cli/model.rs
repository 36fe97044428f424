//! The arguments that commands on a checkpoint share: which one, in what memory, how it is read,
//! and how tokens are chosen.

use super::output;
use crate::base::units::Bytes;
use crate::base::{Error, Result};
use crate::infer::foresight::PredictorKind;
use crate::infer::generator::Generator;
use crate::infer::options::{Options, activations, kv_type};
use crate::infer::sampler::Sampling;
use crate::storage::disk::{DirectChoice, EngineChoice, IoOptions};
use crate::storage::policy::{PolicyConfig, PolicyKind};
use clap::Args;
use std::path::PathBuf;

#[derive(Debug, Args)]
pub struct ModelArgs {
    /// Checkpoint folder in the Hugging Face layout, a .gguf file, or an imported store.
    #[arg(long, value_name = "DIR")]
    pub model: PathBuf,
    /// Memory that the whole process may take, such as 4GiB [default: what the model needs, or
    /// nine tenths of what is free].
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<String>,
    /// Positions that a text may reach [default: the model's, at most 4096].
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    pub context: usize,
    /// Prompt tokens that pass the layers together.
    #[arg(long, default_value_t = 512)]
    pub chunk: usize,
    /// Threads of the kernels [default: all cores].
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    pub threads: usize,
    /// Type of the keys and values that are kept: f32 or bf16.
    #[arg(long, default_value = "f32", value_name = "TYPE")]
    pub kv: String,
    /// Type of activations in products with bf16 and FP8 weights: f32, bf16, or auto: the processor's fastest.
    #[arg(long, default_value = "auto", value_name = "TYPE")]
    pub activations: String,
    /// What leaves the cache of experts: adaptive, lfu, lru, se-moe, planned [default: adaptive].
    #[arg(long, value_name = "POLICY")]
    pub policy: Option<PolicyKind>,
    /// What guesses the next layer's experts: gate-lookahead, transitions, none.
    #[arg(long, default_value = "gate-lookahead", value_name = "PREDICTOR")]
    pub predictor: PredictorKind,
    /// Begin with the experts in memory that earlier runs used most.
    #[arg(long)]
    pub warm: bool,
    /// How the disk is reached: auto, uring, pool.
    #[arg(long, default_value = "auto", value_name = "ENGINE")]
    pub io_engine: String,
    /// Requests that the disk is given at once.
    #[arg(long, default_value_t = IoOptions::default().depth, value_name = "REQUESTS")]
    pub io_depth: usize,
    /// Whether the page cache is bypassed: auto, on, off.
    #[arg(long, default_value = "auto", value_name = "CHOICE")]
    pub direct: String,
    /// Record the accesses to experts here, for `semoe cache replay`.
    #[arg(long, value_name = "FILE")]
    pub accesses: Option<PathBuf>,
    /// Write what the last passes did and waited for here: a picture if it ends in .svg, else a trace for
    /// ui.perfetto.dev.
    #[arg(long, value_name = "FILE")]
    pub timeline: Option<PathBuf>,
}

impl ModelArgs {
    /// The options of a generator for `sequences` texts at once.
    ///
    /// # Errors
    /// `Config`, naming the argument that means nothing.
    pub fn options(&self, sequences: usize) -> Result<Options> {
        let memory = self.memory.as_deref().map(str::parse::<Bytes>).transpose();
        let mut options = Options {
            memory: memory.map_err(Error::config)?,
            context: self.context,
            sequences,
            chunk: self.chunk,
            threads: self.threads,
            kv: kv_type(&self.kv)?,
            activations: activations(&self.activations)?,
            predictor: self.predictor,
            accesses: self.accesses.clone(),
            timeline: self.timeline.clone(),
            warm: self.warm,
            ..Options::new(&self.model)
        };
        if let Some(kind) = self.policy {
            options.policy = PolicyConfig { kind, ..options.policy };
        }
        options.io.engine = match self.io_engine.as_str() {
            "auto" => EngineChoice::Auto,
            "uring" => EngineChoice::Uring,
            "pool" => EngineChoice::Pool,
            other => return Err(unknown("--io-engine", other, "auto, uring, pool")),
        };
        options.io.depth = self.io_depth;
        options.io.direct = match self.direct.as_str() {
            "auto" => DirectChoice::Auto,
            "on" => DirectChoice::On,
            "off" => DirectChoice::Off,
            other => return Err(unknown("--direct", other, "auto, on, off")),
        };
        Ok(options)
    }
}

fn unknown(argument: &str, value: &str, known: &str) -> Error {
    Error::config(format!("{argument} \"{value}\" is not known; there are {known}"))
}

#[derive(Debug, Args)]
pub struct SamplingArgs {
    /// 0 takes the likeliest token each time.
    #[arg(long, default_value_t = 0.0)]
    pub temperature: f32,
    /// Draw from the so many likeliest tokens; 0 is all.
    #[arg(long, default_value_t = 0)]
    pub top_k: usize,
    /// Draw from the fewest tokens whose probabilities sum to this.
    #[arg(long, default_value_t = 1.0)]
    pub top_p: f32,
    /// Leave out tokens less likely than this share of the likeliest.
    #[arg(long, default_value_t = 0.0)]
    pub min_p: f32,
    /// Make tokens that occurred less likely; 1 does not.
    #[arg(long, default_value_t = 1.0)]
    pub repetition_penalty: f32,
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
}

impl SamplingArgs {
    pub fn sampling(&self) -> Sampling {
        Sampling {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            seed: self.seed,
        }
    }
}

/// Tells what was put in place, on standard error: standard output is for text.
///
/// # Errors
/// `Io` when it cannot be written.
pub fn announce(generator: &Generator) -> Result<()> {
    let config = generator.config();
    output::note(&format!(
        "{} of {} layers, {} experts, {} a token\n{}\nmemory\n{}\n",
        config.family,
        config.layers,
        config.experts,
        config.top_k,
        generator.settings(),
        generator.ledger(),
    ))
}
