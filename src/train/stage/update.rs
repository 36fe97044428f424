//! Optimizer tasks: the global norm, dense and expert updates, replay of missed updates, and the
//! snapshot for a commit.

use super::TrainStage;
use crate::actors::stage::Outcome;
use crate::base::checksum::Joiner;
use crate::base::{BlockId, Error, ErrorKind, Part, Result};
use crate::config::{Config, Idle};
use crate::graph::planner::{Fact, Task};
use crate::model::expert::ExpertShape;
use crate::model::expert::checked::{self, Sums};
use crate::model::kernels::parallel::Threads;
use crate::model::optim::{Master, Optimizer, Params, StepRate, Update, sum_squares};
use crate::storage::lease::Lease;
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Mutex, PoisonError};

/// Learning rates of the updates done, and the factor of the last one. Shared between the
/// executor, which sets them, and a thread of the optimizer's own.
#[derive(Debug, Default)]
pub struct Rates {
    lr: Vec<f64>,
    scale: f64,
}

impl Rates {
    /// `lr`: of updates 1, 2, … as far as they were done.
    pub fn new(lr: Vec<f64>) -> Self {
        Self { lr, scale: 1.0 }
    }

    fn range(&self, after: u64, to: u64) -> Result<Vec<StepRate>> {
        let rates = self.lr.get(after as usize..to as usize).ok_or_else(|| {
            Error::bug("an update has no learning rate").with("after", after).with("to", to)
        })?;
        Ok((after + 1..).zip(rates).map(|(step, &lr)| StepRate { step, lr }).collect())
    }
}

/// The updates that a block with `applied` of `done` updates has missed. With
/// `optimizer.idle = "skip"` none ever come.
pub fn missed(config: &Config, rates: &Rates, applied: u64, done: u64) -> Result<Vec<StepRate>> {
    match config.actors.optimizer.idle {
        Idle::Exact => rates.range(applied.min(done), done),
        Idle::Skip => Ok(Vec::new()),
    }
}

/// What the optimizer needs, on whichever thread it runs.
#[derive(Clone)]
pub struct Updater {
    pub optimizer: Arc<dyn Optimizer>,
    pub shape: ExpertShape,
    pub rates: Arc<Mutex<Rates>>,
    pub threads: Threads,
    /// Whether states go back to SSD after their update, which then computes their checksum.
    pub streams: bool,
    pub joiner: Arc<Mutex<Joiner>>,
}

impl Updater {
    /// Applies updates `after + 1 ..= to` to an expert, the last with the gradient in the lease.
    /// A state that was read and not compared with what was written is compared here.
    pub fn update(
        &self,
        (layer, expert): (usize, usize),
        (after, to): (u64, u64),
        lease: &mut Lease,
    ) -> Result<Outcome> {
        let (steps, grad_scale) = {
            let rates = self.rates.lock().unwrap_or_else(PoisonError::into_inner);
            (rates.range(after, to)?, rates.scale)
        };
        let (mut weights, mut state, mut grad) = (None, None, None);
        let block = BlockId::state(layer, expert);
        let expected = lease.take_expected(block);
        for (block, bytes) in lease.split()? {
            match block.part {
                Part::Weights => weights = Some(bytes.write()?),
                Part::State => state = Some(bytes.write()?),
                _ => grad = Some(bytes.read()),
            }
        }
        let (Some(weights), Some(state)) = (weights, state) else {
            return Err(Error::bug("an update lacks a block")
                .with("block", BlockId::weights(layer, expert)));
        };
        let grad = grad.map(|bytes| self.shape.grad(bytes)).transpose()?;
        let update = Update { steps: &steps, grad, grad_scale, decay: true, threads: self.threads };
        let sums = checked::update(
            self.optimizer.as_ref(),
            self.shape,
            &update,
            (weights, state),
            Sums { before: expected.is_some(), after: self.streams },
            &self.joiner,
        )?;
        if let (Some(expected), Some(crc)) = (expected, sums.before) {
            expected.verify(crc)?;
        }
        Ok(Outcome { crc: sums.after.map(|crc| (block, crc)), ..Outcome::default() })
    }
}

/// What a commit keeps beside blocks and the dense state.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Meta {
    /// The step that the commit follows.
    pub step: u64,
    /// Optimizer updates done: fewer than steps where some were skipped.
    pub updates: u64,
    /// Learning rates of updates 1, 2, …, for the replay of those that idle experts missed.
    pub rates: Vec<f64>,
    pub gate: serde_json::Value,
}

impl TrainStage {
    /// The norm of all gradients and the factor that clipping puts on them.
    pub(super) fn norm(&mut self, task: Task) -> Result<Outcome> {
        let norm = self.grad_norm()?;
        let finite = norm.is_finite();
        if !finite && !self.skip_nonfinite {
            return Err(self.name_nonfinite_gradient(task.step));
        }
        // torch.nn.utils.clip_grad_norm_ adds the same small number.
        self.set_scale((self.clip / (norm + 1e-6)).min(1.0));
        self.numbers.grad_norm = norm;
        let mut outcome = Outcome::fact(Fact::Norm { finite });
        if !finite {
            self.numbers.skipped = true;
            outcome.numbers = Some(Box::new(std::mem::take(&mut self.numbers)));
        }
        Ok(outcome)
    }

    fn grad_norm(&mut self) -> Result<f64> {
        let dense = sum_squares(self.model.params_mut().buffers().grad, Threads::Pool)?;
        // Summed by block, whatever the order in which gradients came.
        let experts: f64 = self.norms.iter().flatten().sum();
        Ok((dense + experts).sqrt())
    }

    fn set_scale(&self, scale: f64) {
        self.updater.rates.lock().unwrap_or_else(PoisonError::into_inner).scale = scale;
    }

    fn name_nonfinite_gradient(&self, step: u64) -> Error {
        let error = Error::new(
            ErrorKind::NonFinite,
            "a gradient is not finite, so nothing was updated: lower train.lr, or skip such \
             steps with train.nonfinite = \"skip\"",
        )
        .with("step", step);
        for (layer, norms) in self.norms.iter().enumerate() {
            if let Some(expert) = norms.iter().position(|norm| !norm.is_finite()) {
                return error.with("layer", layer).with("expert", expert);
            }
        }
        error.with("where", "the dense parameters")
    }

    /// Fixes the learning rate of the update that this step will make.
    pub(super) fn begin_update(&mut self, task: Task) {
        let lr = (self.schedule)(task.step);
        self.numbers.lr = lr;
        let mut rates = self.updater.rates.lock().unwrap_or_else(PoisonError::into_inner);
        rates.lr.truncate(self.updates as usize);
        rates.lr.push(lr);
        if self.clip == 0.0 {
            rates.scale = 1.0;
        }
    }

    pub(super) fn update_dense(&mut self) -> Result<Outcome> {
        if self.clip == 0.0 {
            let norm = self.grad_norm()?;
            if !norm.is_finite() {
                return Err(self.name_nonfinite_gradient(self.step));
            }
            self.numbers.grad_norm = norm;
        }
        let (steps, grad_scale) = {
            let rates = self.updater.rates.lock().unwrap_or_else(PoisonError::into_inner);
            (rates.range(self.updates, self.updates + 1)?, rates.scale)
        };
        let optimizer = Arc::clone(&self.updater.optimizer);
        let buffers = self.model.params_mut().buffers();
        let (master, plain_master) = buffers.master.split_at_mut(buffers.decayed);
        let (m, plain_m) = buffers.m.split_at_mut(buffers.decayed);
        let (v, plain_v) = buffers.v.split_at_mut(buffers.decayed);
        let (grad, plain_grad) = buffers.grad.split_at(buffers.decayed);
        for (decay, grad, master, m, v) in
            [(true, grad, master, m, v), (false, plain_grad, plain_master, plain_m, plain_v)]
        {
            let threads = Threads::Pool;
            let update = Update { steps: &steps, grad: Some(grad), grad_scale, decay, threads };
            optimizer.update(&update, Params { master: Master::F32(master), m, v })?;
        }
        self.model.params_mut().refresh()?;
        self.gate.after_step(&self.totals.load)?;
        self.updates += 1;
        let numbers = Box::new(std::mem::take(&mut self.numbers));
        Ok(Outcome { numbers: Some(numbers), ..Outcome::default() })
    }

    pub(super) fn snapshot(&mut self) -> Result<Outcome> {
        let slot = self.dense.ok_or_else(|| Error::bug("this rank keeps no dense state"))?;
        let params = self.model.params_mut();
        slot.fill(params.state_bytes(), |bytes| params.write_state(bytes))?;
        let rates = self.updater.rates.lock().unwrap_or_else(PoisonError::into_inner);
        let done = rates.lr.len().min(self.updates as usize);
        let meta = Meta {
            step: self.step,
            updates: self.updates,
            rates: rates.lr[..done].to_vec(),
            gate: self.gate.state(),
        };
        let meta = serde_json::to_vec(&meta)
            .map_err(|e| Error::bug("cannot write the commit's facts").from_source(e))?;
        Ok(Outcome { snapshot: Some(meta), ..Outcome::default() })
    }
}
