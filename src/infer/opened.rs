//! A checkpoint of which the headers were read and whose memory was planned, and nothing more.
//!
//! Both the generator and its plan begin here, so that they refuse and promise alike.

use super::forecast::Workload;
use super::habits::Habits;
use super::headers::{context, in_place, workload};
use super::memory::{self, MemoryPlan, Needs};
use super::opening;
use super::options::Options;
use crate::base::Result;
use crate::base::program::give_back_unused;
use crate::model::checkpoint::Source;
use crate::model::config::ModelConfig;
use crate::model::forward::Forward;
use crate::model::kernels::allocator::tune_allocator;
use crate::model::kernels::libtorch;
use crate::storage::in_place::InPlace;
use std::path::PathBuf;
use std::sync::Arc;

/// See the module.
#[derive(Debug)]
pub struct Opened {
    pub source: Arc<Source>,
    /// The folder of its index.
    pub index: Option<PathBuf>,
    pub config: ModelConfig,
    /// Where the experts lie.
    pub files: Arc<InPlace>,
    pub needs: Needs,
    pub plan: MemoryPlan,
    pub workload: Workload,
}

impl Opened {
    /// Opens the checkpoint of `options` and plans its memory.
    ///
    /// # Errors
    /// As [`Source::open`]; `Budget` with the smallest memory that works; `Config` for options
    /// that mean nothing.
    pub fn new(options: &Options) -> Result<Self> {
        tune_allocator()?;
        options.check()?;
        // Who promises no figure may as well find these pages there at the next start.
        if options.memory.is_some() {
            libtorch::settle();
            give_back_unused();
        }
        let program = memory::resident_memory()?;
        let (source, index) = match &options.index {
            Some(cache) => {
                let source = opening::open(&options.model, cache)?.0;
                (source, Some(opening::folder_of(&options.model, cache)?))
            }
            None => (Source::open(&options.model)?, None),
        };
        let source = Arc::new(source);
        let config = source.config().clone();
        let context = context(&config, options.context)?;
        let files = Arc::new(in_place(&source)?);
        let threads = match options.threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            threads => threads,
        };
        let tokenizer_file = options.model.join("tokenizer.json");
        let needs = Needs {
            program,
            dense: Forward::resident_bytes(&config, source.as_ref())?,
            embedding: Forward::embedding_bytes(&config, source.as_ref())?,
            slot_bytes: files.slot_bytes(),
            blocks: files.len() as u32,
            context,
            threads,
            tokenizer: std::fs::metadata(&tokenizer_file).map_or(0, |meta| meta.len()),
            predictor: Habits::bytes(&config, options.predictor.counts_follows()),
        };
        let plan = MemoryPlan::new(&config, &needs, options)?;
        let workload = workload(&source, &files, plan.slots, options)?;
        Ok(Self { source, index, config, files, needs, plan, workload })
    }
}
