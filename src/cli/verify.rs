//! `semoe verify DIR --reference FILE`: does a checkpoint compute what it should?

use super::output;
use crate::base::{Error, ErrorKind, Result};
use crate::infer::options::Options;
use crate::infer::verify as infer;
use crate::model::kernels::linear::Activations;
use crate::train::verify::{Findings, Request, verify};
use clap::Args;
use std::fmt::Write;
use std::path::PathBuf;

#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// Checkpoint folder in the Hugging Face layout.
    #[arg(value_name = "DIR")]
    model: PathBuf,
    /// Reference outputs: input_ids, logits, greedy.
    #[arg(long, value_name = "FILE")]
    reference: PathBuf,
    /// Reference of a few training steps: input_ids, loss, grad_norm.
    #[arg(long, value_name = "FILE", requires = "train_config")]
    train_reference: Option<PathBuf>,
    /// The reference's hyper-parameters.
    #[arg(long, value_name = "FILE", requires = "train_reference")]
    train_config: Option<PathBuf>,
    /// Largest absolute difference of logits.
    #[arg(long, default_value_t = 1e-3)]
    tolerance: f64,
    /// Largest relative difference of losses (gradient norms: five times as much).
    #[arg(long, default_value_t = 2e-4)]
    train_tolerance: f64,
    /// Overrides one key of the configuration, such as storage.host=1MiB or parallel.expert=2.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
    /// Also write the findings as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

impl VerifyArgs {
    /// Runs the command.
    ///
    /// # Errors
    /// Beyond a tolerance, and whatever keeps the checkpoint from being run.
    pub fn run(self) -> Result<()> {
        // What is set is a configuration of the training path.
        if self.sets.is_empty() {
            self.generate()?;
        }
        if self.sets.is_empty() && self.train_reference.is_none() {
            return Ok(());
        }
        let findings = verify(&Request {
            model: self.model,
            reference: self.reference,
            train_reference: self.train_reference,
            train_config: self.train_config,
            sets: self.sets,
            tolerance: self.tolerance,
            train_tolerance: self.train_tolerance,
        })?;
        output::print(&table(&findings))?;
        if let Some(path) = &self.json {
            output::write_json(path, &findings)?;
        }
        if findings.passed {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Mismatch, "the checkpoint differs from its reference")
            .with("tolerance", self.tolerance)
            .with("train_tolerance", self.train_tolerance))
    }

    /// The path that generates: logits and greedy tokens, resident and streamed.
    fn generate(&self) -> Result<()> {
        let findings = infer::verify(&infer::Request {
            // A reference is computed in f32.
            options: Options { activations: Some(Activations::F32), ..Options::new(&self.model) },
            reference: self.reference.clone(),
            tolerance: self.tolerance,
            prompt: infer::PROMPT,
        })?;
        let same = if findings.identical { "bit for bit the same" } else { "DIFFERENT" };
        output::print(&format!(
            "logits      largest difference {:.2e}\n\
             greedy      {} of {} tokens equal\n\
             streamed    {} of {} slots, {} bytes read: {same}\n",
            findings.logits_max_abs,
            findings.greedy_equal,
            findings.greedy_total,
            findings.smallest_slots,
            findings.resident_slots,
            findings.smallest_bytes_read,
        ))?;
        if let Some(path) = self.json.as_ref().filter(|_| self.train_reference.is_none()) {
            output::write_json(path, &findings)?;
        }
        if findings.passed {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Mismatch, "the checkpoint differs from its reference")
            .with("tolerance", self.tolerance))
    }
}

fn table(findings: &Findings) -> String {
    let mut text = format!(
        "logits      largest difference {:.2e} absolute, {:.2e} relative\n\
         greedy      {} of {} tokens equal\n",
        findings.logits_max_abs,
        findings.logits_max_rel,
        findings.greedy_equal,
        findings.greedy_total
    );
    if !findings.steps.is_empty() {
        text += "step        loss   reference   difference   grad norm   reference   difference\n";
    }
    for step in &findings.steps {
        let (loss, norm) = step.difference();
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "{:>4} {:>11.6} {:>11.6} {loss:>12.1e} {:>11.6} {:>11.6} {norm:>12.1e}",
            step.step, step.loss, step.reference_loss, step.grad_norm, step.reference_grad_norm
        );
    }
    let _ = writeln!(text, "fingerprint {:016x}", findings.fingerprint);
    text
}
