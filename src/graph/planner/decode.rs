//! The planner of inference: chunks of prompts and steps of decoding.
//!
//! ```text
//! Advance(0) ── everything resident ─────────────────────────────────────────────► Ended
//!     │ Missing(l, e…): known the moment the gate of l is done
//!     ├─► Expert(l, e) …    each after its block; they compute in the order in which they come
//!     └─► Advance(l + 1)    after all of these and after the Advance that ran into l
//! ```
//!
//! While experts are resident the executor runs on through the layers inside one node, so a layer
//! without a miss costs no message. One with misses costs one for the fact and one for each expert
//! that arrives (ADR 21). What is certain is acquired; what is likely is only announced to the prefetcher,
//! which serves it behind everything that is certain.
//!
//! Law 8 here: a node acquires one block and holds no other, so one slot is enough.

use super::{Ahead, Fact, Need, Pass, Plan, Planned, Planner, Task, Use, Work};
use crate::base::{BlockId, Step};
use crate::graph::{Lane, NodeId, NodeSpec};

/// See the module.
#[derive(Debug)]
pub struct DecodePlanner {
    layers: usize,
    next_id: NodeId,
    step: Step,
    pass: Pass,
    /// The Advance that runs, or ran last.
    advance: NodeId,
}

/// When `layer` of `step` is due: the order of nodes, loads and uses.
pub fn hour(layers: usize, step: Step, layer: usize) -> u64 {
    step * (layers as u64 + 1) + layer as u64
}

/// Choices for each expert of a layer from which on a pass is taken for a sweep over the blocks.
const SWEEP: usize = 4;

/// When an expert that `layer` chose in `step` is used next, as far as that is known: where the rows of a pass
/// make many more `choices` than a layer has experts, the next pass will want most of them again.
pub fn next_use(layers: usize, step: Step, layer: usize, choices: usize, experts: usize) -> u64 {
    let sweeps = choices >= SWEEP * experts;
    if sweeps { hour(layers, step + 1, layer) } else { u64::MAX }
}

impl DecodePlanner {
    pub fn new(layers: usize) -> Self {
        Self { layers, next_id: 0, step: 0, pass: Pass::Forward(0), advance: 0 }
    }

    /// Adds a node; the block of an expert is used next at `next_use`.
    fn node(
        &mut self,
        plan: &mut Plan,
        work: Work,
        due: u64,
        next_use: u64,
        deps: Vec<NodeId>,
    ) -> NodeId {
        let id = self.next_id;
        self.next_id += 1;
        let needs: Vec<Need> = match work {
            Work::Expert { layer, expert } => {
                let block = BlockId::weights(layer, expert);
                vec![Need { block, access: Use::Read, next_use }]
            }
            _ => vec![],
        };
        plan.nodes.push(NodeSpec {
            id,
            acquire: !needs.is_empty(),
            kind: Planned { task: Task { step: self.step, pass: self.pass, work }, needs },
            lane: Lane::Compute,
            deps,
            priority: due,
            sequence: None,
        });
        id
    }

    fn hour(&self, layer: usize) -> u64 {
        hour(self.layers, self.step, layer)
    }
}

impl Planner for DecodePlanner {
    fn step(&self) -> Step {
        self.step
    }

    fn begin(&mut self, step: Step, pass: Pass, plan: &mut Plan) {
        (self.step, self.pass) = (step, pass);
        let due = self.hour(0);
        self.advance = self.node(plan, Work::Advance { layer: 0 }, due, u64::MAX, vec![]);
    }

    fn on_news(&mut self, task: Task, fact: &Fact, plan: &mut Plan) {
        if task.step != self.step {
            return;
        }
        match fact {
            Fact::Missing { layer, experts, next_use } => {
                let due = self.hour(*layer);
                let mut deps = vec![self.advance];
                for &expert in experts {
                    let work = Work::Expert { layer: *layer, expert };
                    deps.push(self.node(plan, work, due, *next_use, vec![]));
                }
                let next = layer + 1;
                let (work, due) = (Work::Advance { layer: next }, self.hour(next));
                self.advance = self.node(plan, work, due, u64::MAX, deps);
            }
            Fact::Likely { layer, experts } => {
                let use_at = self.hour(*layer);
                let block = |expert: &usize| BlockId::weights(*layer, *expert);
                plan.ahead.extend(experts.iter().map(|e| Ahead { block: block(e), use_at }));
            }
            _ => {}
        }
    }

    fn on_done(&mut self, _: Task, _: &Fact, _: &mut Plan) {}

    fn ends_step(&self, _: Task, fact: &Fact) -> bool {
        *fact == Fact::Ended
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{Command, Engine, EngineConfig, Event};

    fn advance(layer: usize) -> Task {
        Task { step: 1, pass: Pass::Forward(0), work: Work::Advance { layer } }
    }

    fn issued(commands: &mut Vec<Command<Planned>>) -> Vec<(NodeId, Work)> {
        let of = |command: Command<Planned>| match command {
            Command::Issue(id, planned, ..) => Some((id, planned.task.work)),
            _ => None,
        };
        commands.drain(..).filter_map(of).collect()
    }

    #[test]
    fn a_layer_waits_for_its_missing_experts_only() {
        let mut planner = DecodePlanner::new(3);
        let mut engine: Engine<Planned> = Engine::new(EngineConfig::default()).unwrap();
        let mut commands = Vec::new();
        let mut plan = Plan::default();
        planner.begin(1, Pass::Forward(0), &mut plan);
        engine.on(0, Event::Add(std::mem::take(&mut plan.nodes)), &mut commands).unwrap();
        assert_eq!(issued(&mut commands), [(0, Work::Advance { layer: 0 })]);

        let missing = Fact::Missing { layer: 1, experts: vec![4, 2], next_use: 77 };
        planner.on_news(advance(0), &missing, &mut plan);
        let needs = plan.nodes[..2].iter().flat_map(|node| &node.kind.needs);
        assert_eq!(needs.map(|need| need.next_use).collect::<Vec<_>>(), [77, 77]);
        engine.on(1, Event::Add(std::mem::take(&mut plan.nodes)), &mut commands).unwrap();
        assert!(matches!(commands[..], [Command::Acquire(1), Command::Acquire(2)]));
        commands.clear();
        // The second comes first and computes while the first is on its way.
        engine.on(2, Event::Granted(2), &mut commands).unwrap();
        assert_eq!(issued(&mut commands), [(2, Work::Expert { layer: 1, expert: 2 })]);
        engine.on(3, Event::Done(0), &mut commands).unwrap();
        engine.on(4, Event::Done(2), &mut commands).unwrap();
        assert_eq!(issued(&mut commands), []);
        engine.on(5, Event::Granted(1), &mut commands).unwrap();
        engine.on(6, Event::Done(1), &mut commands).unwrap();
        let next = issued(&mut commands);
        assert_eq!(next.last(), Some(&(3, Work::Advance { layer: 2 })));
        assert!(planner.ends_step(advance(2), &Fact::Ended));
        assert!(!planner.ends_step(advance(0), &Fact::Done));
    }

    #[test]
    fn what_is_likely_is_announced_and_acquires_nothing() {
        let mut planner = DecodePlanner::new(3);
        let mut plan = Plan::default();
        planner.begin(7, Pass::Forward(0), &mut plan);
        plan.nodes.clear();
        let task = Task { step: 7, ..advance(0) };
        planner.on_news(task, &Fact::Likely { layer: 2, experts: vec![5] }, &mut plan);
        assert!(plan.nodes.is_empty());
        let ahead = Ahead { block: BlockId::weights(2, 5), use_at: hour(3, 7, 2) };
        assert_eq!(plan.ahead, [ahead]);
        // What an earlier step made known is too late.
        let late = Fact::Likely { layer: 2, experts: vec![6] };
        planner.on_news(Task { step: 6, ..advance(0) }, &late, &mut plan);
        assert_eq!(plan.ahead.len(), 1);
    }
}
