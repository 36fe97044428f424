//! The planner of training and evaluation steps.
//!
//! Layer-major: every micro-batch passes a layer before any passes the next, so an expert is
//! read once per pass however many micro-batches there are. Forward nodes of a layer are added
//! when its routes are known; backward and update nodes all at once, for by then every route is
//! known. An expert that no token chose gets no node, and so costs nothing (law 6).

mod backward;
mod spread;

pub use spread::Spread;

use super::predictor::Predictor;
use super::time::Timetable;
use super::{Ahead, Fact, Need, Pass, Plan, Planned, Planner, Task, Use, Work};
use crate::base::{BlockId, Step};
use crate::graph::{Lane, NodeId, NodeSpec};
use std::collections::{HashMap, VecDeque};
use std::ops::Range;

/// What the planner must know of a run.
#[derive(Debug, Clone)]
pub struct TrainShape {
    pub layers: usize,
    /// The experts that this rank owns.
    pub local_experts: Range<usize>,
    pub micro_batches: usize,
    pub ranks: usize,
    /// Gradients wait for the global norm.
    pub clipped: bool,
    /// The gate drops tokens beyond a capacity.
    pub capacity: bool,
    /// Layers ahead for which expert weights are fetched; 0 fetches on demand only.
    pub lookahead: usize,
    /// Replay missed zero-gradient steps of idle experts.
    pub exact_idle: bool,
    /// What becomes of the states: with clipping every update is carried over.
    pub spread: Spread,
    /// How many gradients there may be at once when nothing is clipped.
    pub grad_slots: usize,
    /// How many updates may ask for their blocks at once.
    pub window: usize,
    /// Updates run on the optimizer's own lane instead of the executor.
    pub optimizer_lane: Lane,
}

/// Adds the nodes of one step after another.
pub struct TrainPlanner {
    shape: TrainShape,
    time: Timetable,
    next_id: NodeId,
    next_sequence: u64,
    step: Step,
    pass: Pass,
    /// Optimizer updates done, the skipped ones not counted.
    updates: u64,
    /// Updates that each local expert has seen, `[layer][local expert]`.
    applied: Vec<Vec<u64>>,
    /// Tokens of the current step, `[layer][micro-batch][local expert]`.
    tokens: Vec<Vec<Option<Vec<u32>>>>,
    predictor: Box<dyn Predictor>,
    /// The update node whose result a block waits for, `[layer][local expert]`.
    pending_update: HashMap<(usize, usize), NodeId>,
    dense_update: Option<NodeId>,
    commit: Option<NodeId>,
    /// The last updates, as many as the window holds.
    asking: VecDeque<NodeId>,
    /// The updates of which each will free a gradient's slot, oldest first, without those that
    /// some gradient waits for already.
    consuming: VecDeque<NodeId>,
    /// Gradients of this step that are carried over.
    fresh: usize,
}

impl TrainPlanner {
    /// `applied` is `[layer][local expert]`, as the store has it; `updates` the number done.
    pub fn new(
        shape: TrainShape,
        predictor: Box<dyn Predictor>,
        updates: u64,
        applied: Vec<Vec<u64>>,
    ) -> Self {
        let time = Timetable::new(shape.layers);
        Self {
            time,
            next_id: 0,
            next_sequence: 0,
            step: 0,
            pass: Pass::Forward(0),
            updates,
            applied,
            tokens: Vec::new(),
            predictor,
            pending_update: HashMap::new(),
            dense_update: None,
            commit: None,
            asking: VecDeque::new(),
            consuming: VecDeque::new(),
            fresh: 0,
            shape,
        }
    }

    pub fn updates(&self) -> u64 {
        self.updates
    }

    pub fn timetable(&self) -> Timetable {
        self.time
    }

    fn node(
        &mut self,
        plan: &mut Plan,
        work: Work,
        lane: Lane,
        at: u64,
        deps: Vec<NodeId>,
    ) -> NodeId {
        self.node_with(plan, work, lane, (at, 0), deps, vec![], None)
    }

    #[expect(clippy::too_many_arguments, reason = "the one place that builds a node")]
    fn node_with(
        &mut self,
        plan: &mut Plan,
        work: Work,
        lane: Lane,
        due: (u64, u64),
        deps: Vec<NodeId>,
        needs: Vec<Need>,
        sequence: Option<u64>,
    ) -> NodeId {
        let id = self.next_id;
        self.next_id += 1;
        plan.nodes.push(NodeSpec {
            id,
            acquire: !needs.is_empty(),
            kind: Planned { task: Task { step: self.step, pass: self.pass, work }, needs },
            lane,
            deps,
            priority: (due.0 << 20) + due.1,
            sequence,
        });
        id
    }

    /// A collective: every rank gives it the same place in the one order.
    fn comm(&mut self, plan: &mut Plan, work: Work, at: u64, deps: Vec<NodeId>) -> NodeId {
        let sequence = Some(self.next_sequence);
        self.next_sequence += 1;
        self.node_with(plan, work, Lane::Comm, (at, 0), deps, vec![], sequence)
    }

    fn local(&self, expert: usize) -> usize {
        expert - self.shape.local_experts.start
    }

    /// The block's place among all of this rank.
    fn index(&self, layer: usize, expert: usize) -> usize {
        layer * self.shape.local_experts.len() + self.local(expert)
    }

    /// Whether the update waits for the next forward pass.
    fn is_carried(&self, layer: usize, expert: usize) -> bool {
        self.shape.clipped || self.shape.spread.is_carried(self.index(layer, expert))
    }

    /// When the update that belongs to `step` is due.
    fn update_time(&self, layer: usize, expert: usize, step: Step) -> u64 {
        self.time.update(step, layer, self.is_carried(layer, expert))
    }

    /// When a state's next use counts for who stays in memory: that of `step`, or, for one that
    /// travels, never.
    fn next_update(&self, layer: usize, expert: usize, step: Step) -> u64 {
        match self.shape.spread.is_kept(self.index(layer, expert)) {
            true => self.update_time(layer, expert, step),
            false => u64::MAX,
        }
    }

    /// Dense and gate nodes of `layer`, or the head, each micro-batch after `deps(mb)`.
    fn add_dense(&mut self, plan: &mut Plan, layer: usize, deps: &dyn Fn(usize) -> Vec<NodeId>) {
        let at = self.time.forward(self.step, layer);
        let mbs = self.shape.micro_batches;
        if layer == self.shape.layers {
            let mut heads = Vec::new();
            for mb in 0..mbs {
                let mut deps = deps(mb);
                // Heads add to one gradient: their order is part of the result.
                deps.extend(heads.last());
                heads.push(self.node(plan, Work::Head { mb }, Lane::Compute, at, deps));
            }
            let mut deps = heads;
            if self.shape.ranks > 1 {
                deps = vec![self.comm(plan, Work::GatherTotals, at, deps)];
            }
            self.node(plan, Work::Totals, Lane::Compute, at, deps);
            return;
        }
        let mut gates = Vec::new();
        for mb in 0..mbs {
            let dense = self.node(plan, Work::Dense { layer, mb }, Lane::Compute, at, deps(mb));
            let mut deps = vec![dense];
            // Choices of a micro-batch may depend on how many went before it.
            deps.extend(gates.last());
            gates.push(self.node(plan, Work::Gate { layer, mb }, Lane::Compute, at, deps));
        }
        if self.shape.capacity {
            let mut deps = gates;
            if self.shape.ranks > 1 {
                deps = vec![self.comm(plan, Work::Counts { layer }, at, deps)];
            }
            self.node(plan, Work::Route { layer }, Lane::Compute, at, deps);
        } else if self.shape.ranks > 1 {
            for (mb, gate) in gates.into_iter().enumerate() {
                self.comm(plan, Work::Dispatch { layer, mb }, at, vec![gate]);
            }
        }
    }

    fn add_dispatch(&mut self, plan: &mut Plan, layer: usize) {
        let at = self.time.forward(self.step, layer);
        for mb in 0..self.shape.micro_batches {
            self.comm(plan, Work::Dispatch { layer, mb }, at, vec![]);
        }
    }

    /// Local experts that got a token in `layer`, as global indices.
    fn used(&self, layer: usize) -> Vec<usize> {
        let start = self.shape.local_experts.start;
        (0..self.shape.local_experts.len())
            .filter(|&local| self.tokens[layer].iter().flatten().any(|counts| counts[local] > 0))
            .map(|local| start + local)
            .collect()
    }

    fn add_experts(&mut self, plan: &mut Plan, layer: usize) {
        let at = self.time.forward(self.step, layer);
        let next_use = match self.pass {
            Pass::Train => self.time.backward(self.step, layer),
            Pass::Forward(_) => self.time.forward(self.step + 1, layer),
        };
        let used = self.used(layer);
        let mut experts = Vec::with_capacity(used.len());
        for &expert in &used {
            let mut deps = Vec::new();
            deps.extend(self.catch_up(plan, layer, expert));
            deps.extend(self.pending_update.get(&(layer, expert)));
            let needs =
                vec![Need { block: BlockId::weights(layer, expert), access: Use::Read, next_use }];
            let due = (at, 1 + expert as u64);
            let work = Work::Expert { layer, expert };
            experts.push(self.node_with(plan, work, Lane::Compute, due, deps, needs, None));
        }
        self.predictor.used(layer, &used);
        let join = self.node(plan, Work::Join, Lane::Control, at, experts);
        if self.shape.ranks > 1 {
            let combines: Vec<NodeId> = (0..self.shape.micro_batches)
                .map(|mb| self.comm(plan, Work::Combine { layer, mb }, at, vec![join]))
                .collect();
            self.add_dense(plan, layer + 1, &|mb| vec![combines[mb]]);
        } else {
            self.add_dense(plan, layer + 1, &|_| vec![join]);
        }
        let ahead = layer + self.shape.lookahead;
        if self.shape.lookahead > 0 && ahead < self.shape.layers {
            self.foresee_weights(plan, ahead);
        }
        let train = self.pass == Pass::Train && !self.shape.clipped;
        if train && self.shape.lookahead > 0 && layer + 1 == self.shape.layers {
            self.foresee_states(plan, false);
        }
    }

    /// If `expert` missed updates while idle, a node that replays them.
    fn catch_up(&mut self, plan: &mut Plan, layer: usize, expert: usize) -> Option<NodeId> {
        let local = self.local(expert);
        if !self.shape.exact_idle || self.applied[layer][local] >= self.updates {
            return None;
        }
        let from = std::mem::replace(&mut self.applied[layer][local], self.updates);
        let at = self.time.forward(self.step, layer);
        let needs = vec![
            Need { block: BlockId::weights(layer, expert), access: Use::Update, next_use: at },
            Need {
                block: BlockId::state(layer, expert),
                access: Use::Update,
                next_use: self.next_update(layer, expert, self.step),
            },
        ];
        let mut deps: Vec<NodeId> = self.commit.into_iter().collect();
        deps.extend(self.pending_update.get(&(layer, expert)));
        let work = Work::CatchUp { layer, expert, from, to: self.updates };
        let lane = self.shape.optimizer_lane;
        let id = self.node_with(plan, work, lane, (at, 0), deps, needs, None);
        self.pending_update.insert((layer, expert), id);
        Some(id)
    }

    fn foresee_weights(&mut self, plan: &mut Plan, layer: usize) {
        let use_at = self.time.forward(self.step, layer);
        let experts = self.predictor.likely(layer, self.shape.local_experts.clone());
        plan.ahead.extend(
            experts.into_iter().map(|e| Ahead { block: BlockId::weights(layer, e), use_at }),
        );
    }
}

impl Planner for TrainPlanner {
    fn step(&self) -> Step {
        self.step
    }

    fn begin(&mut self, step: Step, pass: Pass, plan: &mut Plan) {
        self.step = step;
        self.pass = pass;
        let (layers, mbs) = (self.shape.layers, self.shape.micro_batches);
        self.tokens = vec![vec![None; mbs]; layers];
        let batch = self.node(plan, Work::Batch, Lane::Io, self.time.start(step), vec![]);
        let mut deps = vec![batch];
        deps.extend(self.dense_update);
        self.add_dense(plan, 0, &|_| deps.clone());
        let ahead = self.shape.lookahead.min(layers);
        for layer in 0..ahead {
            self.foresee_weights(plan, layer);
        }
    }

    fn on_done(&mut self, task: Task, fact: &Fact, plan: &mut Plan) {
        match fact {
            Fact::Tokens { layer, mb, counts } => {
                self.tokens[*layer][*mb] = Some(counts.clone());
                if self.tokens[*layer].iter().all(Option::is_some) {
                    self.add_experts(plan, *layer);
                }
            }
            Fact::LayerTokens { layer, counts } => {
                if self.shape.ranks == 1 {
                    self.tokens[*layer] = counts.iter().cloned().map(Some).collect();
                    self.add_experts(plan, *layer);
                } else {
                    self.add_dispatch(plan, *layer);
                }
            }
            Fact::Totals { finite } if self.pass == Pass::Train && *finite => {
                self.add_backward(plan);
            }
            Fact::Norm { finite } => self.add_updates(plan, *finite),
            _ => {}
        }
        if let Work::Update { layer, expert, .. } | Work::CatchUp { layer, expert, .. } = task.work
        {
            self.pending_update.remove(&(layer, expert));
        }
    }

    fn ends_step(&self, task: Task, fact: &Fact) -> bool {
        match (task.work, fact) {
            (Work::Totals, Fact::Totals { finite }) => self.pass != Pass::Train || !finite,
            (Work::Norm, Fact::Norm { finite }) => !finite,
            (Work::UpdateDense, _) => true,
            _ => false,
        }
    }

    fn commit(&mut self, plan: &mut Plan) {
        let at = self.time.boundary(self.step);
        let mut deps: Vec<NodeId> = self.pending_update.values().copied().collect();
        deps.sort_unstable();
        deps.extend(self.dense_update);
        // The dense state has one slot, which the commit before may still be writing.
        let before = self.commit.into_iter().collect();
        let snapshot = self.node(plan, Work::Snapshot, Lane::Compute, at, before);
        deps.push(snapshot);
        self.commit = Some(self.node(plan, Work::Commit, Lane::Io, at, deps));
    }

    fn catch_up_all(&mut self, plan: &mut Plan) -> usize {
        let mut count = 0;
        for layer in 0..self.shape.layers {
            for expert in self.shape.local_experts.clone() {
                count += usize::from(self.catch_up(plan, layer, expert).is_some());
            }
        }
        count
    }
}
