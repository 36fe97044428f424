//! Backward tasks: totals of the forward pass, experts, gates, dense segments.

use super::TrainStage;
use super::forward::no_pass;
use super::tables::{have, take};
use crate::actors::stage::Outcome;
use crate::base::{BlockId, Error, ErrorKind, Part, Result};
use crate::graph::planner::{Fact, Pass, Task};
use crate::model::expert::{self, ExpertView};
use crate::model::gate::{RouterStats, gate_backward};
use crate::model::kernels::combine::sum_choices;
use crate::storage::lease::Lease;
use tch::{Device, Kind, Tensor};

impl TrainStage {
    /// Losses over the global step batch; sets the stage for the backward pass.
    pub(super) fn totals(&mut self, task: Task) -> Result<Outcome> {
        let parts = match self.gathered.take() {
            Some(parts) => parts,
            None => vec![self.own_totals()?],
        };
        let total = super::totals::Totals::sum(&parts);
        self.totals.nll = total.nll;
        self.totals.dropped = total.dropped;
        self.totals.targets = total.targets;
        self.totals.load = total.load();
        self.totals.stats = total.stats;
        let lm_loss = self.totals.nll / self.totals.targets.max(1) as f64;
        let aux = self.aux_scope.loss(&self.totals.stats);
        let z = RouterStats::sum(&self.totals.stats).z_loss();
        let loss = lm_loss + self.aux_coef * aux + self.z_coef * z;
        let tokens = self.table()?.total_tokens;
        let numbers = &mut self.numbers;
        (numbers.lm_loss, numbers.aux_loss, numbers.z_loss, numbers.loss) = (lm_loss, aux, z, loss);
        numbers.targets = self.totals.targets;
        numbers.dropped = self.totals.dropped;
        numbers.load = self.totals.load.clone();
        numbers.logits = std::mem::take(&mut self.totals.logits);
        numbers.tokens = tokens;
        let finite = loss.is_finite();
        if task.pass == Pass::Train && !finite && !self.skip_nonfinite {
            return Err(self.name_nonfinite_loss(task, loss)?);
        }
        if task.pass == Pass::Train && finite {
            self.begin_backward(task)?;
        }
        let mut outcome = Outcome::fact(Fact::Totals { finite });
        if task.pass != Pass::Train || !finite {
            self.numbers.skipped = task.pass == Pass::Train;
            outcome.numbers = Some(Box::new(std::mem::take(&mut self.numbers)));
            self.table = None;
        }
        Ok(outcome)
    }

    fn name_nonfinite_loss(&mut self, task: Task, loss: f64) -> Result<Error> {
        let mut error = Error::new(
            ErrorKind::NonFinite,
            "the loss is not finite, so nothing was updated: lower train.lr, set train.clip, or \
             skip such steps with train.nonfinite = \"skip\"",
        )
        .with("step", task.step)
        .with("loss", loss);
        for layer in 0..self.model.config().layers {
            for mb in 0..self.micro_batches {
                let logits = have(&self.table()?.cell(layer, mb)?.logits, "router logits")?;
                if logits.f_isfinite()?.f_all()?.f_int64_value(&[])? == 0 {
                    error = error.with("first seen at the gate of layer", layer);
                    return Ok(error);
                }
            }
        }
        Ok(error.with("first seen at", "the head"))
    }

    fn begin_backward(&mut self, task: Task) -> Result<()> {
        self.begin_update(task);
        self.aux_grads = match self.aux_coef {
            0.0 => Vec::new(),
            coef => self.aux_scope.gradients(&self.totals.stats, coef)?,
        };
        self.z_scale = match self.z_coef {
            0.0 => 0.0,
            coef => RouterStats::sum(&self.totals.stats).z_scale(coef),
        };
        let top = self.model.config().layers - 1;
        for mb in 0..self.micro_batches {
            self.hand_down(task.pass, top, mb)?;
        }
        Ok(())
    }

    /// Gives the gradient at the output of `layer` to that layer's experts.
    fn hand_down(&mut self, pass: Pass, layer: usize, mb: usize) -> Result<()> {
        let kind = self.shape.precision.kind();
        let hidden = self.model.config().hidden as i64;
        if self.ranks > 1 {
            return self.stage_dispatch_grad(pass, layer, mb);
        }
        let table = self.table()?;
        let dx = have(&table.micro_batches[mb].dx, "gradient of the residual stream")?;
        let grad_th = dx.f_view([-1, hidden])?.f_to_kind(kind)?;
        let cell = table.cell(layer, mb)?;
        let weights = have(&cell.weights, "router weights")?.f_flatten(0, -1)?;
        let slots = weights.size()[0];
        cell.inbox.grad_rows = Some(grad_th);
        cell.inbox.weights_n = Some(weights);
        cell.inbox.dx = Some(Tensor::f_zeros([slots, hidden], (kind, Device::Cpu))?);
        cell.inbox.dw = Some(Tensor::f_zeros([slots], (Kind::Float, Device::Cpu))?);
        Ok(())
    }

    pub(super) fn expert_grad(
        &mut self,
        task: Task,
        layer: usize,
        expert: usize,
        lease: &mut Lease,
    ) -> Result<Outcome> {
        let local = self.local(expert)?;
        let (mut weights, mut grad) = (None, None);
        for (block, bytes) in lease.split()? {
            match block.part {
                Part::Grad => grad = Some(bytes.write()?),
                _ => weights = Some(bytes.read()),
            }
        }
        let (Some(weights), Some(grad)) = (weights, grad) else {
            return Err(Error::bug("an expert's backward pass lacks a block")
                .with("block", BlockId::weights(layer, expert)));
        };
        let view = ExpertView::new(self.shape, weights)?;
        let grad = self.shape.grad_mut(grad)?;
        let mut last: Option<expert::Gradients> = None;
        let table = self.table.as_mut().ok_or_else(no_pass)?;
        for mb in 0..self.micro_batches {
            let inbox = &mut table.cell(layer, mb)?.inbox;
            let rows = &inbox.of_expert[local];
            if rows.count == 0 {
                continue;
            }
            let x_nh = have(&inbox.rows, "expert rows")?.f_index_select(0, &rows.take_n)?;
            let g_nh = have(&inbox.grad_rows, "gradient rows")?.f_index_select(0, &rows.take_n)?;
            let w_n = have(&inbox.weights_n, "weights")?.f_index_select(0, &rows.put_n)?;
            let kept = inbox.kept[local].take();
            let made = tch::no_grad(|| {
                expert::backward(&view, &x_nh, kept, &g_nh, &w_n, grad, last.is_none())
            })?;
            let (dx, dw) = (&mut inbox.dx, &mut inbox.dw);
            let dx = dx.as_mut().ok_or_else(|| Error::bug("no place for input gradients"))?;
            let _ = dx.f_index_copy_(0, &rows.put_n, &made.dx_nh)?;
            let dw = dw.as_mut().ok_or_else(|| Error::bug("no place for weight gradients"))?;
            let _ = dw.f_index_copy_(0, &rows.put_n, &made.dw_n)?;
            last = Some(made);
        }
        let squares = match last {
            Some(made) => made.sum_squares(grad)?,
            None => return Err(Error::bug("an expert without rows has no backward pass")),
        };
        if !squares.is_finite() && !self.skip_nonfinite {
            return Err(nonfinite_gradient(task.step, layer, expert));
        }
        self.norms[layer][expert] = squares;
        if self.table()?.expert_done(layer, |table| table.used_experts(layer)) && self.ranks > 1 {
            self.stage_combine_grad(task.pass, layer)?;
        }
        Ok(Outcome::default())
    }

    pub(super) fn gate_grad(&mut self, layer: usize, mb: usize) -> Result<Outcome> {
        let top_k = self.gate.top_k() as i64;
        let aux_grad = self.aux_grads.get(layer).map(Tensor::shallow_clone);
        let z_scale = self.z_scale;
        let table = self.table.as_mut().ok_or_else(no_pass)?;
        let cell = table.cell(layer, mb)?;
        // Sums over the K choices, in their order.
        let dx = take(&mut cell.inbox.dx, "input gradients")?;
        let dy_th = sum_choices(&dx, top_k)?;
        let dw_tk = take(&mut cell.inbox.dw, "weight gradients")?.f_view([-1, top_k])?;
        let logits = take(&mut cell.logits, "router logits")?;
        let selection = take(&mut cell.selection, "selection")?;
        let dlogits = gate_backward(
            self.gate.as_ref(),
            &logits,
            &selection,
            &dw_tk,
            aux_grad.as_ref(),
            z_scale,
        )?;
        cell.dy = Some(dy_th);
        cell.dlogits = Some(dlogits);
        cell.inbox = super::tables::Inbox::default();
        Ok(Outcome::default())
    }

    pub(super) fn dense_grad(&mut self, task: Task, layer: usize, mb: usize) -> Result<Outcome> {
        let hidden = self.model.config().hidden as i64;
        let table = self.table.as_mut().ok_or_else(no_pass)?;
        let dx = take(&mut table.micro_batches[mb].dx, "gradient of the residual stream")?;
        let cell = table.cell(layer, mb)?;
        let (x, dy) = (take(&mut cell.x, "layer input")?, take(&mut cell.dy, "dy")?);
        let dlogits = take(&mut cell.dlogits, "gradient of the router logits")?;
        let tape = match cell.tape.take() {
            Some(tape) => tape,
            None => self.model.layer_tape(layer, &x)?,
        };
        cell.y = None;
        let dh_th = dx.f_view([-1, hidden])?;
        let dx = self.model.layer_backward(tape, &dh_th, dy, &dlogits)?;
        if layer > 0 {
            self.table()?.micro_batches[mb].dx = Some(dx);
            self.hand_down(task.pass, layer - 1, mb)?;
            return Ok(Outcome::default());
        }
        let ids = self.table()?.micro_batches[mb].ids.shallow_clone();
        self.model.embed_backward(&ids, &dx)?;
        if mb + 1 == self.micro_batches {
            self.table = None;
            if self.ranks > 1 {
                self.stage_gradients(task.pass)?;
            }
        }
        Ok(Outcome::default())
    }

    /// Sums of this rank's forward pass.
    pub(super) fn own_totals(&mut self) -> Result<super::totals::Totals> {
        let mut stats = vec![RouterStats::default(); self.model.config().layers];
        let mut dropped = 0;
        for (layer, stats) in stats.iter_mut().enumerate() {
            for mb in 0..self.micro_batches {
                let cell = self.table()?.cell(layer, mb)?;
                stats.add(&cell.stats);
                dropped += cell.dropped;
            }
        }
        let (nll, targets) = (self.totals.nll, self.totals.targets);
        Ok(super::totals::Totals { nll, targets, dropped, stats })
    }
}

fn nonfinite_gradient(step: u64, layer: usize, expert: usize) -> Error {
    Error::new(
        ErrorKind::NonFinite,
        "a gradient is not finite: lower train.lr, or skip such steps with train.clip and \
         train.nonfinite = \"skip\"",
    )
    .with("step", step)
    .with("layer", layer)
    .with("expert", expert)
}
