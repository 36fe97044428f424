//! What a run needs before its ranks start: tokenizer, data, model, stores; and what of it is
//! checked before any work.

use super::agreement;
use super::data::cache::{HELD, width_for};
use super::data::files::text_bytes;
use super::data::prepare::SAMPLE_BYTES;
use super::data::{DataSpec, FileSpec, Format, TextSource, tokenizer_for};
use super::folder::RunFolder;
use super::launch::Ready;
use super::model_of;
use super::pipeline::Pipeline;
use super::placement::{Load, Placement};
use super::stage::update::Meta;
use crate::base::file::sync_name;
use crate::base::units::Bytes;
use crate::base::{Error, ErrorKind, Result};
use crate::config::{self, Activations, Config, FileFormat, Model};
use crate::model::config::ModelConfig;
use crate::model::expert::ExpertShape;
use crate::model::hf::{self, Checkpoint};
use crate::model::init;
use crate::model::params::DenseParams;
use crate::storage::disk::direct::free_space;
use crate::storage::store::{Store, StoreOptions, StoreSpec};
use crate::text::chat::ChatTemplate;
use crate::text::tokenizer::{Tokenizer, TokenizerSpec};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The tokenizer of a run. A new run makes it and keeps it in its folder; a resume finds it there.
pub fn tokenizer(config: &Config, kept: &Path) -> Result<Tokenizer> {
    let spec = match &config.data.tokenizer {
        config::Tokenizer::Bytes {} => TokenizerSpec::Bytes,
        config::Tokenizer::File { path } => TokenizerSpec::File { path: path.clone() },
        config::Tokenizer::Bpe { vocab } => TokenizerSpec::Bpe { vocab: *vocab },
    };
    tokenizer_for(&spec, &files(config), config.data.seed, kept)
}

/// Threads that compute, over all ranks: those that the configuration allows the executors, or a
/// core each. Before the ranks start, so many tokenise.
pub fn compute_threads(config: &Config) -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    match (config.actors.expert.threads, config.parallel.expert) {
        (0, ranks) => (cores / ranks).max(1) * ranks,
        (threads, ranks) => threads * ranks,
    }
}

fn files(config: &Config) -> Vec<FileSpec> {
    let format = |format| match format {
        FileFormat::Auto => Format::Auto,
        FileFormat::Text => Format::Text,
        FileFormat::Jsonl => Format::Jsonl,
        FileFormat::Chat => Format::Chat,
    };
    config
        .data
        .files
        .iter()
        .map(|file| FileSpec {
            path: file.path.clone(),
            weight: file.weight,
            format: format(file.format),
            text_key: file.text_key.clone(),
        })
        .collect()
}

/// The data that the configuration names, tokenised once into `cache`.
pub fn text_source(
    config: &Config,
    vocab: usize,
    tokenizer: &Tokenizer,
    folder: &RunFolder,
    progress: &mut dyn FnMut(&super::data::Progress<'_>),
) -> Result<TextSource> {
    let template_dir = match (&config.model, &config.data.tokenizer) {
        (Model::Checkpoint(checkpoint), _) => Some(checkpoint.from.clone()),
        (_, config::Tokenizer::File { path }) => Some(path.clone()),
        _ => None,
    };
    let template = match template_dir {
        Some(dir) => ChatTemplate::load(&dir, tokenizer, folder.created()?)?,
        None => None,
    };
    let spec = DataSpec {
        files: files(config),
        batch: config.train.batch,
        seq: config.train.seq,
        validation: config.data.validation,
        shuffle: config.data.shuffle,
        seed: config.data.seed,
        cache: folder.data_path(),
        threads: compute_threads(config),
        vocab,
    };
    TextSource::open(spec, tokenizer, template.as_ref(), progress)
}

/// Bytes of token files that one rank's source holds in memory, at most.
pub fn held_bytes(config: &Config, load: &Load) -> u64 {
    let width = u64::from(width_for(load.config.vocab));
    let of_file = |file: &FileSpec| {
        // A chat template may write more than the file has; each of two files is held up to HELD.
        let text = text_bytes(&file.path).filter(|_| file.format != Format::Chat);
        text.map_or(2 * HELD, |text| ((text + 4096) * width).min(2 * HELD))
    };
    files(config).iter().map(of_file).sum()
}

/// Bytes of text that a BPE would be trained on, at most.
pub fn sample_bytes(config: &Config) -> u64 {
    let text: Option<u64> = files(config).iter().map(|file| text_bytes(&file.path)).sum();
    text.map_or(SAMPLE_BYTES, |text| text.min(SAMPLE_BYTES))
}

/// What placement depends on, of a configuration and its model.
pub fn load_of(config: &Config, model: &ModelConfig) -> Load {
    Load {
        config: model.clone(),
        shape: ExpertShape::new(model.hidden, model.expert_width, model_of::precision(config)),
        host: config.storage.host.0,
        ranks: config.parallel.expert,
        batch: config.train.batch,
        micro_batches: config.train.batch / config.train.micro_batch,
        seq: config.train.seq,
        clipped: config.train.clip > 0.0,
        carry: match config.graph.schedule {
            config::ScheduleKind::Overlapped => config.actors.optimizer.carry,
            config::ScheduleKind::Sequential => 0.0,
        },
        keep_dense: config.actors.dense.activations == Activations::Keep,
        keep_experts: config.actors.expert.activations == Activations::Keep,
        checkpoints: config.storage.checkpoints,
        index_cache: config.storage.index_cache.0,
        threads: compute_threads(config) / config.parallel.expert,
    }
}

fn rank_dir(dir: &Path, rank: usize, ranks: usize) -> PathBuf {
    if ranks == 1 { dir.to_owned() } else { dir.join(format!("rank{rank}")) }
}

/// Checks that the disk has room for the stores, before anything is written.
fn check_disk(dir: &Path, load: &Load, placement: &Placement) -> Result<u64> {
    let spec = placement.store(load, json!({}));
    let required = Store::disk_required(&spec) * load.ranks as u64;
    let free = free_space(dir)?;
    if free < required {
        return Err(Error::new(
            ErrorKind::Budget,
            format!(
                "the disk of {} has {} free and the store needs {}: make room, choose another \
                 disk with storage.dir, or keep fewer checkpoints (storage.checkpoints = {})",
                dir.display(),
                Bytes(free),
                Bytes(required).rounded_up(),
                load.checkpoints
            ),
        ));
    }
    Ok(required)
}

/// What a store must belong to.
fn identity(load: &Load, rank: usize) -> serde_json::Value {
    json!({
        "model": load.config,
        "precision": load.shape.precision,
        "rank": rank,
        "ranks": load.ranks,
    })
}

/// New stores with the initial parameters, committed as step 0. `progress` is told how many of
/// how many experts are written.
pub fn create_stores(
    pipeline: &Pipeline,
    dir: &Path,
    load: Load,
    mut progress: impl FnMut(u64, u64),
) -> Result<Ready> {
    let config = &pipeline.config;
    let placement = Placement::new(&load)?;
    let checkpoint = config.model.from().map(|from| Checkpoint::open(from)).transpose()?;
    std::fs::create_dir_all(dir)
        .and_then(|()| sync_name(dir))
        .map_err(|e| Error::io(format!("creating {}", dir.display()), e))?;
    check_disk(dir, &load, &placement)?;
    let seed = config.model.shape().map_or(config.train.seed, |shape| shape.seed);
    let model = load.config.clone();
    let mut stores = Vec::with_capacity(load.ranks);
    for rank in 0..load.ranks {
        let spec = placement.store(&load, identity(&load, rank));
        let options = store_options(config);
        let dir = rank_dir(dir, rank, load.ranks);
        stores.push(Arc::new(Store::create(&dir, &spec, &options)?));
    }
    let meta = Meta { gate: pipeline.make_gate(&model)?.state(), ..Meta::default() };
    let ready = Ready::new(load, placement, stores, meta);
    let total = (model.layers * model.experts) as u64;
    let mut params = match &checkpoint {
        Some(checkpoint) => DenseParams::load(&model, ready.precision(), checkpoint)?,
        None => DenseParams::init(&model, ready.precision(), seed)?,
    };
    let mut dense = vec![0; params.state_bytes()];
    params.write_state(&mut dense)?;
    drop(params);
    let meta = serde_json::to_vec(&ready.meta)
        .map_err(|e| Error::bug("cannot write the commit's facts").from_source(e))?;
    for rank in 0..ready.load.ranks {
        let mut blocks = ready.blocks(rank, config)?;
        let before = rank as u64 * total / ready.load.ranks as u64;
        let experts = ready.experts_of(rank);
        let all = (0..model.layers).flat_map(|l| experts.clone().map(move |e| (l, e)));
        let fill = |layer: usize, expert: usize, master: &mut [f32]| match &checkpoint {
            Some(checkpoint) => hf::expert::read(checkpoint, &model, layer, expert, master),
            None => init::expert(&model, seed, layer, expert, master),
        };
        blocks.write_experts(all, fill, |count| progress(before + count, total))?;
        blocks.write_dense(0, &dense)?;
        blocks.finish();
        ready.stores[rank].commit(0, &meta)?;
    }
    if ready.load.ranks > 1 {
        agreement::begin(&ready.stores)?;
    }
    Ok(ready)
}

fn store_options(config: &Config) -> StoreOptions {
    StoreOptions { index_cache: config.storage.index_cache.0 }
}

/// The stores of an earlier run, at its last commit.
pub fn open_stores(pipeline: &Pipeline, dir: &Path, load: Load) -> Result<Ready> {
    let config = &pipeline.config;
    let placement = Placement::new(&load)?;
    let dirs: Vec<PathBuf> = (0..load.ranks).map(|rank| rank_dir(dir, rank, load.ranks)).collect();
    // A store comes last of all that a run makes before its first commit.
    let begun = dirs.iter().all(|dir| Store::is_in(dir));
    let stores = match begun {
        true => agreement::open(&dirs, &store_options(config))?,
        false => None,
    };
    let Some(stores) = stores else {
        return Err(Error::input(format!(
            "the run ended before its first commit, so there is nothing to go on with: remove its \
             folder and start it without --resume, or mount the disk of its store (store {})",
            dir.display()
        )));
    };
    for (rank, store) in stores.iter().enumerate() {
        if store.spec().identity != identity(&load, rank) {
            return Err(Error::config(format!(
                "the store in {} holds another model: use its own configuration, or another run \
                 folder",
                dir.display()
            )));
        }
        check_room(store, &placement.store(&load, json!({})), &load)?;
    }
    let meta: Meta = serde_json::from_slice(&stores[0].meta()?).map_err(|e| {
        Error::corrupt("the facts of the last commit cannot be read").from_source(e)
    })?;
    Ok(Ready::new(load, placement, stores, meta))
}

/// Whether a store was made with room for what the configuration now asks of it.
fn check_room(store: &Store, asked: &StoreSpec, load: &Load) -> Result<()> {
    let made = store.spec();
    if asked.keep > made.keep {
        return Err(Error::config(format!(
            "the store was made for fewer named checkpoints than storage.checkpoints = {}: set it \
             back (and train.keep_every with it), or start another run",
            load.checkpoints
        )));
    }
    if !asked.classes.iter().all(|class| made.classes.contains(class)) {
        return Err(Error::config(
            "the store was made without room for gradients that wait for their norm: set \
             train.clip back to 0, or start another run",
        ));
    }
    Ok(())
}
