//! The training stage: what the executor thread of a rank does for each task.
//!
//! ```text
//! Batch ─► Dense(0) ─► Gate(0) ─►(Dispatch)─► Expert(0,e) ─►(Combine)─► Dense(1) … Head ─► Totals
//!                                                                                          │
//! UpdateDense ◄─ Norm ◄─ DenseGrad(0) ◄─ GateGrad(0) ◄─(CombineGrad)◄─ ExpertGrad(0,e) ◄─ … ┘
//! ```
//!
//! Law 4: each task computes with shapes that depend on the batch and the routes alone, sums in
//! an order that the planner fixes, and never asks where a block came from.

mod backward;
mod exchange;
mod forward;
mod routes;
mod tables;
mod totals;
pub mod update;

use crate::actors::committing::DenseSlot;
use crate::actors::communicator::Staging;
use crate::actors::stage::{Batch, Incoming, Outcome, PassNumbers, Stage};
use crate::base::{Error, Result, Step};
use crate::graph::planner::{Pass, Task, Work};
use crate::model::dense::DenseModel;
use crate::model::expert::ExpertShape;
use crate::model::gate::{AuxScope, Gate, RouterStats};
use crate::model::kernels::parallel::set_threads;
use crate::storage::lease::Lease;
use std::collections::HashMap;
use std::ops::Range;
use tables::PassTable;
use tch::Tensor;
use totals::Totals;
use update::Updater;

/// The learning rate of a step, counted from 1.
pub type Schedule = Box<dyn Fn(Step) -> f64 + Send>;

/// What a stage is made of.
pub struct StageSpec {
    pub model: DenseModel,
    pub gate: Box<dyn Gate>,
    pub updater: Updater,
    pub schedule: Schedule,
    pub rank: usize,
    pub ranks: usize,
    pub local_experts: Range<usize>,
    pub micro_batches: usize,
    pub seed: u64,
    /// Intra-op threads of this rank's executor.
    pub threads: usize,
    pub keep_dense: bool,
    pub keep_experts: bool,
    pub aux_coef: f64,
    pub aux_scope: AuxScope,
    pub z_coef: f64,
    /// 0 is off.
    pub clip: f64,
    pub skip_nonfinite: bool,
    pub updates: u64,
    pub step: Step,
    pub staging: Staging,
    /// Where snapshots put the dense state.
    pub dense: Option<DenseSlot>,
}

/// See the module.
pub struct TrainStage {
    model: DenseModel,
    gate: Box<dyn Gate>,
    shape: ExpertShape,
    updater: Updater,
    schedule: Schedule,
    rank: usize,
    ranks: usize,
    local_experts: Range<usize>,
    micro_batches: usize,
    seed: u64,
    keep_dense: bool,
    keep_experts: bool,
    aux_coef: f64,
    aux_scope: AuxScope,
    z_coef: f64,
    clip: f64,
    skip_nonfinite: bool,
    updates: u64,
    staging: Staging,
    dense: Option<DenseSlot>,
    // The current pass.
    step: Step,
    pass: Pass,
    table: Option<PassTable>,
    totals: PassTotals,
    gathered: Option<Vec<Totals>>,
    /// Choice counts that ranks exchanged, `[rank][micro-batch][K * E]`, by layer.
    counts: HashMap<usize, Vec<Vec<Vec<u64>>>>,
    /// Squared norms of expert gradients, `[layer][expert]`.
    norms: Vec<Vec<f64>>,
    /// Of each layer; empty without the loss.
    aux_grads: Vec<Tensor>,
    z_scale: f64,
    numbers: PassNumbers,
    /// Rows whose logits the pass hands out, `[micro-batch][row]`.
    logits_of: Vec<Vec<i64>>,
}

/// Sums of the pass so far.
#[derive(Debug, Default)]
struct PassTotals {
    nll: f64,
    targets: u64,
    dropped: u64,
    load: Vec<Vec<u64>>,
    /// Of each layer.
    stats: Vec<RouterStats>,
    logits: Vec<Vec<f32>>,
}

impl TrainStage {
    /// Made on the executor thread, whose number of intra-op threads it sets.
    pub fn new(spec: StageSpec) -> Result<Self> {
        set_threads(spec.threads)?;
        let config = spec.model.config();
        let norms = vec![vec![0.0; config.experts]; config.layers];
        Ok(Self {
            shape: spec.updater.shape,
            model: spec.model,
            gate: spec.gate,
            updater: spec.updater,
            schedule: spec.schedule,
            rank: spec.rank,
            ranks: spec.ranks,
            local_experts: spec.local_experts,
            micro_batches: spec.micro_batches,
            seed: spec.seed,
            keep_dense: spec.keep_dense,
            keep_experts: spec.keep_experts,
            aux_coef: spec.aux_coef,
            aux_scope: spec.aux_scope,
            z_coef: spec.z_coef,
            clip: spec.clip,
            skip_nonfinite: spec.skip_nonfinite,
            updates: spec.updates,
            staging: spec.staging,
            dense: spec.dense,
            step: spec.step,
            pass: Pass::Train,
            table: None,
            totals: PassTotals::default(),
            gathered: None,
            counts: HashMap::new(),
            norms,
            aux_grads: Vec::new(),
            z_scale: 0.0,
            numbers: PassNumbers::default(),
            logits_of: Vec::new(),
        })
    }

    fn begin_pass(&mut self, task: Task, batch: Batch) -> Result<()> {
        if batch.ids.len() != self.micro_batches {
            return Err(Error::bug("a pass has the wrong number of micro-batches")
                .with("got", batch.ids.len())
                .with("expected", self.micro_batches));
        }
        (self.step, self.pass) = (task.step, task.pass);
        self.logits_of.clone_from(&batch.logits_of);
        self.table = Some(PassTable::new(batch, self.model.config().layers)?);
        self.totals = PassTotals::default();
        self.gathered = None;
        self.counts.clear();
        self.norms.iter_mut().flatten().for_each(|norm| *norm = 0.0);
        self.numbers = PassNumbers::default();
        if task.pass == Pass::Train {
            self.model.params_mut().zero_grad()?;
        }
        Ok(())
    }

    fn local(&self, expert: usize) -> Result<usize> {
        if !self.local_experts.contains(&expert) {
            return Err(Error::bug("an expert was given to a rank that does not own it")
                .with("expert", expert)
                .with("rank", self.rank));
        }
        Ok(expert - self.local_experts.start)
    }
}

impl Stage for TrainStage {
    fn run(&mut self, task: Task, lease: &mut Lease) -> Result<Outcome> {
        match task.work {
            Work::Dense { layer, mb } => self.dense(task, layer, mb),
            Work::Gate { layer, mb } => self.gate(task, layer, mb),
            Work::Route { layer } => self.route(layer),
            Work::Expert { layer, expert } => self.expert(task, layer, expert, lease),
            Work::Head { mb } => self.head(task, mb),
            Work::Totals => self.totals(task),
            Work::ExpertGrad { layer, expert } => self.expert_grad(task, layer, expert, lease),
            Work::GateGrad { layer, mb } => self.gate_grad(layer, mb),
            Work::DenseGrad { layer, mb } => self.dense_grad(task, layer, mb),
            Work::Norm => self.norm(task),
            Work::UpdateDense => self.update_dense(),
            Work::Update { layer, expert, number } => {
                self.updater.update((layer, expert), (number - 1, number), lease)
            }
            Work::CatchUp { layer, expert, from, to } => {
                self.updater.update((layer, expert), (from, to), lease)
            }
            Work::DropGrad { .. } => Ok(Outcome::default()),
            Work::Snapshot => self.snapshot(),
            work => {
                Err(Error::bug("the executor was given a task of another thread")
                    .with("task", work))
            }
        }
    }

    fn deliver(&mut self, task: Task, incoming: Incoming) -> Result<()> {
        self.take(task, incoming)
    }
}

/// The optimizer on a thread of its own.
pub struct UpdateStage(Updater);

impl UpdateStage {
    /// Made on the optimizer's thread, whose number of helpers it sets: `threads` with itself.
    ///
    /// # Errors
    /// As [`set_threads`].
    pub fn new(updater: Updater, threads: usize) -> Result<Self> {
        set_threads(threads)?;
        Ok(Self(updater))
    }
}

impl Stage for UpdateStage {
    fn run(&mut self, task: Task, lease: &mut Lease) -> Result<Outcome> {
        match task.work {
            Work::Update { layer, expert, number } => {
                self.0.update((layer, expert), (number - 1, number), lease)
            }
            Work::CatchUp { layer, expert, from, to } => {
                self.0.update((layer, expert), (from, to), lease)
            }
            work => {
                Err(Error::bug("the optimizer was given a task of another thread")
                    .with("task", work))
            }
        }
    }

    fn deliver(&mut self, _: Task, _: Incoming) -> Result<()> {
        Err(Error::bug("nothing is delivered to the optimizer"))
    }
}
