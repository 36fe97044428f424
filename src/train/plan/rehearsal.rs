//! Seconds that the arithmetic of a step takes: the run's own kernels, timed one expert, one
//! layer and one head at the run's own shapes, times how many of each a step has.

use crate::base::timing::median_seconds;
use crate::base::{Error, Result};
use crate::config::Config;
use crate::model::config::{ModelConfig, Precision};
use crate::model::dense::DenseModel;
use crate::model::expert::{self, ExpertView};
use crate::model::gate::{Assignments, GateContext, RouterStats, gate_backward};
use crate::model::kernels::parallel::{Threads, set_threads};
use crate::model::optim::{Optimizer, StepRate, Update};
use crate::model::params::DenseParams;
use crate::train::model_of;
use crate::train::placement::Load;
use serde::Serialize;
use std::time::Duration;
use tch::{Device, Kind, Tensor};

/// Time given to each piece beyond its first run.
const PATIENCE: Duration = Duration::from_millis(150);
const MOST_RUNS: usize = 15;
/// Tokens of a piece; what has more is timed with these and multiplied.
const MOST_TOKENS: usize = 4096;
/// Bytes of expert blocks that take turns, so that caches hold little more of them than in a run.
const IN_TURN: u64 = 96 << 20;
/// How many these are at least and at most.
const TURNS: (u64, u64) = (4, 64);

/// Seconds of a step, by what they are spent on.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Rehearsal {
    pub experts: f64,
    pub updates: f64,
    pub layers: f64,
    pub gates: f64,
    pub head: f64,
}

impl Rehearsal {
    /// Times the pieces of a run, on a thread of its own that takes its workers with it.
    ///
    /// # Errors
    /// `Torch` when a kernel fails, `Budget` when memory for a piece cannot be had.
    pub fn of(config: &Config, load: &Load) -> Result<Self> {
        std::thread::scope(|scope| {
            let rehearsing = std::thread::Builder::new()
                .name("semoe-plan".to_owned())
                .spawn_scoped(scope, || {
                    set_threads(load.threads)?;
                    Self::here(config, load)
                })
                .map_err(|e| Error::io("cannot start a thread", e))?;
            rehearsing.join().map_err(|_| Error::bug("the rehearsal panicked"))?
        })
    }

    pub fn seconds(&self) -> f64 {
        self.experts + self.updates + self.layers + self.gates + self.head
    }

    fn here(config: &Config, load: &Load) -> Result<Self> {
        let c = &load.config;
        let micro = load.batch * load.seq / load.micro_batches;
        let passes = (c.layers * load.micro_batches) as f64;
        let experts = (c.layers * c.experts) as f64;
        // Where tokens are few, not every expert gets one.
        let all_rows = (micro * c.top_k).div_ceil(c.experts);
        let rows = all_rows.min(MOST_TOKENS);
        // Whole sequences: attention is within them.
        let sequences = (micro / load.seq).max(1);
        let timed = sequences.min((MOST_TOKENS / load.seq).max(1));
        let more = sequences as f64 / timed as f64;
        let used = (c.experts as f64).min((micro * c.top_k) as f64);
        let update = update_seconds(config, load)?;
        Ok(Self {
            experts: expert_seconds(load, rows)? * (all_rows as f64 / rows as f64) * used * passes,
            updates: update * experts.min(used * passes),
            layers: layer_seconds(load, timed)? * more * passes,
            gates: gate_seconds(config, load, timed)? * more * passes,
            head: head_seconds(load, timed)? * more * load.micro_batches as f64,
        })
    }
}

/// Median seconds of `body`.
fn median(body: impl FnMut() -> Result<()>) -> Result<f64> {
    median_seconds(PATIENCE, MOST_RUNS, body)
}

/// Bytes of a slot, aligned to 64 as slots are.
struct Block {
    bytes: Vec<u8>,
    len: usize,
}

/// Zeros whose pages are there: in a run all slots soon are.
fn touched<T: Copy + Default + From<u8>>(len: usize) -> Vec<T> {
    let mut values = vec![T::from(1); len];
    // Else the compiler asks the system for zeros, which come page by page at first use.
    std::hint::black_box(&mut values);
    values.fill(T::default());
    values
}

impl Block {
    fn new(len: u64) -> Self {
        Self { bytes: touched(len as usize + 64), len: len as usize }
    }

    fn bytes(&mut self) -> &mut [u8] {
        let skip = self.bytes.as_ptr().align_offset(64);
        &mut self.bytes[skip..skip + self.len]
    }
}

/// How many blocks of so many bytes take turns: no more than a rank has, nor, but for the least, than
/// fit into the memory of its slots, which hold nothing yet.
fn turns(load: &Load, bytes: u64) -> usize {
    let blocks = (load.config.layers * load.config.experts / load.ranks) as u64;
    let (least, most) = TURNS;
    let fitting = IN_TURN.min(load.host) / bytes.max(1);
    fitting.clamp(least, most).min(blocks).max(1) as usize
}

/// One expert forward and backward over `rows` rows, with the gathering and returning of rows.
fn expert_seconds(load: &Load, rows: usize) -> Result<f64> {
    let shape = load.shape;
    let kind = shape.precision.kind();
    let (n, h) = (rows as i64, shape.hidden as i64);
    let turns = turns(load, shape.weights_bytes() + shape.grad_bytes());
    let mut weights: Vec<Block> = (0..turns).map(|_| Block::new(shape.weights_bytes())).collect();
    let mut grads: Vec<Vec<f32>> = (0..turns).map(|_| touched(shape.elements())).collect();
    let all = Tensor::f_ones([n * 4, h], (kind, Device::Cpu))?;
    let take = Tensor::f_arange(n, (Kind::Int64, Device::Cpu))?.f_mul_scalar(4)?;
    let mut out = all.f_zeros_like()?;
    let w_n = Tensor::f_ones([n], (Kind::Float, Device::Cpu))?;
    let mut turn = 0;
    median(|| {
        turn = (turn + 1) % turns;
        let view = ExpertView::new(shape, weights[turn].bytes())?;
        tch::no_grad(|| {
            let x_nh = all.f_index_select(0, &take)?;
            let (o_nh, kept) = expert::forward(&view, &x_nh, load.keep_experts)?;
            let _ = out.f_index_copy_(0, &take, &o_nh)?;
            let x_nh = all.f_index_select(0, &take)?;
            let g_nh = all.f_index_select(0, &take)?;
            let grad = &mut grads[turn];
            let made = expert::backward(&view, &x_nh, kept, &g_nh, &w_n, grad, true)?;
            let _ = out.f_index_copy_(0, &take, &made.dx_nh)?;
            made.sum_squares(grad).map(drop)
        })
    })
}

/// One expert's update.
fn update_seconds(config: &Config, load: &Load) -> Result<f64> {
    let shape = load.shape;
    let optimizer = model_of::optimizer(config);
    let turns = turns(load, shape.weights_bytes() + shape.state_bytes());
    let mut blocks: Vec<(Block, Block)> = (0..turns)
        .map(|_| (Block::new(shape.weights_bytes()), Block::new(shape.state_bytes())))
        .collect();
    let grad = vec![1e-3f32; shape.elements()];
    let steps = [StepRate { step: 1, lr: 1e-4 }];
    let mut turn = 0;
    median(|| {
        turn = (turn + 1) % turns;
        let (weights, state) = &mut blocks[turn];
        let update = Update {
            steps: &steps,
            grad: Some(&grad),
            grad_scale: 1.0,
            decay: true,
            threads: Threads::Pool,
        };
        optimizer.update(&update, shape.params(weights.bytes(), state.bytes())?)
    })
}

fn dense(load: &Load, layers: usize) -> Result<DenseModel> {
    let config = ModelConfig { layers, ..load.config.clone() };
    let precision: Precision = load.shape.precision;
    let params = DenseParams::init(&config, precision, 0)?;
    DenseModel::new(config, precision, params)
}

fn residual(load: &Load, sequences: usize) -> Result<Tensor> {
    let shape = [sequences as i64, load.seq as i64, load.config.hidden as i64];
    Ok(Tensor::f_ones(shape, (Kind::Float, Device::Cpu))?)
}

/// One layer's dense segment on so many sequences, there and back.
fn layer_seconds(load: &Load, sequences: usize) -> Result<f64> {
    let model = dense(load, 1)?;
    let x = residual(load, sequences)?;
    median(|| {
        let (tape, out) = match load.keep_dense {
            true => {
                let tape = model.layer_tape(0, &x)?;
                let out = model.layer_out(&tape)?;
                (tape, out)
            }
            false => {
                let out = model.layer(0, &x)?;
                (model.layer_tape(0, &x)?, out)
            }
        };
        let zeros = |like: &Tensor| like.f_zeros_like();
        let (dh, dy) = (zeros(&out.h_th)?, zeros(&out.y_th)?);
        // The expert's input has the compute type, its gradient is summed in f32.
        let dy = dy.f_to_kind(Kind::Float)?;
        let dlogits = zeros(&out.logits_te)?;
        model.layer_backward(tape, &dh, dy, &dlogits).map(drop)
    })
}

/// One layer's routing of so many sequences, with its backward.
fn gate_seconds(config: &Config, load: &Load, sequences: usize) -> Result<f64> {
    let experts = load.config.experts as i64;
    let mut gate = model_of::gate(config, &load.config)?;
    let tokens = (sequences * load.seq) as i64;
    let float = (Kind::Float, Device::Cpu);
    let logits = Tensor::f_arange(tokens * experts, float)?.f_sin()?.f_view([tokens, experts])?;
    let dw = Tensor::f_ones([tokens, gate.top_k() as i64], float)?;
    let ctx = GateContext { layer: 0, step: 1, seed: 0, train: true, first_token: 0 };
    median(|| {
        let selection = tch::no_grad(|| {
            let selection = gate.select(&ctx, &logits)?;
            Assignments::new(&selection, load.config.experts)?;
            RouterStats::of(gate.as_ref(), &logits, &selection)?;
            drop(gate.weights(&logits, &selection)?);
            Ok::<_, Error>(selection)
        })?;
        gate_backward(gate.as_ref(), &logits, &selection, &dw, None, 0.0).map(drop)
    })
}

/// Head and loss of so many sequences, with its backward.
fn head_seconds(load: &Load, sequences: usize) -> Result<f64> {
    let model = dense(load, 1)?;
    let x = residual(load, sequences)?;
    let targets = Tensor::f_zeros(&x.size()[..2], (Kind::Int64, Device::Cpu))?;
    median(|| model.head_loss(&x, &targets, 1.0).map(drop))
}
