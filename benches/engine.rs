//! What the scheduler costs a node: added, dependencies tracked, blocks asked for and granted,
//! issued, done. The promise is 5 µs a node; the benchmark fails if it is broken.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group};
use semoe::graph::{Command, Engine, EngineConfig, Event, Lane, NodeId, NodeSpec};
use std::collections::VecDeque;
use std::hint::black_box;
use std::process::ExitCode;
use std::time::{Duration, Instant};

const NODES: u64 = 20_000;
const LIMIT: Duration = Duration::from_micros(5);

/// Runs `NODES` nodes through an engine, at most `live` of them at a time: a gate's fan-out of
/// experts, an exchange in eight, updates; three dependencies a node; three in four acquire.
fn run(live: u64) -> u64 {
    let mut engine = Engine::new(EngineConfig::default()).expect("the default config is sound");
    let mut pending: VecDeque<Event<u64>> = VecDeque::new();
    let mut commands = Vec::new();
    let (mut next, mut done, mut now, mut sequence) = (0, 0, 0, 0);
    while done < NODES {
        if next < NODES && next - done < live {
            let end = NODES.min(next + 32);
            let batch = (next..end).map(|id| spec(id, &mut sequence)).collect();
            pending.push_back(Event::Add(batch));
            next = end;
        }
        let Some(event) = pending.pop_front() else { panic!("{:?}", engine.state()) };
        now += 1;
        done += u64::from(matches!(event, Event::Done(_)));
        engine.on(now, event, &mut commands).expect("the protocol is kept");
        for command in commands.drain(..) {
            match command {
                Command::Acquire(id) => pending.push_back(Event::Granted(id)),
                Command::Issue(id, kind, ..) => {
                    black_box(kind);
                    pending.push_back(Event::Done(id));
                }
                Command::Drained => {}
            }
        }
    }
    now
}

fn spec(id: NodeId, sequence: &mut u64) -> NodeSpec<u64> {
    let lane = match id % 16 {
        0 | 8 => Lane::Comm,
        1..4 => Lane::Optim,
        4 => Lane::Io,
        _ => Lane::Compute,
    };
    let deps = [1, 7, 40].into_iter().filter(|back| *back <= id).map(|back| id - back);
    let mut spec = NodeSpec::new(id, id, lane).after(deps).priority(id / 64);
    spec.acquire = !id.is_multiple_of(4);
    if lane == Lane::Comm {
        spec.sequence = Some(*sequence);
        *sequence += 1;
    }
    spec
}

fn engine(c: &mut Criterion) {
    let mut group = c.benchmark_group("engine");
    group.throughput(Throughput::Elements(NODES));
    group.sample_size(10);
    for live in [64, 4096] {
        let name = BenchmarkId::new("nodes", format!("{live} live"));
        group.bench_function(name, |b| b.iter(|| run(black_box(live))));
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_secs(1));
    targets = engine
}

fn main() -> ExitCode {
    benches();
    let best = (0..5).map(|_| {
        let start = Instant::now();
        black_box(run(4096));
        start.elapsed()
    });
    let a_node = best.min().unwrap_or_default() / NODES as u32;
    let share = a_node.as_secs_f64() / LIMIT.as_secs_f64();
    println!("engine: {a_node:?} a node, {share:.3} of the {LIMIT:?} allowed");
    if a_node > LIMIT {
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
