//! A planner of training steps for simulated ranks: nodes are added as routing becomes known,
//! exchanges and experts in chunks, updates of blocks behind the backward pass.

use crate::ranks_memory::Use;
use crate::tiers_world::Rng;
use semoe::base::{BlockId, Part};
use semoe::graph::{Lane, NodeId, NodeSpec};
use semoe::storage::hierarchy::{Access, Outcome};
use std::collections::BTreeMap;

const LAYERS: usize = 3;
const CHUNKS: usize = 2;
const EXPERTS: usize = 4;

/// The most blocks of each part that one node uses: the smallest budget there is.
pub const SMALLEST: [(Part, usize); 4] =
    [(Part::Weights, 2), (Part::State, 1), (Part::Grad, 1), (Part::Activation, 3)];
/// The most blocks of all parts that one node uses.
pub const LARGEST: usize = 3;

/// A node's work: the blocks that it uses, and what the planner does at its end.
#[derive(Debug, Clone)]
pub struct Work {
    pub uses: Vec<Use>,
    pub then: Then,
    /// The number among all exchanges of the run, for nodes that are one.
    pub exchange: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Then {
    Nothing,
    /// The routing of this layer is known: its exchanges and experts can be added.
    Route(usize),
    /// The backward pass of a step is through: the next step can be added.
    NextStep,
}

pub struct Planner {
    rng: Rng,
    steps: usize,
    specs: Vec<NodeSpec<Work>>,
    next: NodeId,
    exchanges: u64,
    /// What the next layer waits for.
    frontier: Vec<NodeId>,
    /// The newest update of each (layer, expert): perhaps done long ago.
    updated: BTreeMap<(usize, usize), NodeId>,
    /// Experts that each layer routed to in this step.
    routed: Vec<Vec<usize>>,
    /// Whether exchanges have sequence numbers; a mutation takes them away.
    sequenced: bool,
}

impl Planner {
    pub fn new(seed: u64, steps: usize, sequenced: bool) -> Self {
        Self {
            rng: Rng(seed),
            steps,
            specs: Vec::new(),
            next: 0,
            exchanges: 0,
            frontier: Vec::new(),
            updated: BTreeMap::new(),
            routed: Vec::new(),
            sequenced,
        }
    }

    pub fn is_finished(&self) -> bool {
        self.steps == 0
    }

    /// Nodes to add now that a node with this consequence is done.
    pub fn after(&mut self, then: Then) -> Vec<NodeSpec<Work>> {
        match then {
            Then::Nothing => {}
            Then::Route(layer) => self.route(layer),
            Then::NextStep if self.steps > 0 => {
                self.steps -= 1;
                self.routed = vec![Vec::new(); LAYERS];
                self.dense(0);
            }
            Then::NextStep => {}
        }
        std::mem::take(&mut self.specs)
    }

    fn node(&mut self, lane: Lane, uses: Vec<Use>, deps: &[NodeId], priority: usize) -> NodeId {
        let id = self.next;
        self.next += 1;
        let acquire = !uses.is_empty();
        let work = Work { uses, then: Then::Nothing, exchange: None };
        let spec = NodeSpec::new(id, work, lane);
        let mut spec = spec.after(deps.iter().copied()).priority(priority as u64);
        spec.acquire = acquire;
        self.specs.push(spec);
        id
    }

    /// Says what follows the node that was added last.
    fn then(&mut self, then: Then) {
        self.specs.last_mut().unwrap().kind.then = then;
    }

    /// An exchange, whose buffers are blocks too.
    fn exchange(&mut self, deps: &[NodeId], priority: usize) -> NodeId {
        let number = self.exchanges;
        self.exchanges += 1;
        let buffers = 0..self.rng.below(LARGEST + 1);
        let buffer = |i| BlockId::new(i, number as usize, Part::Activation);
        let uses = buffers.map(|i| (buffer(i), Access::Create, Outcome::Discard)).collect();
        let lane = if self.sequenced { Lane::Comm } else { Lane::Copy };
        let id = self.node(lane, uses, deps, priority);
        let spec = self.specs.last_mut().unwrap();
        spec.kind.exchange = Some(number);
        spec.sequence = self.sequenced.then_some(number);
        id
    }

    fn dense(&mut self, layer: usize) {
        let frontier = std::mem::take(&mut self.frontier);
        let dense = self.node(Lane::Compute, Vec::new(), &frontier, layer);
        let gate = self.node(Lane::Compute, Vec::new(), &[dense], layer);
        self.then(Then::Route(layer));
        self.frontier = vec![gate];
    }

    fn route(&mut self, layer: usize) {
        let gate = std::mem::take(&mut self.frontier);
        let mut combined = Vec::new();
        for _ in 0..CHUNKS {
            let dispatch = self.exchange(&gate, layer);
            let mut outputs = vec![dispatch];
            for expert in 0..EXPERTS {
                if self.rng.chance(50) {
                    continue;
                }
                let mut deps = vec![dispatch];
                deps.extend(self.updated.get(&(layer, expert)));
                let read = |expert| (BlockId::weights(layer, expert), Access::Read, Outcome::Clean);
                let mut uses = vec![read(expert)];
                if self.rng.chance(40) {
                    // Two experts as one node. Beyond EXPERTS there are some that never change.
                    uses.push(read(EXPERTS + self.rng.below(EXPERTS)));
                }
                outputs.push(self.node(Lane::Compute, uses, &deps, layer));
                if !self.routed[layer].contains(&expert) {
                    self.routed[layer].push(expert);
                }
            }
            combined.push(self.exchange(&outputs, layer));
        }
        self.frontier = combined;
        if layer + 1 < LAYERS {
            self.dense(layer + 1);
        } else {
            self.backward();
        }
    }

    /// The experts of every layer are known, so the whole pass is added at once.
    fn backward(&mut self) {
        let mut updates = Vec::new();
        let mut next_step = 0;
        for layer in (0..LAYERS).rev() {
            let priority = 2 * LAYERS - layer;
            let frontier = std::mem::take(&mut self.frontier);
            let dispatch = self.exchange(&frontier, priority);
            let mut gradients = vec![dispatch];
            for expert in self.routed[layer].clone() {
                let weights = BlockId::weights(layer, expert);
                let state = BlockId::state(layer, expert);
                let grad = BlockId::grad(layer, expert);
                let uses = vec![
                    (weights, Access::Read, Outcome::Clean),
                    (grad, Access::Create, Outcome::Dirty),
                ];
                let gradient = self.node(Lane::Compute, uses, &[dispatch], priority);
                let uses = vec![
                    (weights, Access::Update, Outcome::Dirty),
                    (state, Access::Update, Outcome::Dirty),
                    (grad, Access::Read, Outcome::Discard),
                ];
                let update = self.node(Lane::Optim, uses, &[gradient], priority + LAYERS);
                gradients.push(gradient);
                self.updated.insert((layer, expert), update);
                updates.push(update);
            }
            let combine = self.exchange(&gradients, priority);
            next_step = self.node(Lane::Compute, Vec::new(), &[combine], priority);
            self.frontier = vec![next_step];
        }
        let last = self.specs.iter_mut().find(|spec| spec.id == next_step).unwrap();
        last.kind.then = Then::NextStep;
        self.node(Lane::Control, Vec::new(), &updates, 99);
    }
}
