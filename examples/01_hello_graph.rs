//! Hello graph: what the scheduler does, with nothing but the scheduler.
//!
//! A layer's gate routes tokens to four experts. Each expert needs its weights, which come from
//! an SSD, one after the other. The engine is told what happened (`Event`) and says what is to be
//! done (`Command`); this program plays everybody else, in virtual time: the executor that
//! computes, the SSD that reads, the planner that adds nodes once the routing is known. Nothing
//! sleeps and no thread runs, so the same seed always prints the same timeline.
//!
//! ```sh
//! cargo run --example 01_hello_graph          # seed 1
//! cargo run --example 01_hello_graph -- 7     # other durations, another order
//! ```

use semoe::base::Result;
use semoe::base::clock::Nanos;
use semoe::graph::{
    Accounting, Command, Credits, Engine, EngineConfig, Event, Lane, NodeId, NodeSpec, Report,
    Schedule,
};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

const MS: Nanos = 1_000_000;
const EXPERTS: u64 = 4;

/// A node's work. To the engine it is opaque: only lane, dependencies and `acquire` matter there.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Work {
    /// One letter for the timeline.
    letter: char,
    name: String,
    takes: Nanos,
    /// How long the SSD reads until the node's blocks are in memory.
    reads: Nanos,
}

impl Work {
    fn new(letter: char, name: impl Into<String>, takes: Nanos) -> Self {
        Self { letter, name: name.into(), takes, reads: 0 }
    }

    fn reading(mut self, reads: Nanos) -> Self {
        self.reads = reads;
        self
    }
}

/// What is known from the start: the dense part of the layer, then its gate.
fn first_nodes(rng: &mut Rng) -> Vec<NodeSpec<Work>> {
    vec![
        NodeSpec::new(0, Work::new('d', "dense", rng.around(4 * MS)), Lane::Compute),
        NodeSpec::new(1, Work::new('g', "gate", rng.around(MS)), Lane::Compute).after([0]),
    ]
}

/// What becomes known when the gate is done: which experts compute, and what follows them. Nodes
/// may be added at any time; ids go on where the engine stands.
fn routed_nodes(next: NodeId, rng: &mut Rng) -> Vec<NodeSpec<Work>> {
    let mut nodes = Vec::new();
    let dispatch = next;
    let work = Work::new('>', "dispatch", rng.around(MS));
    // Collectives carry the place that they have among all of them, equal on every rank.
    nodes.push(NodeSpec::new(dispatch, work, Lane::Comm).after([1]).sequence(0));
    for expert in 0..EXPERTS {
        let letter = char::from(b'0' + expert as u8);
        let work = Work::new(letter, format!("expert {expert}"), rng.around(2 * MS));
        let work = work.reading(rng.around(2 * MS));
        let id = dispatch + 1 + expert;
        // `acquires`: its weights must be resident and pinned before it may be issued.
        let spec = NodeSpec::new(id, work, Lane::Compute).after([1, dispatch]);
        nodes.push(spec.acquires().priority(expert));
    }
    let combine = dispatch + 1 + EXPERTS;
    let work = Work::new('<', "combine", rng.around(MS));
    let experts = dispatch + 1..combine;
    nodes.push(NodeSpec::new(combine, work, Lane::Comm).after(experts).sequence(1));
    // The gate ended long ago by then, and is forgotten: it still counts as done.
    let work = Work::new('h', "head", rng.around(2 * MS));
    nodes.push(NodeSpec::new(combine + 1, work, Lane::Compute).after([1, combine]));
    nodes
}

/// What will happen, soonest first; events of one moment in the order in which they were caused.
#[derive(Default)]
struct Future {
    events: BinaryHeap<Reverse<(Nanos, u64)>>,
    what: BTreeMap<u64, Event<Work>>,
}

impl Future {
    fn at(&mut self, when: Nanos, event: Event<Work>) {
        let order = self.what.keys().next_back().map_or(0, |last| last + 1);
        self.events.push(Reverse((when, order)));
        self.what.insert(order, event);
    }

    fn next(&mut self) -> Option<(Nanos, Event<Work>)> {
        let Reverse((when, order)) = self.events.pop()?;
        Some((when, self.what.remove(&order)?))
    }
}

/// One bar of the timeline.
struct Bar {
    row: &'static str,
    letter: char,
    start: Nanos,
    end: Nanos,
}

fn run(schedule: Schedule, seed: u64, explain: bool) -> Result<(Report, Vec<Bar>)> {
    let mut rng = Rng(seed);
    // The executor runs one node at a time, so one credit; the default gives it two, so that the
    // next one lies ready. With one the timeline is easier to read.
    let credits = Credits::default().with(Lane::Compute, 1);
    let mut engine = Engine::new(EngineConfig { credits, schedule })?;
    let mut accounting = Accounting::new(0);
    let mut future = Future::default();
    let mut works: BTreeMap<NodeId, (Work, Nanos)> = BTreeMap::new();
    let mut bars = Vec::new();
    let mut commands = Vec::new();
    let mut ssd_is_free_at = 0;
    let mut now = 0;

    future.at(0, Event::Add(first_nodes(&mut rng)));
    while let Some((when, event)) = future.next() {
        now = when;
        // The outside world's part of an end: the span that the executor measured, the planner's
        // reaction.
        if let Event::Done(id) = event
            && let Some((work, start)) = works.remove(&id)
        {
            if work.letter == 'g' {
                future.at(now, Event::Add(routed_nodes(engine.next_id(), &mut rng)));
            }
            if matches!(work.letter, 'd' | 'g' | 'h' | '0'..='9') {
                accounting.busy(id, start, now);
            }
            accounting.done(now, id);
        }

        engine.on(now, event, &mut commands)?;

        for command in commands.drain(..) {
            match command {
                Command::Acquire(id) => {
                    // The SSD reads one block after another. In the real system the storage
                    // hierarchy answers here, at once if everything is resident.
                    let Some(work) = engine.kind(id) else { continue };
                    let start = now.max(ssd_is_free_at);
                    ssd_is_free_at = start + work.reads;
                    if explain {
                        println!("{:>6.2} ms  acquire  weights of {}", ms(now), work.name);
                    }
                    bars.push(Bar { row: "ssd", letter: work.letter, start, end: ssd_is_free_at });
                    future.at(ssd_is_free_at, Event::Granted(id));
                }
                Command::Issue(id, work, lane, cause) => {
                    accounting.issued(id, lane, cause);
                    if explain {
                        println!("{:>6.2} ms  issue    {:<9} {}", ms(now), work.name, why(cause));
                    }
                    let end = now + work.takes;
                    bars.push(Bar { row: lane.name(), letter: work.letter, start: now, end });
                    works.insert(id, (work, now));
                    future.at(end, Event::Done(id));
                }
                Command::Drained => {}
            }
        }
    }
    // Live nodes with nothing under way would be a bug of the planner; the engine says which.
    if let Some(error) = engine.stuck() {
        return Err(error);
    }
    Ok((accounting.finish(now), bars))
}

/// What a node waited for last.
fn why(cause: semoe::graph::Cause) -> String {
    let waited = cause.granted - cause.acquired;
    if waited > 0 {
        return format!("its weights came after {:.2} ms", ms(waited));
    }
    match cause.by {
        Some((node, lane)) => format!("node {node} ended on the {lane} lane"),
        None => "the planner added it".to_owned(),
    }
}

fn ms(time: Nanos) -> f64 {
    time as f64 / MS as f64
}

fn draw(bars: &[Bar], end: Nanos) {
    const WIDTH: u64 = 76;
    for row in ["ssd", "comm", "compute"] {
        let mut line = vec!['.'; WIDTH as usize];
        for bar in bars.iter().filter(|bar| bar.row == row) {
            let (from, to) = (bar.start * WIDTH / end, (bar.end * WIDTH).div_ceil(end));
            for cell in &mut line[from as usize..to.min(WIDTH) as usize] {
                *cell = bar.letter;
            }
        }
        println!("{row:>8} {}", line.into_iter().collect::<String>());
    }
}

fn print(report: &Report) {
    let parts = [
        ("executor busy", report.busy),
        ("waiting for the ssd", report.exposed_of(Lane::Io)),
        ("waiting for exchanges", report.exposed_of(Lane::Comm)),
        ("overhead", report.overhead),
    ];
    for (name, time) in parts {
        let share = 100.0 * time as f64 / report.wall as f64;
        println!("  {name:<22} {:>6.2} ms  {share:>5.1}%", ms(time));
    }
    println!("  {:<22} {:>6.2} ms", "wall", ms(report.wall));
}

/// Durations of a seeded draw (splitmix64).
struct Rng(u64);

impl Rng {
    /// A duration between half and one and a half of `mean`.
    fn around(&mut self, mean: Nanos) -> Nanos {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        mean / 2 + z % mean
    }
}

fn main() -> Result<()> {
    let seed = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(1);

    println!("What the engine commands, and why (seed {seed}):\n");
    let (overlapped, bars) = run(Schedule::Overlapped, seed, true)?;
    println!("\nThe same as a timeline: weights are read while earlier experts compute.\n");
    draw(&bars, overlapped.wall);
    print(&overlapped);

    let (sequential, bars) = run(Schedule::Sequential, seed, false)?;
    println!("\nThe sequential schedule, one thing at a time, for comparison:\n");
    draw(&bars, sequential.wall);
    print(&sequential);

    let gain = sequential.wall as f64 / overlapped.wall as f64;
    println!("\nOverlap makes it {gain:.2} times as fast.");
    Ok(())
}
