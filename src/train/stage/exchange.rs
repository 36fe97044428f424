//! What goes to other ranks, and what comes from them.
//!
//! The executor stages tensors under the task that will exchange them; the communicator moves
//! them; the executor takes what arrives before any task that uses it is issued.

use super::TrainStage;
use super::routes::arrived_rows;
use super::tables::{Inbox, have, take};
use super::totals::Totals;
use crate::actors::stage::{Incoming, Outgoing};
use crate::base::{Error, Result};
use crate::graph::planner::{Pass, Task, Work};
use tch::{Device, Kind, Tensor};

impl TrainStage {
    fn stage(&self, pass: Pass, work: Work, outgoing: Outgoing) {
        let task = Task { step: self.step, pass, work };
        // A communicator that has gone told why itself.
        drop(self.staging.send((task, outgoing)));
    }

    pub(super) fn stage_counts(&mut self, task: Task, layer: usize) -> Result<()> {
        let counts = self.layer_counts(layer)?;
        let flat: Vec<i64> = counts.iter().flatten().map(|&n| n as i64).collect();
        let outgoing = Outgoing::AllGather(Tensor::f_from_slice(&flat)?);
        self.stage(task.pass, Work::Counts { layer }, outgoing);
        Ok(())
    }

    /// Tokens to their experts: counts of the receiver's experts, then the rows.
    pub(super) fn stage_dispatch(&mut self, pass: Pass, layer: usize, mb: usize) -> Result<()> {
        let (ranks, each) = (self.ranks, self.local_experts.len());
        let cell = self.table()?.cell(layer, mb)?;
        let assigned = have(&cell.assigned, "routes")?;
        let y_th = have(&cell.y, "expert input")?;
        let mut parts = Vec::with_capacity(ranks);
        for rank in 0..ranks {
            let experts = rank * each..(rank + 1) * each;
            let counts: Vec<i64> = experts.clone().map(|e| assigned.rows(e).len() as i64).collect();
            let rows = assigned.offsets[experts.start]..assigned.offsets[experts.end];
            let tokens = Tensor::f_from_slice(&assigned.tokens[rows])?;
            parts.push(vec![Tensor::f_from_slice(&counts)?, y_th.f_index_select(0, &tokens)?]);
        }
        self.stage(pass, Work::Dispatch { layer, mb }, Outgoing::AllToAll(parts));
        Ok(())
    }

    fn take_dispatch(
        &mut self,
        pass: Pass,
        layer: usize,
        mb: usize,
        from: Vec<Vec<Tensor>>,
    ) -> Result<()> {
        let kind = self.shape.precision.kind();
        let hidden = self.model.config().hidden as i64;
        let mut counts = Vec::with_capacity(from.len());
        let mut rows = Vec::with_capacity(from.len());
        for mut tensors in from {
            rows.push(tensors.pop().ok_or_else(|| Error::bug("a dispatch came without rows"))?);
            counts.push(Vec::<i64>::try_from(have(&tensors.pop(), "counts of a dispatch")?)?);
        }
        let total: i64 = counts.iter().flatten().sum();
        let of_expert = arrived_rows(&counts);
        let inbox = Inbox {
            rows: Some(Tensor::f_cat(&rows, 0)?),
            kept: of_expert.iter().map(|_| None).collect(),
            of_expert,
            from_rank: counts.iter().map(|counts| counts.iter().sum()).collect(),
            out: Some(Tensor::f_zeros([total, hidden], (kind, Device::Cpu))?),
            ..Inbox::default()
        };
        let table = self.table()?;
        table.cell(layer, mb)?.inbox = inbox;
        let all_there =
            table.micro_batches.iter().all(|mb| !mb.layers[layer].inbox.from_rank.is_empty());
        // A rank whose experts nobody chose has nothing to compute, and answers at once.
        if all_there && table.used_experts(layer) == 0 {
            self.stage_combine(pass, layer)?;
        }
        Ok(())
    }

    /// Expert outputs back to the ranks whose tokens they are.
    pub(super) fn stage_combine(&mut self, pass: Pass, layer: usize) -> Result<()> {
        for mb in 0..self.micro_batches {
            let inbox = &mut self.table()?.cell(layer, mb)?.inbox;
            let out = take(&mut inbox.out, "expert outputs")?;
            let parts = out.f_split_with_sizes(inbox.from_rank.as_slice(), 0)?;
            let parts = parts.into_iter().map(|part| vec![part]).collect();
            self.stage(pass, Work::Combine { layer, mb }, Outgoing::AllToAll(parts));
        }
        Ok(())
    }

    /// Puts rows that came back, sorted as they were sent, at their (token, choice).
    fn put_back(
        &mut self,
        layer: usize,
        mb: usize,
        rows: &[Tensor],
        like: &Tensor,
    ) -> Result<Tensor> {
        let cell = self.table()?.cell(layer, mb)?;
        let slots = have(&cell.weights, "router weights")?.numel() as i64;
        let assigned = have(&cell.assigned, "routes")?;
        let mut size = like.size();
        size[0] = slots;
        let mut out = Tensor::f_zeros(size.as_slice(), (like.f_kind()?, Device::Cpu))?;
        let at = Tensor::f_from_slice(&assigned.slots)?;
        let _ = out.f_index_copy_(0, &at, &Tensor::f_cat(rows, 0)?)?;
        Ok(out)
    }

    fn take_combine(&mut self, layer: usize, mb: usize, from: Vec<Vec<Tensor>>) -> Result<()> {
        let rows: Vec<Tensor> = from.into_iter().flatten().collect();
        let like = rows.first().ok_or_else(|| Error::bug("a combine came empty"))?.shallow_clone();
        let outputs = self.put_back(layer, mb, &rows, &like)?;
        self.table()?.cell(layer, mb)?.outputs = Some(outputs);
        Ok(())
    }

    /// Output gradients and router weights to the experts, row by row as in the dispatch.
    pub(super) fn stage_dispatch_grad(
        &mut self,
        pass: Pass,
        layer: usize,
        mb: usize,
    ) -> Result<()> {
        let (ranks, each) = (self.ranks, self.local_experts.len());
        let (kind, hidden) = (self.shape.precision.kind(), self.model.config().hidden as i64);
        let table = self.table()?;
        let dx = have(&table.micro_batches[mb].dx, "gradient of the residual stream")?;
        let grad_th = dx.f_view([-1, hidden])?.f_to_kind(kind)?;
        let cell = table.cell(layer, mb)?;
        let assigned = have(&cell.assigned, "routes")?;
        let weights = have(&cell.weights, "router weights")?.f_flatten(0, -1)?;
        let mut parts = Vec::with_capacity(ranks);
        for rank in 0..ranks {
            let rows = assigned.offsets[rank * each]..assigned.offsets[(rank + 1) * each];
            let tokens = Tensor::f_from_slice(&assigned.tokens[rows.clone()])?;
            let slots = Tensor::f_from_slice(&assigned.slots[rows])?;
            let weights = weights.f_index_select(0, &slots)?;
            parts.push(vec![grad_th.f_index_select(0, &tokens)?, weights]);
        }
        self.stage(pass, Work::DispatchGrad { layer, mb }, Outgoing::AllToAll(parts));
        Ok(())
    }

    fn take_dispatch_grad(
        &mut self,
        pass: Pass,
        layer: usize,
        mb: usize,
        from: Vec<Vec<Tensor>>,
    ) -> Result<()> {
        let kind = self.shape.precision.kind();
        let hidden = self.model.config().hidden as i64;
        let (mut grads, mut weights) = (Vec::new(), Vec::new());
        for mut tensors in from {
            weights
                .push(tensors.pop().ok_or_else(|| Error::bug("gradients came without weights"))?);
            grads.push(tensors.pop().ok_or_else(|| Error::bug("gradients came without rows"))?);
        }
        let inbox = &mut self.table()?.cell(layer, mb)?.inbox;
        let total: i64 = inbox.from_rank.iter().sum();
        inbox.grad_rows = Some(Tensor::f_cat(&grads, 0)?);
        inbox.weights_n = Some(Tensor::f_cat(&weights, 0)?);
        inbox.dx = Some(Tensor::f_zeros([total, hidden], (kind, Device::Cpu))?);
        inbox.dw = Some(Tensor::f_zeros([total], (Kind::Float, Device::Cpu))?);
        let table = self.table()?;
        let all_there =
            table.micro_batches.iter().all(|mb| mb.layers[layer].inbox.grad_rows.is_some());
        if all_there && table.used_experts(layer) == 0 {
            self.stage_combine_grad(pass, layer)?;
        }
        Ok(())
    }

    /// Input gradients and router-weight gradients back to the tokens' ranks.
    pub(super) fn stage_combine_grad(&mut self, pass: Pass, layer: usize) -> Result<()> {
        for mb in 0..self.micro_batches {
            let inbox = &mut self.table()?.cell(layer, mb)?.inbox;
            let dx = take(&mut inbox.dx, "input gradients")?;
            let dw = take(&mut inbox.dw, "weight gradients")?;
            let dx = dx.f_split_with_sizes(inbox.from_rank.as_slice(), 0)?;
            let dw = dw.f_split_with_sizes(inbox.from_rank.as_slice(), 0)?;
            let parts = dx.into_iter().zip(dw).map(|(dx, dw)| vec![dx, dw]).collect();
            self.stage(pass, Work::CombineGrad { layer, mb }, Outgoing::AllToAll(parts));
        }
        Ok(())
    }

    fn take_combine_grad(&mut self, layer: usize, mb: usize, from: Vec<Vec<Tensor>>) -> Result<()> {
        let (mut dx, mut dw) = (Vec::new(), Vec::new());
        for mut tensors in from {
            dw.push(tensors.pop().ok_or_else(|| Error::bug("gradients came without weights"))?);
            dx.push(tensors.pop().ok_or_else(|| Error::bug("gradients came without rows"))?);
        }
        let (dx_like, dw_like) = (dx[0].shallow_clone(), dw[0].shallow_clone());
        let dx = self.put_back(layer, mb, &dx, &dx_like)?;
        let dw = self.put_back(layer, mb, &dw, &dw_like)?;
        let inbox = &mut self.table()?.cell(layer, mb)?.inbox;
        (inbox.dx, inbox.dw) = (Some(dx), Some(dw));
        Ok(())
    }

    pub(super) fn stage_totals(&mut self, pass: Pass) -> Result<()> {
        let totals = self.own_totals()?.to_tensor()?;
        self.stage(pass, Work::GatherTotals, Outgoing::AllGather(totals));
        Ok(())
    }

    /// The dense gradient, to be summed, and the squared norms of this rank's expert gradients.
    pub(super) fn stage_gradients(&mut self, pass: Pass) -> Result<()> {
        let grad = Tensor::f_from_slice(self.model.params_mut().buffers().grad)?;
        self.stage(pass, Work::ReduceDense, Outgoing::AllReduce(grad));
        let norms: Vec<f64> = self
            .norms
            .iter()
            .flat_map(|layer| layer[self.local_experts.clone()].iter().copied())
            .collect();
        let norms = Outgoing::AllGather(Tensor::f_from_slice(&norms)?);
        self.stage(pass, Work::GatherNorms, norms);
        Ok(())
    }

    /// Takes what arrived for `task`.
    pub(super) fn take(&mut self, task: Task, incoming: Incoming) -> Result<()> {
        match (task.work, incoming) {
            (Work::Batch, Incoming::Batch(batch)) => self.begin_pass(task, batch),
            (Work::Counts { layer }, Incoming::AllGather(from)) => {
                let (mbs, top_k) = (self.micro_batches, self.gate.top_k());
                let size = top_k * self.model.config().experts;
                let mut of_rank = Vec::with_capacity(from.len());
                for tensor in from {
                    let flat: Vec<u64> =
                        Vec::<i64>::try_from(&tensor)?.into_iter().map(|n| n as u64).collect();
                    of_rank.push(flat.chunks(size).take(mbs).map(<[u64]>::to_vec).collect());
                }
                self.counts.insert(layer, of_rank);
                Ok(())
            }
            (Work::Dispatch { layer, mb }, Incoming::AllToAll(from)) => {
                self.take_dispatch(task.pass, layer, mb, from)
            }
            (Work::Combine { layer, mb }, Incoming::AllToAll(from)) => {
                self.take_combine(layer, mb, from)
            }
            (Work::GatherTotals, Incoming::AllGather(from)) => {
                let (layers, experts) = (self.model.config().layers, self.model.config().experts);
                let parts = from.iter().map(|t| Totals::from_tensor(t, layers, experts));
                self.gathered = Some(parts.collect::<Result<_>>()?);
                Ok(())
            }
            (Work::DispatchGrad { layer, mb }, Incoming::AllToAll(from)) => {
                self.take_dispatch_grad(task.pass, layer, mb, from)
            }
            (Work::CombineGrad { layer, mb }, Incoming::AllToAll(from)) => {
                self.take_combine_grad(layer, mb, from)
            }
            (Work::ReduceDense, Incoming::AllReduce(sum)) => {
                let sum = Vec::<f32>::try_from(&sum)?;
                self.model.params_mut().buffers().grad.copy_from_slice(&sum);
                Ok(())
            }
            (Work::GatherNorms, Incoming::AllGather(from)) => {
                let each = self.local_experts.len();
                for (rank, tensor) in from.iter().enumerate() {
                    let norms = Vec::<f64>::try_from(tensor)?;
                    for (layer, norms) in self.norms.iter_mut().zip(norms.chunks(each)) {
                        layer[rank * each..(rank + 1) * each].copy_from_slice(norms);
                    }
                }
                Ok(())
            }
            (work, _) => {
                Err(Error::bug("something arrived that no task waits for").with("task", work))
            }
        }
    }
}
