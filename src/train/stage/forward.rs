//! Forward tasks: dense segments, gates, experts, head.

use super::TrainStage;
use super::routes::local_rows;
use super::tables::{PassTable, have, take};
use crate::actors::stage::Outcome;
use crate::base::{BlockId, Error, Result};
use crate::graph::planner::{Fact, Pass, Task};
use crate::model::expert::{self, ExpertView};
use crate::model::gate::{
    Assignments, GateContext, RouterStats, Selection, apply_capacity, capacity, choice_counts,
    earlier_counts,
};
use crate::model::kernels::combine::combine;
use crate::storage::lease::Lease;
use tch::{Device, Kind, Tensor};

impl TrainStage {
    pub(super) fn dense(&mut self, task: Task, layer: usize, mb: usize) -> Result<Outcome> {
        let x = match layer {
            0 => {
                let ids = &self.table()?.micro_batches[mb].ids;
                let ids = ids.shallow_clone();
                self.model.embed(&ids)?
            }
            _ => self.mix(layer - 1, mb)?,
        };
        let keep_tape = self.keep_dense && task.pass == Pass::Train;
        let (out, tape) = if keep_tape {
            let tape = self.model.layer_tape(layer, &x)?;
            (self.model.layer_out(&tape)?, Some(tape))
        } else {
            (self.model.layer(layer, &x)?, None)
        };
        let cell = self.table()?.cell(layer, mb)?;
        cell.x = (task.pass == Pass::Train).then_some(x);
        cell.h = Some(out.h_th);
        cell.y = Some(out.y_th);
        cell.logits = Some(out.logits_te);
        cell.tape = tape;
        Ok(Outcome::default())
    }

    /// The residual stream above a layer: h + Σ_k w_k · expert_k, f32 [B, S, H], summed by k.
    fn mix(&mut self, layer: usize, mb: usize) -> Result<Tensor> {
        let hidden = self.model.config().hidden as i64;
        let local = self.ranks == 1;
        let table = self.table()?;
        let shape = [table.sequences as i64, table.length as i64, hidden];
        let cell = table.cell(layer, mb)?;
        let h_th = take(&mut cell.h, "residual stream")?;
        let out = match local {
            true => take(&mut cell.inbox.out, "expert outputs")?,
            false => take(&mut cell.outputs, "returned expert outputs")?,
        };
        let weights_tk = have(&cell.weights, "router weights")?;
        Ok(combine(&h_th, weights_tk, &out)?.f_view(shape)?)
    }

    pub(super) fn gate(&mut self, task: Task, layer: usize, mb: usize) -> Result<Outcome> {
        let first_token = self.table()?.micro_batches[mb].first_token;
        let ctx = GateContext {
            layer,
            step: task.step,
            seed: self.seed,
            train: task.pass == Pass::Train,
            first_token,
        };
        let logits = have(&self.table()?.cell(layer, mb)?.logits, "router logits")?.shallow_clone();
        let selection = tch::no_grad(|| self.gate.select(&ctx, &logits))?;
        if self.gate.capacity_factor().is_none() {
            let counts = self.assign(layer, mb, &logits, selection)?;
            return Ok(match counts {
                Some(counts) => Outcome::fact(Fact::Tokens { layer, mb, counts }),
                None => Outcome::default(),
            });
        }
        self.table()?.cell(layer, mb)?.selection = Some(selection);
        if self.ranks > 1 && mb + 1 == self.micro_batches {
            self.stage_counts(task, layer)?;
        }
        Ok(Outcome::default())
    }

    /// Drops what goes over the capacity, now that all choices of the layer are known.
    pub(super) fn route(&mut self, layer: usize) -> Result<Outcome> {
        let (experts, top_k) = (self.model.config().experts, self.gate.top_k());
        let factor = self.gate.capacity_factor().unwrap_or_default();
        let (mbs, rank, ranks) = (self.micro_batches, self.rank, self.ranks);
        let total = self.table()?.total_tokens;
        let limit = capacity(factor, top_k, total, experts);
        // Chunks in global token order: micro-batch by micro-batch, rank by rank.
        let chunks = match self.counts.remove(&layer) {
            Some(of_rank) => (0..mbs)
                .flat_map(|mb| of_rank.iter().map(move |counts| counts[mb].clone()))
                .collect(),
            None => self.layer_counts(layer)?,
        };
        let earlier = earlier_counts(&chunks, experts);
        let mut all = Vec::with_capacity(mbs);
        for mb in 0..mbs {
            let cell = self.table()?.cell(layer, mb)?;
            let mut selection = take(&mut cell.selection, "selection")?;
            let logits = have(&cell.logits, "router logits")?.shallow_clone();
            cell.dropped = apply_capacity(&mut selection, &earlier[mb * ranks + rank], limit)?;
            all.push(self.assign(layer, mb, &logits, selection)?.unwrap_or_default());
        }
        Ok(Outcome::fact(Fact::LayerTokens { layer, counts: all }))
    }

    /// This rank's choice counts of a layer, by micro-batch.
    pub(super) fn layer_counts(&mut self, layer: usize) -> Result<Vec<Vec<u64>>> {
        let experts = self.model.config().experts;
        (0..self.micro_batches)
            .map(|mb| {
                let cell = self.table()?.cell(layer, mb)?;
                choice_counts(have(&cell.selection, "selection")?, experts)
            })
            .collect()
    }

    /// Settles a micro-batch's routes. Answers the rows of each expert where all are local;
    /// otherwise stages them for dispatch.
    fn assign(
        &mut self,
        layer: usize,
        mb: usize,
        logits: &Tensor,
        selection: Selection,
    ) -> Result<Option<Vec<u32>>> {
        let experts = self.model.config().experts;
        let assigned = Assignments::new(&selection, experts)?;
        let stats = tch::no_grad(|| RouterStats::of(self.gate.as_ref(), logits, &selection))?;
        let weights = tch::no_grad(|| self.gate.weights(logits, &selection))?;
        let local = self.ranks == 1;
        let (pass, kind) = (self.pass, self.shape.precision.kind());
        let hidden = self.model.config().hidden as i64;
        let cell = self.table()?.cell(layer, mb)?;
        cell.stats = stats;
        cell.selection = Some(selection);
        cell.weights = Some(weights);
        let mut counts = None;
        if local {
            let slots = have(&cell.weights, "router weights")?.numel() as i64;
            cell.inbox.rows = Some(have(&cell.y, "expert input")?.shallow_clone());
            cell.inbox.of_expert = local_rows(&assigned);
            cell.inbox.kept = cell.inbox.of_expert.iter().map(|_| None).collect();
            // Rows of dropped pairs stay zero.
            cell.inbox.out = Some(Tensor::f_zeros([slots, hidden], (kind, Device::Cpu))?);
            counts = Some(cell.inbox.of_expert.iter().map(|rows| rows.count as u32).collect());
        }
        cell.assigned = Some(assigned);
        if !local {
            self.stage_dispatch(pass, layer, mb)?;
        }
        Ok(counts)
    }

    pub(super) fn expert(
        &mut self,
        task: Task,
        layer: usize,
        expert: usize,
        lease: &Lease,
    ) -> Result<Outcome> {
        let local = self.local(expert)?;
        let view = ExpertView::new(self.shape, lease.bytes(BlockId::weights(layer, expert))?)?;
        let keep = self.keep_experts && task.pass == Pass::Train;
        for mb in 0..self.micro_batches {
            let inbox = &mut self.table.as_mut().ok_or_else(no_pass)?.cell(layer, mb)?.inbox;
            let rows = &inbox.of_expert[local];
            if rows.count == 0 {
                continue;
            }
            let x_nh = have(&inbox.rows, "expert rows")?.f_index_select(0, &rows.take_n)?;
            let (o_nh, kept) = tch::no_grad(|| expert::forward(&view, &x_nh, keep))?;
            inbox.kept[local] = kept;
            let out = inbox.out.as_mut().ok_or_else(|| Error::bug("no place for outputs"))?;
            let _ = out.f_index_copy_(0, &rows.put_n, &o_nh)?;
        }
        if self.table()?.expert_done(layer, |table| table.used_experts(layer)) && self.ranks > 1 {
            self.stage_combine(task.pass, layer)?;
        }
        Ok(Outcome::default())
    }

    pub(super) fn head(&mut self, task: Task, mb: usize) -> Result<Outcome> {
        let layers = self.model.config().layers;
        let x = self.mix(layers - 1, mb)?;
        let total = self.table()?.total_targets.max(1);
        let targets = self.table()?.micro_batches[mb].targets.shallow_clone();
        match task.pass {
            Pass::Train => {
                let head = self.model.head_loss(&x, &targets, 1.0 / total as f64)?;
                self.totals.nll += head.nll_sum;
                self.totals.targets += head.targets as u64;
                self.table()?.micro_batches[mb].dx = Some(head.dx);
            }
            Pass::Forward(_) if self.logits_of.is_empty() => {
                let nll_t = self.model.head_nll(&x, &targets)?;
                self.totals.nll += nll_t.f_sum(Kind::Double)?.f_double_value(&[])?;
                let counted = targets.f_ne(crate::model::loss::IGNORE)?.f_sum(Kind::Int64)?;
                self.totals.targets += counted.f_int64_value(&[])? as u64;
            }
            Pass::Forward(_) => self.take_logits(&x, mb)?,
        }
        if self.ranks > 1 && mb + 1 == self.micro_batches {
            self.stage_totals(task.pass)?;
        }
        Ok(Outcome::default())
    }

    /// Logits of the rows that were asked for, as rows of the micro-batch.
    fn take_logits(&mut self, x: &Tensor, mb: usize) -> Result<()> {
        let hidden = self.model.config().hidden as i64;
        let rows = self.logits_of.get(mb).cloned().unwrap_or_default();
        let x_rh = x.f_view([-1, hidden])?.f_index_select(0, &Tensor::f_from_slice(&rows)?)?;
        let logits_rv = self.model.head_logits(&x_rh)?;
        for row in 0..logits_rv.size()[0] {
            let values = Vec::<f32>::try_from(&logits_rv.f_select(0, row)?)?;
            self.totals.logits.push(values);
        }
        Ok(())
    }

    pub(super) fn table(&mut self) -> Result<&mut PassTable> {
        self.table.as_mut().ok_or_else(no_pass)
    }
}

pub(super) fn no_pass() -> Error {
    Error::bug("a task ran before the sequences of its pass were there")
}
