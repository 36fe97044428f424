//! Several ranks, each with an engine, a planner and a memory, that take steps in an order drawn
//! from a seed. A collective completes only once every rank has issued its own; where a rank died
//! it ends in an error, as `comm` promises.

use crate::ranks_memory::{Counted, Memory, Tiered};
use crate::ranks_planner::{LARGEST, Planner, SMALLEST, Then, Work};
use crate::tiers_world::Rng;
use semoe::graph::{
    Command, Credits, Engine, EngineConfig, Event, Lane, NodeId, NodeSpec, Schedule,
};
use semoe::storage::policy::PolicyKind;
use std::collections::BTreeSet;

#[derive(Debug, Clone)]
pub struct Setting {
    pub ranks: usize,
    pub credits: u32,
    pub schedule: Schedule,
    pub memory: Kind,
    /// Whether exchanges are in the global sequence.
    pub sequenced: bool,
    /// From which event on a node fails.
    pub fault: Option<u64>,
}

/// Which memory, always with the smallest budget.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    Counted,
    /// Mutated: grants part of what a node needs.
    Partial,
    Tiered(PolicyKind),
}

impl Setting {
    /// A setting without mutation or fault.
    pub fn sound(seed: u64) -> Self {
        let policy = PolicyKind::ALL[(seed / 11) as usize % PolicyKind::ALL.len()];
        Self {
            ranks: 1 + (seed % 3) as usize,
            credits: 1 + (seed / 3 % 3) as u32,
            schedule: if seed.is_multiple_of(5) {
                Schedule::Sequential
            } else {
                Schedule::Overlapped
            },
            memory: if seed.is_multiple_of(2) { Kind::Counted } else { Kind::Tiered(policy) },
            sequenced: true,
            fault: None,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Ends {
    Finished,
    /// A fault was met, and every rank came to rest.
    Drained,
    Deadlock,
}

struct Rank {
    engine: Engine<Work>,
    planner: Planner,
    memory: Box<dyn Memory>,
    running: Vec<(NodeId, Work)>,
    /// Grants on their way to the engine.
    granted: Vec<NodeId>,
    /// Exchanges issued so far, by number.
    exchanges: BTreeSet<u64>,
    issued: BTreeSet<NodeId>,
    drained: usize,
    dead: bool,
}

/// Something that can happen next.
#[derive(Debug, Clone, Copy)]
enum Choice {
    End { rank: usize, place: usize, failed: bool },
    Grant { rank: usize, place: usize },
    Memory { rank: usize, choice: usize },
}

impl Rank {
    fn new(rank: u64, seed: u64, setting: &Setting) -> Self {
        let credits = Credits::uniform(setting.credits);
        let config = EngineConfig { credits, schedule: setting.schedule };
        let memory: Box<dyn Memory> = match setting.memory {
            Kind::Counted => Box::new(Counted::new(LARGEST, false)),
            Kind::Partial => Box::new(Counted::new(LARGEST, true)),
            Kind::Tiered(policy) => Box::new(Tiered::new(&SMALLEST, policy)),
        };
        let mut new = Self {
            engine: Engine::new(config).unwrap(),
            // The routing differs from rank to rank, the exchanges do not.
            planner: Planner::new(seed * 31 + rank, 2, setting.sequenced),
            memory,
            running: Vec::new(),
            granted: Vec::new(),
            exchanges: BTreeSet::new(),
            issued: BTreeSet::new(),
            drained: 0,
            dead: false,
        };
        let first = new.planner.after(Then::NextStep);
        new.on(0, Event::Add(first));
        new
    }

    fn on(&mut self, now: u64, event: Event<Work>) {
        let mut commands = Vec::new();
        self.engine.on(now, event, &mut commands).unwrap();
        assert!(self.engine.stuck().is_none());
        for command in commands {
            match command {
                Command::Acquire(id) => {
                    let priority = self.engine.priority(id).unwrap();
                    let uses = &self.engine.kind(id).unwrap().uses;
                    self.memory.acquire(id, priority, uses);
                }
                Command::Issue(id, work, lane, _) => {
                    assert!(self.issued.insert(id), "node {id} was issued twice");
                    if let Some(number) = work.exchange {
                        let in_turn = number == self.exchanges.len() as u64;
                        assert!(lane != Lane::Comm || in_turn, "out of sequence");
                        self.exchanges.insert(number);
                    }
                    self.running.push((id, work));
                }
                Command::Drained => self.drained += 1,
            }
        }
        self.granted.append(&mut self.memory.granted());
    }

    fn end(&mut self, now: u64, place: usize, failed: bool) {
        let (id, work) = self.running.swap_remove(place);
        if !work.uses.is_empty() {
            self.memory.release(id);
        }
        if failed {
            self.dead = true;
            return self.on(now, Event::Failed(id));
        }
        self.on(now, Event::Done(id));
        let added: Vec<NodeSpec<Work>> = self.planner.after(work.then);
        if !added.is_empty() {
            self.on(now, Event::Add(added));
        }
    }

    fn is_finished(&self) -> bool {
        self.engine.is_idle() && self.planner.is_finished()
    }
}

fn choices(ranks: &[Rank]) -> Vec<Choice> {
    let someone_died = ranks.iter().any(|rank| rank.dead);
    let mut choices = Vec::new();
    for (r, rank) in ranks.iter().enumerate() {
        for (place, (_, work)) in rank.running.iter().enumerate() {
            let joined = |number| ranks.iter().all(|rank| rank.exchanges.contains(&number));
            let complete = work.exchange.is_none_or(joined);
            if complete || someone_died {
                choices.push(Choice::End { rank: r, place, failed: !complete });
            }
        }
        let grants = 0..rank.granted.len();
        choices.extend(grants.map(|place| Choice::Grant { rank: r, place }));
        if rank.drained == 0 {
            let happen = 0..rank.memory.choices();
            choices.extend(happen.map(|choice| Choice::Memory { rank: r, choice }));
        }
    }
    choices
}

/// Takes steps until none is left.
pub fn simulate(seed: u64, setting: &Setting) -> Ends {
    let mut rng = Rng(seed);
    let mut ranks: Vec<Rank> =
        (0..setting.ranks).map(|rank| Rank::new(rank as u64, seed, setting)).collect();
    for now in 1.. {
        let choices = choices(&ranks);
        if choices.is_empty() {
            break;
        }
        match choices[rng.below(choices.len())] {
            Choice::End { rank, place, failed } => {
                let due = setting.fault.is_some_and(|at| now >= at);
                let first = !ranks.iter().any(|rank| rank.dead);
                ranks[rank].end(now, place, failed || due && first);
            }
            Choice::Grant { rank, place } => {
                let id = ranks[rank].granted.swap_remove(place);
                ranks[rank].on(now, Event::Granted(id));
            }
            Choice::Memory { rank, choice } => {
                let rank = &mut ranks[rank];
                rank.memory.happen(choice);
                rank.granted.append(&mut rank.memory.granted());
            }
        }
    }
    if ranks.iter().all(Rank::is_finished) {
        let at_rest = ranks.iter().all(|rank| rank.memory.is_at_rest());
        assert!(at_rest, "slots or transfers are left over");
        return Ends::Finished;
    }
    let came_to_rest = |rank: &Rank| rank.drained == 1 || rank.is_finished();
    if ranks.iter().any(|rank| rank.dead) && ranks.iter().all(came_to_rest) {
        return Ends::Drained;
    }
    Ends::Deadlock
}
