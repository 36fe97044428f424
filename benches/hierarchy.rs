//! What one event costs the hierarchy: 5,000 blocks in a sweep over 2,000 slots, with prefetches
//! and write-back, under each policy. About a microsecond is meant to be enough.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use semoe::base::{BlockId, Part};
use semoe::storage::hierarchy::{Access, Event, Hierarchy, Move, Outcome, SlotClass, Want};
use semoe::storage::policy::{PolicyConfig, PolicyKind};
use std::collections::VecDeque;
use std::hint::black_box;

const BLOCKS: u64 = 2_500;
const PARTS: [Part; 2] = [Part::Weights, Part::State];
/// Tickets that hold leases at any time, and how far ahead prefetches run.
const OPEN: usize = 32;
const AHEAD: u64 = 40;

struct Sweep {
    hierarchy: Hierarchy,
    at: u64,
    granted: VecDeque<u64>,
    moves: Vec<Move>,
    events: u64,
}

impl Sweep {
    fn new(kind: PolicyKind) -> Self {
        let classes = PARTS.map(|part| SlotClass { part, slot_bytes: 4096, slots: 1_000 });
        let hierarchy = Hierarchy::new(&classes, &PolicyConfig::of(kind));
        let hierarchy = hierarchy.expect("the classes and the policy are valid");
        let granted = VecDeque::new();
        Self { hierarchy, at: 0, granted, moves: Vec::new(), events: 0 }
    }

    fn on(&mut self, event: Event) {
        self.events += 1;
        self.hierarchy.on(event, &mut self.moves).expect("the event is valid");
    }

    fn answer(&mut self) {
        let mut next = 0;
        while let Some(step) = self.moves.get(next) {
            next += 1;
            match step {
                Move::Load { block, .. } => {
                    let block = *block;
                    self.on(Event::Loaded { block });
                }
                Move::Write { block, .. } => {
                    let block = *block;
                    self.on(Event::Written { block });
                }
                Move::Grant { ticket, .. } => self.granted.push_back(*ticket),
                _ => {}
            }
        }
        self.moves.clear();
    }

    /// One update of the weights and states of one expert.
    fn step(&mut self) {
        let at = self.at;
        self.at += 1;
        for part in PARTS {
            self.on(Event::Prefetch { block: block(at + AHEAD, part), use_at: at + AHEAD });
        }
        let wants = PARTS.map(|part| Want {
            block: block(at, part),
            access: Access::Update,
            next_use: at + BLOCKS,
        });
        self.on(Event::Acquire { ticket: at, priority: at, wants: wants.to_vec() });
        self.answer();
        while self.granted.len() > OPEN {
            let Some(ticket) = self.granted.pop_front() else {
                break;
            };
            let outcomes = PARTS.map(|part| (block(ticket, part), Outcome::Dirty)).to_vec();
            self.on(Event::Release { ticket, outcomes });
        }
        self.answer();
    }
}

fn block(at: u64, part: Part) -> BlockId {
    let expert = at % BLOCKS;
    BlockId::new((expert / 64) as usize, (expert % 64) as usize, part)
}

fn events(c: &mut Criterion) {
    let mut group = c.benchmark_group("hierarchy");
    for kind in PolicyKind::ALL {
        let mut sweep = Sweep::new(kind);
        for _ in 0..2 * BLOCKS {
            sweep.step();
        }
        let (events, at) = (sweep.events, sweep.at);
        for _ in 0..BLOCKS {
            sweep.step();
        }
        // The figure per element is that of one event.
        let per_step = (sweep.events - events) as f64 / (sweep.at - at) as f64;
        group.throughput(Throughput::Elements(per_step.round() as u64));
        group.bench_function(kind.name(), |b| b.iter(|| black_box(&mut sweep).step()));
    }
    group.finish();
}

criterion_group!(benches, events);
criterion_main!(benches);
