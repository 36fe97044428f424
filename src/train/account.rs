//! The memory of a run, line by line, before it starts.
//!
//! Law: at every moment resident memory and page cache together are at most the total, which
//! depends on the configuration and the machine alone: `semoe plan` and `semoe train` print the
//! same. Each line is a bound that follows from sizes;
//! `tests/limits/memory_within_ledger.rs` measures the sum.
//!
//! Legend, in bytes a token unless said: T tokens of a step over all ranks, t of a micro-batch on
//! one rank; C bytes of the compute type, B of the dense part's; H hidden, Q heads · D, G key/value
//! heads · D, E experts, K choices, F expert width, V vocabulary.

use super::placement::{Load, Placement};
use super::{blocks::Blocks, crew, prepare};
use crate::base::ledger::Ledger;
use crate::base::units::round_up;
use crate::config::{Config, GateKind, Tokenizer};
use crate::model::compute;
use crate::model::expert::{Kept, Kernels};
use crate::model::family::QkNorm;
use crate::model::kernels::vector::Heads;
use crate::model::loss::chunk_rows;
use crate::model::params::DenseParams;
use crate::storage::store::Store;
use crate::trace::RecorderOptions;

const MIB: u64 = 1 << 20;

/// The sizes that the lines are made of.
struct Sizes {
    ranks: u64,
    layers: u64,
    mbs: u64,
    /// T and t.
    step: u64,
    micro: u64,
    c: u64,
    b: u64,
    h: u64,
    q: u64,
    g: u64,
    e: u64,
    k: u64,
    f: u64,
    v: u64,
    shared: u64,
    threads: u64,
    /// Whether backward reads the projection of attention again.
    projection_kept: bool,
    /// Attention of a micro-batch.
    heads: Heads,
}

impl Sizes {
    fn new(load: &Load) -> Self {
        let config = &load.config;
        let (ranks, mbs) = (load.ranks as u64, load.micro_batches as u64);
        let step = (load.batch * load.seq) as u64;
        Self {
            ranks,
            layers: config.layers as u64,
            mbs,
            step,
            micro: step / (ranks * mbs).max(1),
            c: load.shape.precision.bytes() as u64,
            b: compute::dense(load.shape.precision).bytes() as u64,
            h: config.hidden as u64,
            q: (config.heads * config.head_dim) as u64,
            g: (config.kv_heads * config.head_dim) as u64,
            e: config.experts as u64,
            k: config.top_k as u64,
            f: config.expert_width as u64,
            v: config.vocab as u64,
            shared: config.shared_width.unwrap_or(0) as u64,
            threads: load.threads as u64,
            projection_kept: config.qk_norm != QkNorm::None || config.clip_qkv.is_some(),
            heads: Heads {
                sequences: load.batch / (load.ranks * load.micro_batches).max(1),
                tokens: load.seq,
                query_heads: config.heads,
                kv_heads: config.kv_heads,
                dim: config.head_dim,
            },
        }
    }

    /// What backward needs of a layer: its input, the experts' input, and the routes.
    fn boundary(&self, jitter: bool) -> u64 {
        // Rows that came from other ranks are kept beside the tokens they were made of.
        let arrived = if self.ranks > 1 { self.k * self.c * self.h } else { 0 };
        let logits = 4 * self.e * (1 + u64::from(jitter));
        // Choices, whether kept, weights, the rows in order of experts, and each expert's rows.
        let routes = self.k * (8 + 4 + 4 + 16 + 16);
        4 * self.h + self.c * self.h + arrived + logits + routes
    }

    /// What backward keeps of one layer's dense part, beside its input.
    fn tape(&self) -> u64 {
        let qkv = self.q + 2 * self.g;
        // The projection where it is read again, the operands of attention, its context and the
        // logarithms of its sums.
        let projection = if self.projection_kept { self.b * qkv } else { 0 };
        let attention = self.b * (qkv + self.q) + 4 * self.heads.query_heads as u64;
        // The residual stream after attention, and its norm.
        projection + attention + (4 + self.b) * self.h
    }

    /// Of a tape, what is the experts' input already, which the boundary counts.
    fn tape_of_boundary(&self) -> u64 {
        if self.b == self.c { self.c * self.h } else { 0 }
    }

    /// Rows that pass the experts of one layer, with those that wait for the next.
    fn rows(&self) -> u64 {
        let out = self.k * self.h * self.c;
        let forward = out + 4 * self.h;
        let backward = 4 * self.h + self.c * self.h + out + 4 * self.k;
        // Sent, arrived and put back in place.
        let exchanged = if self.ranks > 1 { 3 * out + 2 * self.c * self.h } else { 0 };
        (forward.max(backward) + exchanged) * (self.step + self.micro * self.ranks)
    }

    fn dense_forward(&self) -> u64 {
        // The layer's input, its norm, the projection; the output of attention; the second norm in
        // f32 for the router, and in the experts' type.
        let attention = 4 * self.h + self.b * (self.h + self.q + 2 * self.g);
        let outputs = (self.b + 4 + self.c) * self.h + 4 * self.e;
        (self.tape() + attention + outputs + self.shared_expert()) * self.micro
    }

    fn dense_backward(&self) -> u64 {
        // Gradients as they come, of the residual stream on its way, and of the layer's input; the
        // second norm in f32.
        let residual = 20 * self.h + 4 * self.e;
        // The first norm, gradients of both ends of attention and of what lies between.
        let moving = self.b * (3 * self.h + self.q + 2 * (self.q + 2 * self.g));
        // Sums of blocks of rows.
        let sums = 4 * (self.h + self.q + self.g).div_ceil(32);
        let rows = self.tape() + residual + moving + sums + self.shared_expert();
        let weights = self.h * (2 * self.q + 2 * self.g + 3 * self.shared);
        rows * self.micro + self.product(weights)
    }

    /// The shared expert's hidden layer, with the gradients of it, and its output.
    fn shared_expert(&self) -> u64 {
        if self.shared == 0 { 0 } else { 6 * self.b * self.shared + (self.b + 12) * self.h }
    }

    /// Weights' gradients that are rounded before they are added: in f32 none is.
    fn product(&self, elements: u64) -> u64 {
        if self.b < 4 { elements * self.b } else { 0 }
    }

    fn head(&self) -> u64 {
        let rows = (chunk_rows(self.v as i64) as u64).min(self.micro);
        // The logits, whose gradient takes their place, and once more as a product's operand.
        let chunk = rows * self.b * (2 * self.v + self.h);
        // Input, norm and their gradients.
        let row = 8 * self.h + 2 * self.b * self.h + 24;
        // The head's gradient, and a row's exponentials of each thread.
        let rest = self.product(self.v * self.h) + 4 * self.v * self.threads;
        chunk + row * self.micro + rest
    }

    /// Every token may choose one expert; its products' operands may be packed anew.
    fn expert(&self) -> u64 {
        let rows = self.micro * self.ranks;
        let libtorch = rows * self.c * (8 * self.h + 8 * self.f) + 2 * 3 * self.h * self.f * self.c;
        // Our vector kernels: the tensors in the compute type; in f32 both inputs and x again in
        // panels, gradients of gate and up, the weighted activation, and two panels a thread.
        let tensors = rows * self.c * (4 * self.h + 2 * self.f);
        let scratch = rows * 4 * (3 * self.h + 3 * self.f + 128 + 64 * self.threads);
        libtorch.max(tensors + scratch)
    }

    fn gate(&self) -> u64 {
        (40 * self.e + 64 * self.k) * self.micro
    }

    fn workspace(&self) -> u64 {
        let largest = [self.dense_forward(), self.dense_backward(), self.head(), self.expert()]
            .into_iter()
            .fold(self.gate(), u64::max);
        // Attention's panels and blocks, and the experts' kernels'.
        let scratch = (self.heads.scratch() as u64).max(2 * MIB);
        (largest + self.threads * scratch) * self.ranks
    }
}

/// sled's tables of latencies, which it makes whether or not it measures any: 42 of 512 KiB.
const INDEX: u64 = 24 * MIB;

/// The account of a run.
pub fn account(config: &Config, load: &Load, placement: &Placement) -> Ledger {
    let sizes = Sizes::new(load);
    let ranks = sizes.ranks;
    let mut ledger = Ledger::default();
    ledger.add("program and libtorch", PROGRAM, "code and registries that a run touches");

    let dense = DenseParams::bytes(&load.config, load.shape.precision) * ranks;
    let copies = if sizes.b < 4 { ", compute copies" } else { "" };
    ledger.add("dense parameters", dense, format!("masters, moments, gradient{copies}"));
    let state = round_up(DenseParams::state_bytes_of(&load.config), 4096);
    ledger.add("slot: dense state", state * ranks, "what a commit writes");

    let slots = placement.slots;
    for (name, count, bytes) in [
        ("slots: weights", slots.weights, placement.weights_bytes),
        ("slots: states", slots.states, placement.state_bytes),
        ("slots: gradients", slots.grads, placement.grad_bytes),
    ] {
        let note = format!("{count} of {} blocks on each rank", placement.blocks);
        ledger.add(name, u64::from(count) * bytes * ranks, note);
    }

    let jitter = config.actors.gate.kind == GateKind::Switch;
    let boundary = sizes.boundary(jitter) * sizes.step * sizes.layers;
    ledger.add("boundary activations", boundary, "kept from forward to backward");
    let mut heap = boundary;
    if load.keep_experts {
        let kept = kept_by_experts(load, &sizes);
        ledger.add("experts' activations", kept, "none with actors.expert.activations = recompute");
        heap += kept;
    }
    if load.keep_dense {
        let kept = (sizes.tape() - sizes.tape_of_boundary()) * sizes.step * sizes.layers;
        ledger.add("dense activations", kept, "none with actors.dense.activations = recompute");
        heap += kept;
    }
    let rows = sizes.rows();
    ledger.add("rows of a layer", rows, "expert inputs, outputs and their gradients");
    let workspace = sizes.workspace();
    ledger.add("workspace", workspace, "the largest node of each rank");
    if ranks > 1 {
        let sums = dense_gradient(load) * 4 * ranks;
        ledger.add("gradients' exchange", sums, "the dense gradient, sent, arriving and summed");
        heap += sums;
    }
    heap += rows + workspace;
    // A sixth was measured; of the dense parameters, which stay, what may wait beside them.
    let gaps = heap / 6 + dense / 32 + 8 * MIB;
    ledger.add("allocator", gaps, "what waits to be used again, and gaps of the heap");

    // The step's sequences as read, as divided, as tensors; for each rank.
    let batch = sizes.step * 16 * (2 + ranks);
    let held = prepare::held_bytes(config, load) * ranks;
    ledger.add("training data", held + batch, "token files up to 8 MiB, and a step's sequences");
    let recorder = recorder(config, load);
    ledger.add("timeline", recorder, "spans of the last steps, and a copy when it is written");
    let spec = placement.store(load, serde_json::Value::Null);
    let index = INDEX + (load.index_cache + Store::memory_required(&spec)) * ranks;
    ledger.add("index", index, "sled's tables, cache and log, and where every block lies");
    let nodes = (load.config.layers * load.config.experts * 8) as u64;
    ledger.add("graph", (nodes * 2048 + 4 * MIB) * ranks, "nodes of a step, messages, meters");
    let threads = crew::Threads::of(config, load).total() as u64;
    ledger.add("threads", threads * 512 * 1024, format!("stacks of {threads}"));
    // Eight bytes a page, and the kernel's own objects.
    ledger.add("page tables", ledger.total() / 512 + 4 * MIB, "and what else the kernel holds");

    let run = ledger.total();
    let start = PROGRAM + starting(config, load, placement);
    if start > run {
        ledger.add("start", start - run, "more than the above, until the first step");
    }
    ledger
}

/// Elements of the dense gradient.
fn dense_gradient(load: &Load) -> u64 {
    DenseParams::state_bytes_of(&load.config) / 3
}

/// The tile kernels keep whole blocks of 32 rows for each expert.
fn kept_by_experts(load: &Load, sizes: &Sizes) -> u64 {
    let rows = sizes.step * sizes.k;
    let padding = match Kernels::best(&load.shape) {
        Kernels::Libtorch | Kernels::Vector => 0,
        Kernels::Amx | Kernels::Pairs => (31 * sizes.e * sizes.mbs).min(31 * rows),
    };
    Kept::bytes(&load.shape, 1) / 32 * (rows + padding) * sizes.layers
}

fn recorder(config: &Config, load: &Load) -> u64 {
    let trace = &config.trace;
    let mbs = load.micro_batches;
    let experts = load.config.experts;
    // Nodes of a pass and what waited for them, moves of blocks, and evaluations in between.
    let pass = load.config.layers * (experts * 8 + mbs * 16 * load.ranks);
    let evaluations = if config.train.eval_every > 0 { config.train.eval_batches } else { 0 };
    let spans = (pass * (2 + evaluations)).saturating_mul(trace.steps as usize);
    let options = RecorderOptions {
        enabled: trace.enabled,
        max_events: trace.max_events.min(spans),
        steps: trace.steps,
    };
    2 * options.bytes()
}

/// What is held before the first step, beyond the program: the largest of tokenising, training
/// the tokenizer, writing the initial blocks, and loading the dense state into the executor.
fn starting(config: &Config, load: &Load, placement: &Placement) -> u64 {
    let threads = prepare::compute_threads(config) as u64;
    let tokenising = 32 * MIB + 24 * MIB * threads;
    let training = match config.data.tokenizer {
        Tokenizer::Bpe { .. } => prepare::sample_bytes(config) * 8,
        _ => 0,
    };
    let state = round_up(DenseParams::state_bytes_of(&load.config), 4096);
    let dense = DenseParams::bytes(&load.config, load.shape.precision) + 2 * state;
    let sets = Blocks::bytes(&placement.classes()) + load.shape.elements() as u64 * 4;
    let slots = (placement.slot_bytes() + state) * load.ranks as u64;
    let loading = dense * load.ranks as u64 + sets + slots;
    tokenising.max(training).max(loading)
}

/// What libtorch's registries (on the heap at start) and the touched pages of its code, this
/// program's and the other libraries' take: 150 MiB when it was measured, with and without tiles.
const PROGRAM: u64 = 160 * MIB;

/// The most memory that this process held: `VmHWM`, 0 where the system does not tell.
pub fn peak_resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    kib.map_or(0, |kib| kib * 1024)
}
