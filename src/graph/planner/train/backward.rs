//! The second half of a step: backward nodes and updates, added once every route is known.

use super::{Ahead, BlockId, Lane, Need, NodeId, Plan, TrainPlanner, Use, Work};

impl TrainPlanner {
    pub(super) fn add_backward(&mut self, plan: &mut Plan) {
        let (layers, mbs, step) = (self.shape.layers, self.shape.micro_batches, self.step);
        // What each micro-batch's gradient at the layer above waits for.
        let mut above: Vec<Vec<NodeId>> = vec![Vec::new(); mbs];
        let mut grads = Vec::new();
        let mut bottom = Vec::new();
        for layer in (0..layers).rev() {
            let at = self.time.backward(step, layer);
            let arrived: Vec<NodeId> = if self.shape.ranks > 1 {
                (0..mbs)
                    .map(|mb| {
                        let deps = above[mb].clone();
                        self.comm(plan, Work::DispatchGrad { layer, mb }, at, deps)
                    })
                    .collect()
            } else {
                above.concat()
            };
            let start = self.node(plan, Work::Join, Lane::Control, at, arrived);
            let mut experts = Vec::new();
            for expert in self.used(layer) {
                let id = self.add_expert_grad(plan, layer, expert, start);
                experts.push(id);
                grads.push(id);
            }
            let join = self.node(plan, Work::Join, Lane::Control, at, experts);
            bottom = vec![join];
            let returned: Vec<NodeId> = (0..mbs)
                .map(|mb| match self.shape.ranks {
                    1 => join,
                    _ => self.comm(plan, Work::CombineGrad { layer, mb }, at, vec![join]),
                })
                .collect();
            let mut last = None;
            for mb in 0..mbs {
                let mut deps = vec![returned[mb]];
                // Dense gradients are summed in micro-batch order.
                deps.extend(last);
                let gate = self.node(plan, Work::GateGrad { layer, mb }, Lane::Compute, at, deps);
                let work = Work::DenseGrad { layer, mb };
                let dense = self.node(plan, work, Lane::Compute, at, vec![gate]);
                above[mb] = vec![dense];
                last = Some(dense);
            }
        }
        if self.shape.lookahead > 0 {
            for layer in (0..layers).rev() {
                let use_at = self.time.backward(step, layer);
                let blocks = self.used(layer).into_iter().map(|e| BlockId::weights(layer, e));
                plan.ahead.extend(blocks.map(|block| Ahead { block, use_at }));
            }
        }
        let at = self.time.boundary(step);
        let mut deps = above.concat();
        if self.shape.ranks > 1 {
            deps = vec![self.comm(plan, Work::ReduceDense, at, deps)];
        }
        deps.extend(grads);
        if self.shape.ranks > 1 {
            deps = vec![self.comm(plan, Work::GatherNorms, at, deps)];
        }
        if self.shape.clipped {
            // The factor of the updates before must not change while they run.
            let mut before: Vec<NodeId> = self.pending_update.values().copied().collect();
            before.sort_unstable();
            deps.extend(before);
            self.node(plan, Work::Norm, Lane::Compute, at, deps);
            return;
        }
        self.updates += 1;
        deps.extend(self.commit);
        self.dense_update = Some(self.node(plan, Work::UpdateDense, Lane::Compute, at, deps));
        self.add_carried(plan, bottom);
    }

    /// The updates that wait for the next forward pass, in its order, from when the backward pass
    /// is at the `bottom` layer.
    fn add_carried(&mut self, plan: &mut Plan, bottom: Vec<NodeId>) {
        self.fresh = 0;
        for layer in 0..self.shape.layers {
            for expert in self.used(layer) {
                if self.is_carried(layer, expert) {
                    let deps = bottom.clone();
                    self.add_update(plan, layer, expert, deps, self.updates);
                }
            }
        }
        if self.shape.lookahead > 0 {
            self.foresee_states(plan, true);
        }
    }

    /// Backward of an expert and, where it is not carried over, its update right behind it.
    fn add_expert_grad(
        &mut self,
        plan: &mut Plan,
        layer: usize,
        expert: usize,
        start: NodeId,
    ) -> NodeId {
        let at = self.time.backward(self.step, layer);
        let update_at = self.update_time(layer, expert, self.step);
        let needs = vec![
            Need { block: BlockId::weights(layer, expert), access: Use::Read, next_use: update_at },
            Need { block: BlockId::grad(layer, expert), access: Use::Create, next_use: update_at },
        ];
        let carried = self.is_carried(layer, expert);
        let mut deps = vec![start];
        if !self.shape.clipped {
            // A gradient that no norm waits for is not worth spilling: wait for a slot.
            if self.consuming.len() + self.fresh >= self.shape.grad_slots.max(1) {
                deps.extend(self.consuming.pop_front());
            }
            self.fresh += usize::from(carried);
        }
        let due = (at, 4 * expert as u64);
        let work = Work::ExpertGrad { layer, expert };
        let grad = self.node_with(plan, work, Lane::Compute, due, deps, needs, None);
        if !carried {
            self.add_update(plan, layer, expert, vec![grad], self.updates + 1);
        }
        grad
    }

    /// The update of an expert with the number `number`.
    fn add_update(
        &mut self,
        plan: &mut Plan,
        layer: usize,
        expert: usize,
        mut deps: Vec<NodeId>,
        number: u64,
    ) {
        let next = self.step + 1;
        let needs = vec![
            Need {
                block: BlockId::weights(layer, expert),
                access: Use::Update,
                next_use: self.time.forward(next, layer),
            },
            Need {
                block: BlockId::state(layer, expert),
                access: Use::Update,
                next_use: self.next_update(layer, expert, next),
            },
            Need { block: BlockId::grad(layer, expert), access: Use::Consume, next_use: u64::MAX },
        ];
        deps.extend(self.commit);
        // What asked for its blocks long before its turn would take the room of others.
        if self.asking.len() >= self.shape.window.max(1) {
            deps.extend(self.asking.pop_front());
        }
        let due = match self.is_carried(layer, expert) {
            true => (self.time.update(self.step, layer, true), expert as u64),
            // Right behind its gradient.
            false => (self.time.backward(self.step, layer), 4 * expert as u64 + 1),
        };
        let (work, lane) = (Work::Update { layer, expert, number }, self.shape.optimizer_lane);
        let id = self.node_with(plan, work, lane, due, deps, needs, None);
        self.pending_update.insert((layer, expert), id);
        self.asking.push_back(id);
        if !self.shape.clipped {
            self.consuming.push_back(id);
        }
        let local = self.local(expert);
        self.applied[layer][local] = number;
    }

    /// The norm is known: the wave of updates, or, when it is not finite, none.
    pub(super) fn add_updates(&mut self, plan: &mut Plan, finite: bool) {
        if finite {
            self.updates += 1;
        }
        for layer in 0..self.shape.layers {
            let at = self.time.update(self.step, layer, true);
            for expert in self.used(layer) {
                let due = (at, expert as u64);
                if finite {
                    self.add_update(plan, layer, expert, vec![], self.updates);
                    continue;
                }
                let needs = vec![Need {
                    block: BlockId::grad(layer, expert),
                    access: Use::Consume,
                    next_use: u64::MAX,
                }];
                let work = Work::DropGrad { layer, expert };
                self.node_with(plan, work, Lane::Compute, due, vec![], needs, None);
            }
        }
        if finite {
            let at = self.time.boundary(self.step);
            let deps = self.commit.into_iter().collect();
            self.dense_update = Some(self.node(plan, Work::UpdateDense, Lane::Compute, at, deps));
            if self.shape.lookahead > 0 {
                self.foresee_states(plan, true);
            }
        }
    }

    /// States are needed in the order of the updates, of those that are carried over or of the
    /// others: what comes first is fetched first. The forward pass has told which experts will
    /// have gradients. With clipping these may have been spilled, and come back with the states.
    pub(super) fn foresee_states(&mut self, plan: &mut Plan, carried: bool) {
        for layer in 0..self.shape.layers {
            for expert in self.used(layer) {
                if self.is_carried(layer, expert) != carried {
                    continue;
                }
                let use_at = self.update_time(layer, expert, self.step);
                plan.ahead.push(Ahead { block: BlockId::state(layer, expert), use_at });
                if self.shape.clipped {
                    plan.ahead.push(Ahead { block: BlockId::grad(layer, expert), use_at });
                }
            }
        }
    }
}
