//! What was asked of a generator and what was put in place: printed, and in every report.

use super::foresight::PredictorKind;
use super::headers::encodings;
use super::memory::{MemoryPlan, Needs};
use super::options::{Options, kv_name};
use crate::actors::rank::Disk;
use crate::base::units::Bytes;
use crate::model::checkpoint::Source;
use crate::model::kernels::linear::Activations;
use crate::storage::disk::IoEffective;
use serde::Serialize;
use std::fmt;

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
    /// Each token reads its row of the embedding, which leaves room for more experts.
    pub embedding_in_file: bool,
    pub huge_pages: bool,
}

impl Settings {
    /// Of a generator with these parts.
    pub(super) fn new(
        options: &Options,
        needs: &Needs,
        plan: &MemoryPlan,
        io: &Disk,
        huge_pages: bool,
        warm: Option<u32>,
        source: &Source,
    ) -> Self {
        let activations = options.activations.unwrap_or_else(Activations::best);
        Self {
            requested: Requested {
                memory: options.memory,
                policy: options.policy.kind.name(),
                predictor: options.predictor,
                io_engine: format!("{:?}", options.io.engine).to_lowercase(),
                direct: format!("{:?}", options.io.direct).to_lowercase(),
                threads: options.threads,
                context: options.context,
                kv: kv_name(options.kv),
                activations: options.activations.map_or("auto", Activations::name),
                warm: options.warm,
            },
            effective: Effective {
                memory: Bytes(plan.ledger.total()),
                policy: options.policy.kind.name(),
                predictor: match plan.slots < needs.blocks {
                    true => options.predictor,
                    false => PredictorKind::None,
                },
                io: io.service().effective().clone(),
                weights: encodings(source),
                activations: activations.name(),
                instructions: activations.instructions(),
                kv: kv_name(options.kv),
                threads: needs.threads,
                context: needs.context,
                sequences: options.sequences,
                chunk: options.chunk,
                slots: plan.slots,
                blocks: needs.blocks,
                warm,
                slot_bytes: needs.slot_bytes,
                embedding_in_file: plan.embedding_in_file,
                huge_pages,
            },
        }
    }
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
