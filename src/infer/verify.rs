//! Checking a checkpoint against another implementation's outputs, on the path that generates.
//!
//! The reference holds `input_ids` `[B,T]`, `logits` `[B,T,V]` and `greedy` `[1,P+N]`. Everything is
//! run twice: with all experts resident, and with the fewest slots that work, which evicts all the
//! time. Law 4: the two agree bit for bit.

use super::generator::Generator;
use super::options::Options;
use super::sampler::Sampling;
use super::session::Said;
use crate::base::{Error, Result};
use crate::model::hf::Checkpoint;
use serde::Serialize;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// What to check against what.
#[derive(Debug, Clone)]
pub struct Request {
    pub options: Options,
    pub reference: PathBuf,
    /// Absolute, on logits.
    pub tolerance: f64,
    /// Tokens of the prompt in `greedy`.
    pub prompt: usize,
}

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Findings {
    pub logits_max_abs: f64,
    pub greedy_equal: usize,
    pub greedy_total: usize,
    /// Slots of the two runs, and bytes that the second one read.
    pub resident_slots: u32,
    pub smallest_slots: u32,
    pub smallest_bytes_read: u64,
    /// Whether the two runs agreed bit for bit.
    pub identical: bool,
    pub passed: bool,
}

/// What one run gave.
#[derive(Debug, Clone, Default)]
struct Outputs {
    /// `[B·T][V]`.
    logits: Vec<Vec<f32>>,
    greedy: Vec<u32>,
    slots: u32,
    bytes_read: u64,
}

impl Outputs {
    fn bits(&self) -> impl Iterator<Item = u32> + '_ {
        self.logits.iter().flatten().map(|logit| logit.to_bits())
    }
}

/// Prompt tokens of the fixtures' `greedy`.
pub const PROMPT: usize = 9;

/// Checks.
///
/// # Errors
/// `Input` for a reference or checkpoint that cannot be read or does not fit, and whatever stopped
/// a run.
pub fn verify(request: &Request) -> Result<Findings> {
    let reference = Reference::open(&request.reference, request.prompt)?;
    let resident = run(&request.options, &reference)?;
    let smallest = Options { slots: Some(1), memory: None, ..request.options.clone() };
    let smallest = run(&smallest, &reference)?;

    let differences = resident.logits.iter().flatten().zip(&reference.logits);
    let logits_max_abs =
        differences.map(|(a, b)| f64::from((a - b).abs())).fold(0.0, |most: f64, difference| {
            // A number that is none is a difference beyond all tolerance.
            if difference.is_nan() { f64::INFINITY } else { most.max(difference) }
        });
    let (_, expected) = reference.greedy.split_at(reference.prompt);
    let equal = resident.greedy.iter().zip(expected).filter(|(a, b)| a == b).count();
    let identical = resident.greedy == smallest.greedy && resident.bits().eq(smallest.bits());
    Ok(Findings {
        logits_max_abs,
        greedy_equal: equal,
        greedy_total: expected.len(),
        resident_slots: resident.slots,
        smallest_slots: smallest.slots,
        smallest_bytes_read: smallest.bytes_read,
        identical,
        passed: identical && equal == expected.len() && logits_max_abs <= request.tolerance,
    })
}

struct Reference {
    rows: Vec<Vec<u32>>,
    /// `[B·T·V]`.
    logits: Vec<f32>,
    greedy: Vec<u32>,
    prompt: usize,
}

impl Reference {
    fn open(path: &Path, prompt: usize) -> Result<Self> {
        let file = Checkpoint::open_file(path)?;
        let ids = |name: &str| -> Result<(Vec<u32>, usize)> {
            let shape = file.info(name)?.1.shape.clone();
            let columns = shape.last().copied().unwrap_or(0) as usize;
            let values = file.read_i64(name)?;
            let values = values.into_iter().map(u32::try_from).collect::<Result<_, _>>();
            let values = values.map_err(|_| {
                Error::input("a reference has ids below 0").with("file", path.display())
            })?;
            Ok((values, columns))
        };
        let (input, columns) = ids("input_ids")?;
        let (greedy, length) = ids("greedy")?;
        let short = greedy.len() != length || length <= prompt || columns == 0;
        if short {
            return Err(Error::input("greedy is one row, longer than its prompt")
                .with("file", path.display())
                .with("prompt", prompt));
        }
        let elements = file.info("logits")?.1.shape.iter().product::<u64>() as usize;
        let mut logits = vec![0.0; elements];
        file.read_f32("logits", &mut logits)?;
        let rows = input.chunks(columns).map(<[u32]>::to_vec).collect();
        Ok(Self { rows, logits, greedy, prompt })
    }
}

fn run(options: &Options, reference: &Reference) -> Result<Outputs> {
    let mut generator = Generator::open(options)?;
    let mut outputs = Outputs { slots: generator.settings().effective.slots, ..Outputs::default() };
    let vocab = generator.config().vocab;
    let positions: usize = reference.rows.iter().map(Vec::len).sum();
    if reference.logits.len() != positions * vocab {
        return Err(Error::input("the reference's logits are not [B, T, V] of this model")
            .with("logits", reference.logits.len())
            .with("vocabulary", vocab));
    }
    let mut jobs = Vec::new();
    let mut first = HashMap::new();
    let mut before = 0;
    for row in &reference.rows {
        let mut job = generator.job(row.clone(), Sampling::greedy(), 0);
        job.logits = true;
        first.insert(job.id, before);
        before += row.len();
        jobs.push(job);
    }
    outputs.logits = vec![Vec::new(); positions];
    generator.run(jobs, |said| {
        if let Said::Logits { id, position, logits } = said
            && let Some(first) = first.get(id)
        {
            logits.clone_into(&mut outputs.logits[first + position]);
        }
        Ok(())
    })?;
    let (prompt, rest) = reference.greedy.split_at(reference.prompt);
    let mut job = generator.job(prompt.to_vec(), Sampling::greedy(), rest.len());
    job.ends.clear();
    generator.run(vec![job], |said| {
        if let Said::Token { token, .. } = said {
            outputs.greedy.push(*token);
        }
        Ok(())
    })?;
    let figures = generator.finish()?;
    outputs.bytes_read = figures.prompt.bytes_read + figures.decode.bytes_read;
    Ok(outputs)
}
