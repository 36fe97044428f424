//! Checking a checkpoint folder against another implementation's outputs.
//!
//! The reference holds `input_ids` [B, T], `logits` [B, T, V] and `greedy` [1, P + N]; the training
//! reference `input_ids`, `loss`, `lm_loss`, `aux_loss` and `grad_norm` of a few AdamW steps on
//! one batch. The checkpoint is run by the same actors, storage and kernels as any other.

use super::data::{Batch, IGNORED};
use super::launch::Ready;
use super::pipeline::Pipeline;
use super::prepare;
use super::session::{self, Session};
use crate::base::{Error, Result};
use crate::config::Config;
use crate::model::config::ModelConfig;
use crate::model::hf::Checkpoint;
use crate::model::kernels::allocator::tune_allocator;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// What to check against what.
#[derive(Debug, Clone)]
pub struct Request {
    pub model: PathBuf,
    pub reference: PathBuf,
    pub train_reference: Option<PathBuf>,
    pub train_config: Option<PathBuf>,
    /// Overrides of the configuration: budgets, ranks, precision.
    pub sets: Vec<String>,
    /// Absolute, on logits.
    pub tolerance: f64,
    /// Relative, on losses and gradient norms.
    pub train_tolerance: f64,
}

/// What was found.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Findings {
    pub logits_max_abs: f64,
    pub logits_max_rel: f64,
    pub greedy_equal: usize,
    pub greedy_total: usize,
    pub steps: Vec<Step>,
    /// Sum of the bits of all logits and losses: equal for runs that agree bit for bit.
    pub fingerprint: u64,
    pub passed: bool,
}

/// A training step beside the reference's.
#[derive(Debug, Clone, Serialize)]
pub struct Step {
    pub step: usize,
    pub loss: f64,
    pub reference_loss: f64,
    pub lm_loss: f64,
    pub aux_loss: f64,
    pub grad_norm: f64,
    pub reference_grad_norm: f64,
}

impl Step {
    /// The larger of the relative differences of loss and gradient norm.
    pub fn difference(&self) -> (f64, f64) {
        let relative = |a: f64, b: f64| (a - b).abs() / b.abs().max(1e-12);
        (
            relative(self.loss, self.reference_loss),
            relative(self.grad_norm, self.reference_grad_norm),
        )
    }
}

/// The reference's hyper-parameters.
#[derive(Debug, Clone, Deserialize)]
struct TrainConfig {
    lr: f64,
    beta1: f64,
    beta2: f64,
    eps: f64,
    weight_decay: f64,
    clip_grad_norm: f64,
    steps: usize,
    router_aux_loss_coef: f64,
}

/// Checks.
///
/// # Errors
/// Input for a reference or checkpoint that cannot be read or does not fit.
pub fn verify(request: &Request) -> Result<Findings> {
    tune_allocator()?;
    let mut findings = Findings::default();
    let reference = Checkpoint::open_file(&request.reference)?;
    let ids = Ids::read(&reference, "input_ids", &request.reference)?;
    check_logits(request, &reference, &ids, &mut findings)?;
    check_greedy(request, &reference, &mut findings)?;
    let mut within = findings.logits_max_abs <= request.tolerance
        && findings.greedy_equal == findings.greedy_total;
    if let (Some(path), Some(config)) = (&request.train_reference, &request.train_config) {
        check_training(request, path, config, &mut findings)?;
        // Gradient norms are sums of squares over every parameter: they may differ by 5 times as
        // much as losses.
        within &= findings.steps.iter().all(|step| {
            let (loss, norm) = step.difference();
            loss <= request.train_tolerance && norm <= 5.0 * request.train_tolerance
        });
    }
    findings.passed = within;
    Ok(findings)
}

struct Ids {
    rows: usize,
    columns: usize,
    values: Vec<i64>,
}

impl Ids {
    fn read(file: &Checkpoint, name: &str, path: &Path) -> Result<Self> {
        let shape = file.info(name)?.1.shape.clone();
        let [rows, columns] = shape[..] else {
            return Err(Error::input(format!("{name} in {} is not [B, T]", path.display())));
        };
        Ok(Self { rows: rows as usize, columns: columns as usize, values: file.read_i64(name)? })
    }

    /// Each token's target is the next one.
    fn batch(&self) -> Batch {
        let targets = self
            .values
            .chunks(self.columns)
            .flat_map(|row| row[1..].iter().copied().chain([IGNORED]))
            .collect();
        Batch { batch: self.rows, seq: self.columns, ids: self.values.clone(), targets }
    }
}

/// A folder that is removed when it is no longer needed.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Result<Self> {
        use std::sync::atomic::{AtomicU64, Ordering};
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("semoe-verify-{}-{count}", std::process::id()));
        std::fs::create_dir_all(&dir)
            .map_err(|e| Error::io(format!("creating {}", dir.display()), e))?;
        Ok(Self(dir))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // A folder of the temporary directory that stays behind harms nobody.
        drop(std::fs::remove_dir_all(&self.0));
    }
}

/// Puts the checkpoint into a store of its own and opens a session on it.
fn in_session<T>(
    request: &Request,
    (batch, seq): (usize, usize),
    train: Option<&TrainConfig>,
    body: impl FnOnce(&mut Session) -> Result<T>,
) -> Result<T> {
    let config = config(request, batch, seq, train)?;
    let model = ModelConfig::from_hf(&request.model)?;
    model.check_trainable()?;
    if seq > model.max_position {
        return Err(Error::input("the reference is longer than the model allows")
            .with("tokens", seq)
            .with("max_position", model.max_position));
    }
    let load = prepare::load_of(&config, &model);
    let pipeline = Pipeline::new(config);
    let scratch = Scratch::new()?;
    let ready: Ready = prepare::create_stores(&pipeline, &scratch.0, load, |_, _| {})?;
    session::with(&pipeline, &ready, body)
}

fn config(
    request: &Request,
    batch: usize,
    seq: usize,
    train: Option<&TrainConfig>,
) -> Result<Config> {
    let mut table = toml::toml! {
        name = "verify"
        [data]
        files = ["none"]
        [train]
        steps = 1
        precision = "f32"
        clip = 0.0
        schedule = "constant"
        [storage]
        host = "1TiB"
        [trace]
        enabled = false
    };
    let mut set = |section: &str, key: &str, value: toml::Value| {
        let entry = table.entry(section).or_insert(toml::Value::Table(toml::Table::new()));
        if let Some(section) = entry.as_table_mut() {
            section.insert(key.to_owned(), value);
        }
    };
    set("model", "from", request.model.display().to_string().into());
    set("train", "batch", (batch as i64).into());
    set("train", "micro_batch", (batch as i64).into());
    set("train", "seq", (seq as i64).into());
    if let Some(train) = train {
        set("train", "steps", (train.steps as i64).into());
        set("train", "lr", train.lr.into());
        set("train", "clip", train.clip_grad_norm.into());
        let optimizer: toml::Table = [
            ("beta1", train.beta1),
            ("beta2", train.beta2),
            ("eps", train.eps),
            ("weight_decay", train.weight_decay),
        ]
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value.into()))
        .collect();
        let gate: toml::Table =
            [("aux_coef".to_owned(), train.router_aux_loss_coef.into())].into_iter().collect();
        set("actors", "optimizer", optimizer.into());
        set("actors", "gate", gate.into());
    }
    let text = toml::to_string(&table)
        .map_err(|e| Error::bug("the configuration has no TOML form").from_source(e))?;
    Config::parse(&text, Path::new("verify.toml"), &request.sets)
}

fn check_logits(
    request: &Request,
    reference: &Checkpoint,
    ids: &Ids,
    findings: &mut Findings,
) -> Result<()> {
    let shape = reference.info("logits")?.1.shape.clone();
    let mut expected = vec![0f32; shape.iter().product::<u64>() as usize];
    reference.read_f32("logits", &mut expected)?;
    let vocab = shape.last().map_or(1, |&v| v as usize);
    let at: Vec<(usize, usize)> =
        (0..ids.rows).flat_map(|row| (0..ids.columns).map(move |column| (row, column))).collect();
    let logits = in_session(request, (ids.rows, ids.columns), None, |session| {
        session.logits(&ids.batch(), &at)
    })?;
    for (got, want) in logits.iter().zip(expected.chunks(vocab)) {
        if got.len() != want.len() {
            return Err(Error::input("the reference has another vocabulary than the model")
                .with("reference", want.len())
                .with("model", got.len()));
        }
        for (&got, &want) in got.iter().zip(want) {
            let difference = f64::from((got - want).abs());
            findings.logits_max_abs = findings.logits_max_abs.max(difference);
            let relative = difference / f64::from(want.abs()).max(1e-3);
            findings.logits_max_rel = findings.logits_max_rel.max(relative);
            findings.add_bits(u64::from(got.to_bits()));
            if !got.is_finite() {
                findings.logits_max_abs = f64::INFINITY;
            }
        }
    }
    Ok(())
}

fn check_greedy(request: &Request, reference: &Checkpoint, findings: &mut Findings) -> Result<()> {
    if !reference.contains("greedy") {
        return Ok(());
    }
    const NEW: usize = 24;
    let expected = Ids::read(reference, "greedy", &request.reference)?;
    let prompt = expected.columns.saturating_sub(NEW).max(1);
    // With several ranks every one needs a sequence; only the first counts.
    let rows = ranks_of(request)?;
    let length = expected.columns;
    findings.greedy_total = length - prompt;
    findings.greedy_equal = in_session(request, (rows, length), None, |session| {
        let mut text = expected.values[..prompt].to_vec();
        let mut equal = 0;
        for (at, &want) in expected.values.iter().enumerate().take(length).skip(prompt) {
            // Attention is causal: what stands behind the last token changes nothing before it.
            let mut ids = vec![0; rows * length];
            ids[..text.len()].copy_from_slice(&text);
            let targets = vec![IGNORED; ids.len()];
            let batch = Batch { batch: rows, seq: length, ids, targets };
            let logits = session.logits(&batch, &[(0, at - 1)])?;
            let best = argmax(&logits[0]) as i64;
            equal += usize::from(best == want);
            text.push(best);
        }
        Ok(equal)
    })?;
    Ok(())
}

fn ranks_of(request: &Request) -> Result<usize> {
    for rows in 1..=64 {
        if let Ok(config) = config(request, rows, 8, None) {
            return Ok(config.parallel.expert);
        }
    }
    Ok(config(request, 1, 8, None)?.parallel.expert)
}

/// The index of the largest value; the first among equals.
pub fn argmax(values: &[f32]) -> usize {
    let mut best = 0;
    for (index, value) in values.iter().enumerate() {
        if *value > values[best] {
            best = index;
        }
    }
    best
}

fn check_training(
    request: &Request,
    path: &Path,
    config: &Path,
    findings: &mut Findings,
) -> Result<()> {
    let text = std::fs::read_to_string(config)
        .map_err(|e| Error::io(format!("reading {}", config.display()), e))?;
    let train: TrainConfig = serde_json::from_str(&text).map_err(|e| {
        Error::input(format!("{} is no training reference", config.display())).from_source(e)
    })?;
    let reference = Checkpoint::open_file(path)?;
    let ids = Ids::read(&reference, "input_ids", path)?;
    let read = |name: &str| -> Result<Vec<f32>> {
        let mut values = vec![0f32; train.steps];
        reference.read_f32(name, &mut values)?;
        Ok(values)
    };
    let (losses, norms) = (read("loss")?, read("grad_norm")?);
    let batch = ids.batch();
    let numbers = in_session(request, (ids.rows, ids.columns), Some(&train), |session| {
        (0..train.steps).map(|_| session.train(&batch)).collect::<Result<Vec<_>>>()
    })?;
    for (index, step) in numbers.iter().enumerate() {
        findings.add_bits(step.loss.to_bits());
        findings.add_bits(step.grad_norm.to_bits());
        findings.steps.push(Step {
            step: index + 1,
            loss: step.loss,
            reference_loss: f64::from(losses[index]),
            lm_loss: step.lm_loss,
            aux_loss: step.aux_loss,
            grad_norm: step.grad_norm,
            reference_grad_norm: f64::from(norms[index]),
        });
    }
    Ok(())
}

impl Findings {
    fn add_bits(&mut self, bits: u64) {
        self.fingerprint =
            self.fingerprint.rotate_left(5).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ bits;
    }
}
