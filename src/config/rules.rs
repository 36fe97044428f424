//! The rules between keys, each checked here and nowhere else. What a single key may be is in
//! its struct.

use super::check::Fault;
use super::{Config, Device, Family, GateKind, Shape, Tokenizer};

type Check = Result<(), Fault>;

/// The first rule that `config` breaks.
///
/// # Errors
/// A fault with the key to change.
pub fn check(config: &Config) -> Check {
    name(config)?;
    batch(config)?;
    schedule(config)?;
    checkpoints(config)?;
    if let Some(shape) = config.model.shape() {
        heads(shape)?;
        experts(config, shape)?;
        family(config, shape)?;
        gate_and_shape(config, shape)?;
        vocabulary(config, shape)?;
    }
    gate(config)?;
    storage(config)
}

fn refuse(key: &str, message: String) -> Check {
    Err(Fault::new(key, message))
}

fn name(config: &Config) -> Check {
    let name = &config.name;
    if name.contains(['/', '\\']) || name.starts_with('.') {
        return refuse("name", format!("`name` = \"{name}\" cannot be a folder's name"));
    }
    Ok(())
}

fn batch(config: &Config) -> Check {
    let (train, ranks) = (&config.train, config.parallel.expert);
    let (batch, micro) = (train.batch, train.micro_batch);
    if !batch.is_multiple_of(micro) {
        return refuse(
            "train.micro_batch",
            format!("`train.micro_batch` = {micro} does not divide `train.batch` = {batch}"),
        );
    }
    if !batch.is_multiple_of(ranks) {
        return refuse(
            "train.batch",
            format!(
                "`train.batch` = {batch} sequences cannot be divided between \
                 `parallel.expert` = {ranks} ranks"
            ),
        );
    }
    if !micro.is_multiple_of(ranks) {
        return refuse(
            "train.micro_batch",
            format!(
                "`train.micro_batch` = {micro} sequences cannot be divided between \
                 `parallel.expert` = {ranks} ranks"
            ),
        );
    }
    Ok(())
}

fn schedule(config: &Config) -> Check {
    let train = &config.train;
    if train.min_lr > train.lr {
        let (min_lr, lr) = (train.min_lr, train.lr);
        return refuse(
            "train.min_lr",
            format!("`train.min_lr` = {min_lr} is more than `train.lr` = {lr}"),
        );
    }
    if train.warmup > train.steps {
        let (warmup, steps) = (train.warmup, train.steps);
        return refuse(
            "train.warmup",
            format!("`train.warmup` = {warmup} is more than `train.steps` = {steps}"),
        );
    }
    if train.eval_every > 0 && config.data.validation == 0.0 {
        return refuse(
            "train.eval_every",
            "`train.eval_every` needs held-out data: give `data.validation`, such as 0.01".into(),
        );
    }
    Ok(())
}

fn checkpoints(config: &Config) -> Check {
    let (every, commit) = (config.train.keep_every, config.train.commit_every);
    if !every.is_multiple_of(commit) {
        return refuse(
            "train.keep_every",
            format!(
                "`train.keep_every` = {every} is not a multiple of `train.commit_every` = \
                 {commit}: a named checkpoint is a kept commit"
            ),
        );
    }
    let kept = config.train.steps.checked_div(every).unwrap_or(0);
    let reserved = config.storage.checkpoints;
    if kept > u64::from(reserved) {
        return refuse(
            "storage.checkpoints",
            format!(
                "`storage.checkpoints` = {reserved} reserves too little: `train.keep_every` = \
                 {every} makes {kept}"
            ),
        );
    }
    Ok(())
}

fn heads(shape: &Shape) -> Check {
    let (heads, kv_heads, head_dim) = (shape.heads, shape.kv_heads, shape.head_dim);
    if !heads.is_multiple_of(kv_heads) {
        return refuse(
            "model.kv_heads",
            format!("`model.kv_heads` = {kv_heads} does not divide `model.heads` = {heads}"),
        );
    }
    if !head_dim.is_multiple_of(2) {
        return refuse(
            "model.head_dim",
            format!("`model.head_dim` = {head_dim} is odd: rotary embedding turns pairs"),
        );
    }
    Ok(())
}

fn experts(config: &Config, shape: &Shape) -> Check {
    let (experts, top_k) = (shape.experts, shape.top_k);
    if top_k > experts {
        return refuse(
            "model.top_k",
            format!("`model.top_k` = {top_k} is more than `model.experts` = {experts}"),
        );
    }
    let ranks = config.parallel.expert;
    if !experts.is_multiple_of(ranks) {
        return refuse(
            "parallel.expert",
            format!(
                "`parallel.expert` = {ranks} ranks cannot divide `model.experts` = {experts} evenly"
            ),
        );
    }
    let (seq, most) = (config.train.seq, shape.max_position);
    if seq > most {
        return refuse(
            "train.seq",
            format!("`train.seq` = {seq} is longer than `model.max_position` = {most}"),
        );
    }
    let (lookahead, layers) = (config.actors.prefetcher.lookahead, shape.layers);
    if lookahead > layers {
        return refuse(
            "actors.prefetcher.lookahead",
            format!(
                "`actors.prefetcher.lookahead` = {lookahead} is more than `model.layers` = {layers}"
            ),
        );
    }
    Ok(())
}

fn family(config: &Config, shape: &Shape) -> Check {
    match (shape.family, shape.shared_width) {
        (Family::Qwen2Moe, None) => {
            return refuse(
                "model.shared_width",
                "`model.shared_width` is missing: qwen2_moe has a shared expert".into(),
            );
        }
        (Family::Qwen2Moe, Some(_)) | (_, None) => {}
        (_, Some(_)) => {
            return refuse(
                "model.shared_width",
                "`model.shared_width` belongs to family \"qwen2_moe\": the others have no shared \
                 expert"
                    .into(),
            );
        }
    }
    if shape.family == Family::Mixtral && !shape.norm_topk {
        return refuse(
            "model.norm_topk",
            "`model.norm_topk` = false is not mixtral: its definition always renormalises".into(),
        );
    }
    let renormalise = config.actors.gate.renormalise;
    if renormalise.is_some_and(|r| r != shape.norm_topk) {
        return refuse(
            "actors.gate.renormalise",
            format!(
                "`actors.gate.renormalise` contradicts `model.norm_topk` = {}: leave one out",
                shape.norm_topk
            ),
        );
    }
    Ok(())
}

fn gate_and_shape(config: &Config, shape: &Shape) -> Check {
    let (name, exact) = match config.actors.gate.kind {
        GateKind::Switch => ("switch", 1),
        GateKind::Gshard => ("gshard", 2),
        GateKind::Topk | GateKind::BiasCorrected => return Ok(()),
    };
    if shape.top_k != exact {
        let top_k = shape.top_k;
        return refuse(
            "model.top_k",
            format!(
                "`model.top_k` = {top_k} does not fit `actors.gate.kind` = \"{name}\", which \
                 chooses {exact}"
            ),
        );
    }
    Ok(())
}

fn vocabulary(config: &Config, shape: &Shape) -> Check {
    let tokens = match &config.data.tokenizer {
        Tokenizer::Bytes {} => 259, // the bytes, and begin, end and padding
        Tokenizer::Bpe { vocab } => *vocab,
        Tokenizer::File { .. } => return Ok(()),
    };
    match shape.vocab {
        Some(vocab) if vocab < tokens => refuse(
            "model.vocab",
            format!("`model.vocab` = {vocab} is smaller than the tokenizer's {tokens}"),
        ),
        _ => Ok(()),
    }
}

fn gate(config: &Config) -> Check {
    let gate = &config.actors.gate;
    if gate.capacity_factor > 0.0 && gate.kind == GateKind::BiasCorrected {
        return refuse(
            "actors.gate.capacity_factor",
            "`actors.gate.capacity_factor` does not fit `actors.gate.kind` = \"bias-corrected\", \
             which drops no token: leave it out, or choose \"topk\", \"switch\" or \"gshard\""
                .into(),
        );
    }
    if gate.jitter > 0.0 && gate.kind != GateKind::Switch {
        return refuse(
            "actors.gate.jitter",
            "`actors.gate.jitter` belongs to `actors.gate.kind` = \"switch\"".into(),
        );
    }
    let fixed = matches!(gate.kind, GateKind::Switch | GateKind::Gshard);
    if fixed && gate.renormalise.is_some() {
        return refuse(
            "actors.gate.renormalise",
            "`actors.gate.renormalise` belongs to `actors.gate.kind` = \"topk\" and \
             \"bias-corrected\": the others define it themselves"
                .into(),
        );
    }
    Ok(())
}

fn storage(config: &Config) -> Check {
    let storage = &config.storage;
    if !storage.chunk.0.is_multiple_of(4096) {
        return refuse(
            "storage.chunk",
            format!("`storage.chunk` = {} is not a multiple of 4 KiB", storage.chunk),
        );
    }
    let ring = storage.device_memory.is_some();
    match config.train.device {
        Device::Cpu if ring => refuse(
            "storage.device_memory",
            "`storage.device_memory` needs `train.device` = \"cuda\": on a CPU the device tier is \
             host memory"
                .into(),
        ),
        Device::Cuda if !ring => refuse(
            "storage.device_memory",
            "`storage.device_memory` is missing: `train.device` = \"cuda\" needs it".into(),
        ),
        _ => Ok(()),
    }
}
