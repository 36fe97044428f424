//! From the configuration's words to the model's: shapes, gates, optimizers, schedules.

use crate::base::{Error, Result};
use crate::config::{
    AuxScope as ConfigScope, Config, Family as ConfigFamily, GateKind as ConfigGate, LrSchedule,
    Model, Precision as ConfigPrecision, PredictorKind, Shape,
};
use crate::graph::planner::predictor::{AllExperts, LastStep, OnDemand, Predictor};
use crate::model::config::{ModelConfig, Precision};
use crate::model::family::Family;
use crate::model::gate::{AuxScope, Gate, GateKind, GateSpec};
use crate::model::optim::AdamW;
use crate::text::tokenizer::Tokenizer;
use crate::train::schedule::{Decay, Schedule};

/// The model of a run: of its checkpoint folder, or of the shape that it gives.
///
/// # Errors
/// Input for a checkpoint that is not supported; Config where the tokenizer does not fit.
pub fn model_config(config: &Config, tokenizer: &Tokenizer) -> Result<ModelConfig> {
    let model = match &config.model {
        Model::Checkpoint(checkpoint) => ModelConfig::from_hf(&checkpoint.from)?,
        Model::Scratch(shape) => from_shape(shape, tokenizer),
    };
    model.validate()?;
    model.check_trainable()?;
    if tokenizer.vocab_size() > model.vocab {
        return Err(Error::config(format!(
            "the tokenizer has {} tokens and the model's vocabulary only {}: set model.vocab to \
             {} or more, or use the tokenizer that belongs to the model",
            tokenizer.vocab_size(),
            model.vocab,
            tokenizer.vocab_size()
        )));
    }
    if config.train.seq > model.max_position {
        return Err(Error::config(format!(
            "train.seq = {} is longer than the {} positions that the model allows",
            config.train.seq, model.max_position
        )));
    }
    Ok(model)
}

fn from_shape(shape: &Shape, tokenizer: &Tokenizer) -> ModelConfig {
    let family = match shape.family {
        ConfigFamily::Olmoe => Family::Olmoe,
        ConfigFamily::Mixtral => Family::Mixtral,
        ConfigFamily::Qwen2Moe => Family::Qwen2Moe,
        ConfigFamily::Qwen3Moe => Family::Qwen3Moe,
    };
    ModelConfig {
        vocab: shape.vocab.unwrap_or_else(|| tokenizer.vocab_size()),
        hidden: shape.hidden,
        layers: shape.layers,
        heads: shape.heads,
        kv_heads: shape.kv_heads,
        head_dim: shape.head_dim,
        experts: shape.experts,
        top_k: shape.top_k,
        expert_width: shape.expert_width,
        shared_width: shape.shared_width,
        rope_theta: shape.rope_theta,
        norm_eps: shape.norm_eps,
        max_position: shape.max_position,
        tie_embeddings: shape.tie_embeddings,
        norm_topk: shape.norm_topk,
        init_std: shape.init_std,
        bos: tokenizer.bos(),
        eos: tokenizer.eos().into_iter().collect(),
        pad: tokenizer.pad(),
        ..ModelConfig::of_family(family)
    }
}

pub fn precision(config: &Config) -> Precision {
    match config.train.precision {
        ConfigPrecision::Bf16 => Precision::Bf16,
        ConfigPrecision::F32 => Precision::F32,
    }
}

/// What the auxiliary loss is to even out.
pub fn aux_scope(config: &Config) -> AuxScope {
    match config.actors.gate.aux_scope {
        ConfigScope::Model => AuxScope::Model,
        ConfigScope::Layer => AuxScope::Layer,
    }
}

/// The gate that the configuration asks for.
pub fn gate(config: &Config, model: &ModelConfig) -> Result<Box<dyn Gate>> {
    let gate = &config.actors.gate;
    GateSpec {
        kind: match gate.kind {
            ConfigGate::Topk => GateKind::TopK,
            ConfigGate::Switch => GateKind::Switch,
            ConfigGate::Gshard => GateKind::GShard,
            ConfigGate::BiasCorrected => GateKind::BiasCorrected,
        },
        layers: model.layers,
        experts: model.experts,
        top_k: model.top_k,
        renormalise: gate.renormalise.unwrap_or(model.norm_topk),
        capacity_factor: gate.capacity_factor,
        jitter: gate.jitter,
        bias_rate: gate.bias_rate,
    }
    .build()
}

pub fn optimizer(config: &Config) -> AdamW {
    let optimizer = &config.actors.optimizer;
    AdamW {
        beta1: optimizer.beta1,
        beta2: optimizer.beta2,
        eps: optimizer.eps,
        weight_decay: optimizer.weight_decay,
    }
}

pub fn schedule(config: &Config) -> Schedule {
    let train = &config.train;
    Schedule {
        decay: match train.schedule {
            LrSchedule::Cosine => Decay::Cosine,
            LrSchedule::Constant => Decay::Constant,
        },
        lr: train.lr,
        min_lr: train.min_lr,
        warmup: train.warmup,
        steps: train.steps,
    }
}

pub fn predictor(config: &Config) -> Box<dyn Predictor> {
    match config.actors.prefetcher.predictor {
        PredictorKind::All => Box::new(AllExperts),
        PredictorKind::LastStep => Box::<LastStep>::default(),
        PredictorKind::None => Box::new(OnDemand),
    }
}
