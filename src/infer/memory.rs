//! The promise on memory: everything that the process will hold, planned before any of it is.

use super::mix::Mix;
use super::options::Options;
use super::timeline;
use crate::base::ledger::Ledger;
use crate::base::units::Bytes;
use crate::base::{Error, ErrorKind, Result};
use crate::model::config::ModelConfig;
use crate::model::forward::{Forward, KvCache};
use crate::model::kernels::linear::grouped_bytes;

/// What a plan is made from; all of it comes from headers.
#[derive(Debug, Clone, Copy)]
pub struct Needs {
    /// The process as it is before anything is loaded.
    pub program: u64,
    /// Dense weights as they are kept, and how much of that is an embedding that may stay in its file.
    pub dense: u64,
    pub embedding: u64,
    pub slot_bytes: u64,
    /// Experts of all layers.
    pub blocks: u32,
    pub context: usize,
    pub threads: usize,
    /// `tokenizer.json`, which takes several times its size once loaded.
    pub tokenizer: u64,
    /// What the predictor keeps.
    pub predictor: u64,
}

/// The plan.
#[derive(Debug, Clone)]
pub struct MemoryPlan {
    pub ledger: Ledger,
    pub slots: u32,
    /// The embedding stays in its file: experts stream, and each that is in memory saves reading one.
    pub embedding_in_file: bool,
}

/// What loading keeps for each byte of a `tokenizer.json`, as measured: its maps and merges.
const TOKENIZER_FACTOR: u64 = 6;
/// Stacks that are touched, the rings and queues of the io service, and small structures.
const THREADS: u64 = 8 << 20;
/// What the heap keeps beyond what is in use, while chunks of many sizes come and go.
const HEAP: u64 = 16 << 20;

impl MemoryPlan {
    /// Plans into `options.memory`, or into what is free.
    ///
    /// # Errors
    /// `Budget` with the smallest figure that works.
    pub fn new(config: &ModelConfig, needs: &Needs, options: &Options) -> Result<Self> {
        let most = u64::from(options.slots.unwrap_or(needs.blocks).min(needs.blocks));
        let held = others(config, needs, options, false);
        let budget = match options.memory {
            Some(memory) => memory.0,
            None => (held.total() + needs.slot_bytes * most)
                .min(free_memory()? / 10 * 9 + needs.program),
        };
        let slots_beside = |others: &Ledger| {
            (budget.saturating_sub(others.total()) / needs.slot_bytes.max(1)).min(most)
        };
        let streams = slots_beside(&held) < u64::from(needs.blocks);
        let embedding_in_file = streams && needs.embedding > 0;
        let mut ledger =
            if embedding_in_file { others(config, needs, options, true) } else { held };
        let slots = slots_beside(&ledger);
        if slots == 0 && needs.blocks > 0 {
            let text = "the memory is too small for this model: give --memory at least the \
                        smallest that works, or fewer sequences, a shorter context, smaller chunks";
            return Err(Error::new(ErrorKind::Budget, text)
                .with("memory", Bytes(budget))
                .with("smallest", mebibytes_up(ledger.total() + needs.slot_bytes)));
        }
        let note = format!("{slots} of {} blocks of {}", needs.blocks, Bytes(needs.slot_bytes));
        ledger.add("expert slots", needs.slot_bytes * slots, note);
        Ok(Self { ledger, slots: slots as u32, embedding_in_file })
    }
}

/// All but the experts.
fn others(
    config: &ModelConfig,
    needs: &Needs,
    options: &Options,
    embedding_in_file: bool,
) -> Ledger {
    let mut ledger = Ledger::default();
    ledger.add("program", needs.program, "held before anything is loaded");
    let (dense, note) = match embedding_in_file {
        true => (
            needs.dense - needs.embedding,
            "attention, norms, shared experts, head; a token's row of the embedding is read",
        ),
        false => (needs.dense, "attention, norms, shared experts, embedding, head"),
    };
    ledger.add("dense weights", dense, note);
    let kv = KvCache::bytes(config, needs.context, options.kv) * options.sequences as u64;
    let note = format!("{} sequences of {} positions", options.sequences, needs.context);
    ledger.add("keys and values", kv, note);
    let rows = options.chunk.max(options.sequences);
    let note = format!("rows of {rows} tokens, logits");
    let buffers = activations(config, rows, needs, options.sequences);
    ledger.add("activations", buffers, note);
    let index =
        u64::from(needs.blocks) * 320 + needs.tokenizer * TOKENIZER_FACTOR + needs.predictor;
    ledger.add("index and tokenizer", index, "places of the blocks, vocabulary, predictor");
    let threads = THREADS + (64 << 10) * needs.threads as u64;
    ledger.add("threads and io", threads, "stacks, queues, rings");
    let spans = timeline::recorded(options).bytes();
    if spans > 0 {
        ledger.add("timeline", spans, "what the last passes did");
    }
    ledger.add("allocator", HEAP, "what the heap keeps beyond what is in use");
    ledger
}

/// A size that can be given on the command line and is enough.
fn mebibytes_up(bytes: u64) -> String {
    format!("{}MiB", bytes.div_ceil(1 << 20))
}

/// Buffers of the forward pass, the experts and the sampler at their largest.
fn activations(config: &ModelConfig, rows: usize, needs: &Needs, sequences: usize) -> u64 {
    let h = config.hidden;
    let width = config.expert_width.max(config.shared_width.unwrap_or(0));
    // The products' scratch: inputs taken in twice, one of them in two forms, gate and up, what they join to,
    // the output. Or, in bf16, one input in one form and the rest, and what experts take together.
    let joined = 3 * width + h;
    let products = 4 * rows * (3 * h.max(width) + joined);
    let grouped = grouped_bytes((rows, config.top_k), (h, config.expert_width), needs.threads)
        + rows * (2 * h.max(width) + 4 * joined);
    let floats = rows * 2 * h + 3 * sequences * config.vocab;
    Forward::buffer_bytes(config, rows, sequences, needs.context, needs.threads)
        + Mix::bytes(rows, config.top_k, h)
        + (4 * floats + products.max(grouped)) as u64
}

/// Bytes that the system can give without swapping.
///
/// # Errors
/// `Io` where /proc cannot be read.
pub fn free_memory() -> Result<u64> {
    kilobytes_of("/proc/meminfo", "MemAvailable:")
}

/// Bytes of memory that the system has.
///
/// # Errors
/// `Io` where /proc cannot be read.
pub fn whole_memory() -> Result<u64> {
    kilobytes_of("/proc/meminfo", "MemTotal:")
}

/// Bytes of memory that the process holds now.
///
/// # Errors
/// `Io` where /proc cannot be read.
pub fn resident_memory() -> Result<u64> {
    kilobytes_of("/proc/self/status", "VmRSS:")
}

/// The most that it ever held.
///
/// # Errors
/// `Io` where /proc cannot be read.
pub fn peak_memory() -> Result<u64> {
    kilobytes_of("/proc/self/status", "VmHWM:")
}

fn kilobytes_of(path: &str, key: &str) -> Result<u64> {
    let text =
        std::fs::read_to_string(path).map_err(|e| Error::io(format!("cannot read {path}"), e))?;
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    let number = line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    number.map(|kilobytes| kilobytes << 10).ok_or_else(|| {
        Error::input(format!("{path} does not say {key} which memory is planned by"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::family::Family;

    fn config() -> ModelConfig {
        ModelConfig {
            vocab: 1000,
            hidden: 64,
            layers: 2,
            heads: 4,
            kv_heads: 4,
            head_dim: 16,
            experts: 8,
            top_k: 2,
            expert_width: 32,
            max_position: 128,
            ..ModelConfig::of_family(Family::Olmoe)
        }
    }

    fn needs() -> Needs {
        Needs {
            program: 100 << 20,
            dense: 10 << 20,
            embedding: 4 << 20,
            slot_bytes: 1 << 20,
            blocks: 16,
            context: 128,
            threads: 2,
            tokenizer: 0,
            predictor: 0,
        }
    }

    fn plan(memory: u64) -> Result<MemoryPlan> {
        let options = Options { memory: Some(Bytes(memory)), ..Options::new("x") };
        MemoryPlan::new(&config(), &needs(), &options)
    }

    #[test]
    fn the_plan_keeps_the_promise_and_the_smallest_figure_works() {
        let refused = plan(64 << 20).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Budget);
        let text = refused.to_string();
        let figure = text.split("smallest=").nth(1).unwrap().trim_end_matches(')');
        let smallest = figure.parse::<Bytes>().unwrap().0;
        assert!(plan(smallest).unwrap().slots >= 1);
        assert!(plan(smallest - (1 << 20)).is_err(), "{text}");
        for memory in [smallest, smallest + (5 << 20) + 17, smallest + (100 << 20)] {
            let plan = plan(memory).unwrap();
            assert!(plan.ledger.total() <= memory, "{}", plan.ledger);
        }
        assert_eq!(plan(smallest + (100 << 20)).unwrap().slots, 16);
    }

    #[test]
    fn the_embedding_stays_in_its_file_while_experts_stream() {
        let all = plan(1 << 30).unwrap();
        assert!(all.slots == 16 && !all.embedding_in_file);
        // Without room for one more: what the embedding takes is worth four blocks.
        let fewer = plan(all.ledger.total() - (8 << 20)).unwrap();
        assert!(fewer.slots == 12 && fewer.embedding_in_file, "{}", fewer.ledger);
        let tied = Needs { embedding: 0, ..needs() };
        let memory = Some(Bytes(all.ledger.total() - (8 << 20)));
        let options = Options { memory, ..Options::new("x") };
        let plan = MemoryPlan::new(&config(), &tied, &options).unwrap();
        assert!(plan.slots == 8 && !plan.embedding_in_file, "{}", plan.ledger);
    }

    #[test]
    fn the_process_knows_its_own_size() {
        let (now, peak) = (resident_memory().unwrap(), peak_memory().unwrap());
        assert!(now > 1 << 20 && peak >= now && free_memory().unwrap() > 0);
    }
}
