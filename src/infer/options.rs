//! What is asked of a generator.

use super::foresight::PredictorKind;
use super::opening;
use crate::base::units::Bytes;
use crate::base::{Error, Result};
use crate::model::forward::KvType;
use crate::model::kernels::linear::Activations;
use crate::storage::disk::IoOptions;
use crate::storage::policy::PolicyConfig;
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
    /// Where the timeline of the last passes is written in the end: a picture (.svg), or Chrome's trace.
    pub timeline: Option<PathBuf>,
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
            timeline: None,
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
        if let Some(file) = &self.timeline {
            // Found out now, and not when the run has ended.
            let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty());
            if folder.is_some_and(|folder| !folder.is_dir()) {
                let text = "the timeline's folder is not there: make it, or name another file";
                return Err(Error::config(text).with("timeline", file.display()));
            }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeline_needs_its_folder() {
        let folder = tempfile::tempdir().unwrap();
        let with = |file: PathBuf| Options { timeline: Some(file), ..Options::new("x") }.check();
        assert!(
            with(folder.path().join("passes.svg")).is_ok() && with("passes.svg".into()).is_ok()
        );
        let error = with(folder.path().join("none/passes.svg")).unwrap_err().to_string();
        assert!(error.contains("none/passes.svg"), "{error}");
    }
}
