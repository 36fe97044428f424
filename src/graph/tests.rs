//! The engine's rules, one test each, and a property over random graphs and orders.

use super::*;
use crate::base::Result;
use proptest::prelude::*;
use std::collections::BTreeMap;

type Spec = NodeSpec<()>;

fn engine(config: EngineConfig) -> Engine<()> {
    Engine::new(config).unwrap()
}

fn on(engine: &mut Engine<()>, now: u64, event: Event<()>) -> Vec<Command<()>> {
    let mut out = Vec::new();
    engine.on(now, event, &mut out).unwrap();
    out
}

/// Ids in the order in which they were issued.
fn issued(commands: &[Command<()>]) -> Vec<NodeId> {
    let id = |command: &Command<()>| match command {
        Command::Issue(id, ..) => Some(*id),
        _ => None,
    };
    commands.iter().filter_map(id).collect()
}

fn acquired(commands: &[Command<()>]) -> Vec<NodeId> {
    let id = |command: &Command<()>| match command {
        Command::Acquire(id) => Some(*id),
        _ => None,
    };
    commands.iter().filter_map(id).collect()
}

fn compute(id: NodeId) -> Spec {
    NodeSpec::new(id, (), Lane::Compute)
}

fn comm(id: NodeId, sequence: u64) -> Spec {
    NodeSpec::new(id, (), Lane::Comm).sequence(sequence)
}

fn one_at_a_time() -> EngineConfig {
    EngineConfig { credits: Credits::uniform(1), ..EngineConfig::default() }
}

#[test]
fn a_lane_issues_the_most_urgent_node_first_then_the_oldest() {
    let mut e = engine(one_at_a_time());
    let specs = vec![compute(0).priority(5), compute(1).priority(1), compute(2).priority(1)];
    assert_eq!(issued(&on(&mut e, 0, Event::Add(specs))), [1]);
    assert_eq!(issued(&on(&mut e, 1, Event::Done(1))), [2]);
    assert_eq!(issued(&on(&mut e, 2, Event::Done(2))), [0]);
}

#[test]
fn nodes_may_depend_on_nodes_that_finished_long_ago() {
    let mut e = engine(EngineConfig::default());
    for id in 0..10_000 {
        on(&mut e, id, Event::Add(vec![compute(id)]));
        on(&mut e, id, Event::Done(id));
    }
    assert_eq!(e.low_water(), 10_000);
    assert!(e.is_done(3) && !e.is_done(10_000));
    let out = on(&mut e, 10_000, Event::Add(vec![compute(10_000).after([0, 77, 9_999])]));
    assert_eq!(issued(&out), [10_000]);
}

#[test]
fn a_dependency_named_twice_is_waited_for_once() {
    let mut e = engine(EngineConfig::default());
    on(&mut e, 0, Event::Add(vec![compute(0), compute(1).after([0, 0])]));
    assert_eq!(issued(&on(&mut e, 1, Event::Done(0))), [1]);
}

#[test]
fn blocks_are_asked_for_when_dependencies_are_done_and_waited_for() {
    let mut e = engine(EngineConfig::default());
    let out = on(&mut e, 0, Event::Add(vec![compute(0), compute(1).after([0]).acquires()]));
    assert_eq!((issued(&out), acquired(&out)), (vec![0], vec![]));
    let out = on(&mut e, 10, Event::Done(0));
    assert_eq!((issued(&out), acquired(&out)), (vec![], vec![1]));
    let out = on(&mut e, 25, Event::Granted(1));
    let [Command::Issue(1, (), Lane::Compute, cause)] = out[..] else { panic!("{out:?}") };
    assert_eq!(cause.by, Some((0, Lane::Compute)));
    assert_eq!((cause.enabled, cause.acquired, cause.granted, cause.issued), (10, 10, 25, 25));
    assert_eq!(cause.lane(), Lane::Io);
}

#[test]
fn collectives_are_issued_in_sequence_whatever_order_they_become_ready() {
    let mut e = engine(EngineConfig::default());
    let specs = vec![compute(0), comm(1, 1), comm(2, 0).after([0]), comm(3, 2)];
    assert_eq!(issued(&on(&mut e, 0, Event::Add(specs))), [0]);
    assert_eq!(issued(&on(&mut e, 1, Event::Done(0))), [2, 1, 3]);
}

#[test]
fn a_later_collective_asks_for_no_blocks_before_an_earlier_one_has_its_own() {
    let mut e = engine(EngineConfig::default());
    let specs = vec![compute(0), comm(1, 0).after([0]).acquires(), comm(2, 1).acquires()];
    assert_eq!(acquired(&on(&mut e, 0, Event::Add(specs))), Vec::<NodeId>::new());
    assert_eq!(acquired(&on(&mut e, 1, Event::Done(0))), [1]);
    let out = on(&mut e, 2, Event::Granted(1));
    assert_eq!((issued(&out), acquired(&out)), (vec![1], vec![2]));
    assert_eq!(issued(&on(&mut e, 3, Event::Granted(2))), [2]);
}

#[test]
fn a_gap_in_the_sequence_is_named() {
    let mut e = engine(EngineConfig::default());
    on(&mut e, 0, Event::Add(vec![comm(0, 0), comm(1, 2)]));
    assert!(e.stuck().is_none());
    on(&mut e, 1, Event::Done(0));
    let text = e.stuck().unwrap().to_string();
    assert!(text.contains("node 1 holds comm sequence 2 and number 1 was never added"), "{text}");
}

#[test]
fn the_sequential_schedule_runs_and_fetches_one_node_at_a_time() {
    let config = EngineConfig { schedule: Schedule::Sequential, ..EngineConfig::default() };
    let mut e = engine(config);
    let io = NodeSpec::new(3, (), Lane::Io).acquires();
    let specs = vec![compute(0).priority(1), comm(1, 0), comm(2, 1), io];
    assert_eq!(issued(&on(&mut e, 0, Event::Add(specs))), [1]);
    assert_eq!(issued(&on(&mut e, 5, Event::Done(1))), [2]);
    let out = on(&mut e, 9, Event::Done(2));
    assert_eq!((issued(&out), acquired(&out)), (vec![], vec![3]));
    assert_eq!(issued(&on(&mut e, 12, Event::Granted(3))), [3]);
    let out = on(&mut e, 20, Event::Done(3));
    let [Command::Issue(0, (), Lane::Compute, cause)] = out[..] else { panic!("{out:?}") };
    assert_eq!((cause.by, cause.enabled), (Some((3, Lane::Io)), 20));
}

#[test]
fn after_a_failure_nothing_is_issued_and_the_rest_drains() {
    let mut e = engine(EngineConfig::default());
    let specs = vec![compute(0), compute(1), compute(2).after([0]), compute(3).acquires()];
    on(&mut e, 0, Event::Add(specs));
    assert_eq!(on(&mut e, 1, Event::Failed(0)), []);
    assert_eq!(on(&mut e, 2, Event::Granted(3)), []);
    assert_eq!(on(&mut e, 2, Event::Add(vec![compute(4)])), []);
    assert_eq!(on(&mut e, 3, Event::Done(1)), [Command::Drained]);
    assert!(e.state().stopped && e.stuck().is_none());
}

#[test]
fn blocks_that_cannot_be_had_fail_the_node() {
    let mut e = engine(EngineConfig::default());
    on(&mut e, 0, Event::Add(vec![compute(0).acquires()]));
    assert_eq!(on(&mut e, 1, Event::Failed(0)), [Command::Drained]);
    assert_eq!(on(&mut e, 2, Event::Stop), []);
}

#[test]
fn a_broken_protocol_is_an_error_that_names_the_node() {
    let fails = |specs: Vec<Spec>, event: Option<Event<()>>| -> String {
        let mut e = engine(EngineConfig::default());
        let mut out = Vec::new();
        let run = || -> Result<()> {
            e.on(0, Event::Add(specs), &mut out)?;
            event.map_or(Ok(()), |event| e.on(1, event, &mut out))
        };
        run().unwrap_err().to_string()
    };
    assert!(fails(vec![compute(1)], None).contains("out of order (node=1, expected=0)"));
    assert!(fails(vec![compute(0).after([0])], None).contains("dependency=0"));
    assert!(fails(vec![compute(0).sequence(0)], None).contains("lane=compute"));
    assert!(fails(vec![NodeSpec::new(0, (), Lane::Comm)], None).contains("sequence number"));
    assert!(fails(vec![comm(0, 0), comm(1, 0)], None).contains("used twice"));
    assert!(fails(vec![compute(0)], Some(Event::Granted(0))).contains("asked for none"));
    assert!(fails(vec![compute(0).acquires()], Some(Event::Done(0))).contains("not issued"));
    assert!(fails(vec![], Some(Event::Done(9))).contains("not live (node=9"));
    let none = EngineConfig { credits: Credits::default().with(Lane::Io, 0), ..Default::default() };
    assert!(Engine::<()>::new(none).unwrap_err().to_string().contains("io lane"));
}

/// A random node: lane, dependencies as distances back, acquire, priority.
type Draw = (usize, Vec<u64>, bool, u64);

fn draws() -> impl Strategy<Value = Vec<Draw>> {
    let draw = (0..Lane::COUNT, prop::collection::vec(1..12u64, 0..4), any::<bool>(), 0..4u64);
    prop::collection::vec(draw, 1..60)
}

fn to_specs(draws: &[Draw]) -> Vec<Spec> {
    let mut sequence = 0;
    let spec = |(id, (lane, back, acquire, priority)): (usize, &Draw)| {
        let id = id as NodeId;
        let lane = Lane::ALL[*lane];
        let deps = back.iter().filter(|back| **back <= id).map(|back| id - back);
        let mut spec = NodeSpec::new(id, (), lane).after(deps).priority(*priority);
        spec.acquire = *acquire;
        if lane == Lane::Comm {
            spec.sequence = Some(sequence);
            sequence += 1;
        }
        spec
    };
    draws.iter().enumerate().map(spec).collect()
}

proptest! {
    /// Whatever the graph, the batches in which it is added and the order in which grants and
    /// ends arrive: every node is issued exactly once and after what it depends on, no lane
    /// exceeds its credits, collectives keep their sequence, and the run ends.
    #[test]
    fn every_node_runs_once_in_an_allowed_order(
        draws in draws(),
        batch in 1..20usize,
        credits in 1..4u32,
        sequential in any::<bool>(),
        choices in prop::collection::vec(any::<prop::sample::Index>(), 200),
    ) {
        let specs = to_specs(&draws);
        let schedule = if sequential { Schedule::Sequential } else { Schedule::Overlapped };
        let mut e = engine(EngineConfig { credits: Credits::uniform(credits), schedule });
        let mut batches = specs.chunks(batch).map(<[Spec]>::to_vec);
        let mut pending: Vec<Event<()>> = batches.next().map(Event::Add).into_iter().collect();
        let mut choices = choices.iter().cycle();
        let mut running: BTreeMap<NodeId, Lane> = BTreeMap::new();
        let (mut order, mut sequence, mut granted) = (Vec::new(), 0, Vec::new());
        let mut now = 0;
        while !pending.is_empty() {
            let chosen = choices.next().unwrap().index(pending.len());
            let event = pending.swap_remove(chosen);
            if matches!(event, Event::Add(_)) {
                pending.extend(batches.next().map(Event::Add));
            }
            match &event {
                Event::Done(id) => { running.remove(id); }
                Event::Granted(id) => granted.push(*id),
                _ => {}
            }
            now += 1;
            for command in on(&mut e, now, event) {
                match command {
                    Command::Acquire(id) => {
                        prop_assert!(specs[id as usize].deps.iter().all(|dep| e.is_done(*dep)));
                        pending.push(Event::Granted(id));
                    }
                    Command::Issue(id, (), lane, cause) => {
                        let spec = &specs[id as usize];
                        prop_assert!(spec.deps.iter().all(|dep| e.is_done(*dep)));
                        prop_assert!(!spec.acquire || granted.contains(&id));
                        prop_assert!(!order.contains(&id));
                        if let Some(own) = spec.sequence {
                            prop_assert_eq!(own, sequence);
                            sequence += 1;
                        }
                        prop_assert!(cause.by_ended <= cause.enabled);
                        prop_assert!(cause.enabled <= cause.acquired);
                        prop_assert!(cause.acquired <= cause.granted);
                        prop_assert!(cause.granted <= cause.issued);
                        running.insert(id, lane);
                        order.push(id);
                        pending.push(Event::Done(id));
                    }
                    Command::Drained => prop_assert!(false, "drained without a stop"),
                }
            }
            for lane in Lane::ALL {
                let outstanding = running.values().filter(|on| **on == lane).count();
                prop_assert!(outstanding <= credits as usize);
            }
            prop_assert!(!sequential || running.len() <= 1);
        }
        prop_assert!(e.is_idle());
        prop_assert_eq!(order.len(), specs.len());
    }
}
