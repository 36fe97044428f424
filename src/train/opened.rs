//! A finished or stopped run, opened for reading: evaluation, export and sampling.

use super::data::{Batch, DataSource, IGNORED};
use super::folder::RunFolder;
use super::launch::Ready;
use super::pipeline::Pipeline;
use super::session::{self, Session};
use super::stage::update::{Rates, missed};
use super::verify::argmax;
use super::{model_of, prepare};
use crate::base::{Error, Result};
use crate::config::Config;
use crate::model::config::Precision;
use crate::model::hf::{self, Writer};
use crate::model::kernels::allocator::tune_allocator;
use crate::model::kernels::parallel::Threads;
use crate::model::optim::Update;
use crate::model::params::DenseParams;
use crate::text::tokenizer::Tokenizer;
use serde::Serialize;
use std::path::{Path, PathBuf};

/// See the module.
pub struct OpenedRun {
    folder: RunFolder,
    pipeline: Pipeline,
    tokenizer: Tokenizer,
    ready: Ready,
}

/// What an evaluation found.
#[derive(Debug, Clone, Serialize)]
pub struct Evaluation {
    pub step: u64,
    pub loss: f64,
    pub perplexity: f64,
    pub tokens: u64,
    pub batches: u64,
}

/// How text is sampled.
#[derive(Debug, Clone)]
pub struct Sampling {
    pub tokens: usize,
    /// 0 is greedy.
    pub temperature: f64,
    /// Only the so many likeliest tokens; 0 is all.
    pub top_k: usize,
    pub seed: u64,
}

impl OpenedRun {
    /// Opens a run at its last commit, with `sets` over its configuration.
    ///
    /// # Errors
    /// When there is no run, another process holds it, or its store is damaged.
    pub fn open(run: &Path, sets: &[String]) -> Result<Self> {
        tune_allocator()?;
        let folder = RunFolder::open(run)?;
        let config = Config::load(&folder.config_path(), sets)?;
        let tokenizer = prepare::tokenizer(&config, &folder.tokenizer_path())?;
        let model = model_of::model_config(&config, &tokenizer)?;
        let load = prepare::load_of(&config, &model);
        let dir = config.store_dir(folder.path());
        let pipeline = Pipeline::new(config);
        let ready = prepare::open_stores(&pipeline, &dir, load)?;
        Ok(Self { folder, pipeline, tokenizer, ready })
    }

    /// The mean loss over at most `batches` held-out batches (0: all of them).
    ///
    /// # Errors
    /// Input when the run holds nothing out.
    pub fn evaluate(&self, batches: u64, mut progress: impl FnMut(u64, u64)) -> Result<Evaluation> {
        let config = &self.pipeline.config;
        let vocab = self.ready.model.vocab;
        let mut data =
            prepare::text_source(config, vocab, &self.tokenizer, &self.folder, &mut |_| {})?;
        let held = data.validation_batches();
        if held == 0 {
            return Err(Error::input("the run holds no text out: set data.validation above 0"));
        }
        let count = if batches == 0 { held } else { held.min(batches) };
        let (mut nll, mut targets) = (0.0, 0);
        session::with(&self.pipeline, &self.ready, |session| {
            for index in 0..count {
                let numbers = session.evaluate(&data.validation_batch(index)?)?;
                nll += numbers.lm_loss * numbers.targets as f64;
                targets += numbers.targets;
                progress(index + 1, count);
            }
            Ok(())
        })?;
        let loss = nll / targets.max(1) as f64;
        Ok(Evaluation {
            step: self.ready.meta.step,
            loss,
            perplexity: loss.exp(),
            tokens: targets,
            batches: count,
        })
    }

    /// Writes the run as a Hugging Face folder; `to` is the run's `export/` if none is named.
    /// Idle experts are brought up to date in what is written; the store stays as it is.
    ///
    /// # Errors
    /// Io when the folder cannot be written.
    pub fn export(
        &self,
        to: Option<PathBuf>,
        dtype: Precision,
        shard_bytes: u64,
        mut progress: impl FnMut(u64, u64),
    ) -> Result<PathBuf> {
        let to = to.unwrap_or_else(|| self.folder.export_path());
        let (config, ready) = (&self.pipeline.config, &self.ready);
        let mut writer = Writer::create(&to, &ready.model, dtype, shard_bytes)?;
        let shape = ready.load.shape;
        let rates = Rates::new(ready.meta.rates.clone());
        let optimizer = self.pipeline.make_optimizer();
        let total = (ready.model.layers * ready.model.experts) as u64;
        let mut done = 0;
        for rank in 0..ready.load.ranks {
            let mut blocks = ready.blocks(rank, config)?;
            if rank == 0 {
                let mut params = DenseParams::zeros(&ready.model, ready.precision())?;
                params.read_state(&blocks.read_dense(params.state_bytes())?)?;
                params.export(&mut writer)?;
            }
            let mut master = vec![0f32; shape.elements()];
            for layer in 0..ready.model.layers {
                for expert in ready.experts_of(rank) {
                    let (mut weights, mut state, applied) = blocks.read_expert(layer, expert)?;
                    let steps = missed(config, &rates, applied, ready.meta.updates)?;
                    if !steps.is_empty() {
                        let params = shape.params(&mut weights, &mut state)?;
                        let threads = Threads::Calling;
                        let update = Update {
                            steps: &steps,
                            grad: None,
                            grad_scale: 1.0,
                            decay: true,
                            threads,
                        };
                        optimizer.update(&update, params)?;
                    }
                    shape.read_master(&weights, &state, &mut master)?;
                    hf::expert::write(&mut writer, &ready.model, layer, expert, &master)?;
                    done += 1;
                    progress(done, total);
                }
            }
            blocks.finish();
        }
        writer.finish(&ready.model)?;
        self.tokenizer.save(&to)?;
        Ok(to)
    }

    /// Continues `prompt`; `each` is given every piece of text as it comes.
    ///
    /// # Errors
    /// Input when prompt and answer are longer than the model allows.
    pub fn sample(
        mut self,
        prompt: &str,
        sampling: &Sampling,
        mut each: impl FnMut(&str),
    ) -> Result<String> {
        let mut text: Vec<i64> =
            self.tokenizer.encode(prompt)?.into_iter().map(i64::from).collect();
        if text.is_empty() {
            let first = self.tokenizer.bos().or(self.tokenizer.eos());
            text.push(i64::from(first.ok_or_else(|| Error::input("the prompt is empty"))?));
        }
        let start = text.len();
        let length = start + sampling.tokens;
        if length > self.ready.model.max_position {
            return Err(Error::input(format!(
                "prompt and answer are {length} tokens and the model allows {}",
                self.ready.model.max_position
            )));
        }
        // One sequence a rank: the first counts.
        let rows = self.ready.load.ranks;
        self.ready.load.batch = rows;
        self.ready.load.micro_batches = 1;
        self.ready.load.seq = length;
        let eos = self.tokenizer.eos().map(i64::from);
        let mut shown = String::new();
        session::with(&self.pipeline, &self.ready, |session: &mut Session| {
            while text.len() < length {
                let seq = text.len();
                let mut ids = text.clone();
                ids.resize(rows * seq, 0);
                let batch = Batch { batch: rows, seq, targets: vec![IGNORED; ids.len()], ids };
                let logits = session.logits(&batch, &[(0, seq - 1)])?;
                let next = choose(&logits[0], sampling, seq as u64) as i64;
                if Some(next) == eos {
                    break;
                }
                text.push(next);
                let ids: Vec<u32> = text[start..].iter().map(|&id| id as u32).collect();
                let whole = self.tokenizer.decode(&ids, true)?;
                // A character whose bytes are not all there yet shows as a replacement.
                let ready = whole.trim_end_matches('\u{fffd}');
                if let Some(new) = ready.strip_prefix(shown.as_str()) {
                    each(new);
                    shown = ready.to_owned();
                }
            }
            Ok(())
        })?;
        Ok(shown)
    }
}

/// Draws a token. The draw depends on the seed and the position alone.
fn choose(logits: &[f32], sampling: &Sampling, position: u64) -> usize {
    if sampling.temperature <= 0.0 {
        return argmax(logits);
    }
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
    if sampling.top_k > 0 {
        order.truncate(sampling.top_k);
    }
    let best = f64::from(logits[order[0]]);
    let weight = |&id: &usize| ((f64::from(logits[id]) - best) / sampling.temperature).exp();
    let total: f64 = order.iter().map(weight).sum();
    let bits = super::data::mix::hash(sampling.seed, position, 0) >> 11;
    let mut left = bits as f64 / (1u64 << 53) as f64 * total;
    for id in &order {
        left -= weight(id);
        if left <= 0.0 {
            return *id;
        }
    }
    order[order.len() - 1]
}
