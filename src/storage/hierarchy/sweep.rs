//! Sweeps over more blocks than there are slots, foreseen as a whole: a fixed part stays.

use super::*;
use crate::storage::policy::PolicyKind;
use std::collections::VecDeque;

const BLOCKS: u64 = 200;
const SLOTS: u32 = 80;

fn block(index: u64) -> BlockId {
    BlockId::state(0, index as usize)
}

/// Updates every block once, all of them foreseen at the beginning as a planner does; gives
/// loads and writes.
fn sweep(hierarchy: &mut Hierarchy, number: u64) -> (u64, u64) {
    let mut moves = VecDeque::new();
    let mut new = Vec::new();
    let mut counts = (0, 0);
    let time = |sweep: u64, index: u64| 1000 * sweep + index;
    let mut events: VecDeque<Event> = (0..BLOCKS)
        .map(|index| Event::Prefetch { block: block(index), use_at: time(number, index) })
        .collect();
    let (mut asked, mut done) = (0, 0);
    while done < BLOCKS || !events.is_empty() || !moves.is_empty() {
        if events.is_empty() && moves.is_empty() && asked < BLOCKS {
            let next_use = time(number + 1, asked);
            let want = Want { block: block(asked), access: Access::Update, next_use };
            let key = time(number, asked);
            let wants = vec![want];
            events.push_back(Event::Acquire { ticket: key, priority: key, wants });
            asked += 1;
        }
        if let Some(event) = events.pop_front() {
            hierarchy.on(event, &mut new).unwrap();
            moves.extend(new.drain(..));
        }
        // The disk answers late: one move for each event.
        match moves.pop_front() {
            Some(Move::Load { block, .. }) => {
                counts.0 += 1;
                events.push_back(Event::Loaded { block });
            }
            Some(Move::Write { block, .. }) => {
                counts.1 += 1;
                events.push_back(Event::Written { block });
            }
            Some(Move::Grant { ticket, slots }) => {
                done += 1;
                let outcomes = vec![(slots[0].0, Outcome::Dirty)];
                events.push_back(Event::Release { ticket, outcomes });
            }
            _ => {}
        }
    }
    counts
}

#[test]
fn a_foreseen_sweep_reads_little_more_than_what_does_not_fit() {
    let class = SlotClass { part: Part::State, slot_bytes: 16 << 20, slots: SLOTS };
    let policy = PolicyConfig::of(PolicyKind::Planned);
    let mut hierarchy = Hierarchy::new(&[class], &policy).unwrap();
    let missing = BLOCKS - u64::from(SLOTS);
    for number in 1..6 {
        let (loads, writes) = sweep(&mut hierarchy, number);
        if number > 2 {
            // The window for a deep queue is four blocks.
            assert!(loads <= missing + 5, "{loads} loads in sweep {number}");
            assert!(writes <= missing + 5, "{writes} writes in sweep {number}");
        }
    }
}

#[test]
fn what_was_fetched_in_vain_leaves_first_and_stands_in_nobodys_way() {
    let class = SlotClass { part: Part::State, slot_bytes: 4096, slots: 9 };
    let policy = PolicyConfig::of(PolicyKind::Planned);
    let mut hierarchy = Hierarchy::new(&[class], &policy).unwrap();
    let mut moves = Vec::new();
    let mut on = |hierarchy: &mut Hierarchy, event| {
        moves.clear();
        hierarchy.on(event, &mut moves).unwrap();
        moves.clone()
    };
    // Nine guesses for hour 5, of which one is used.
    for index in 0..9 {
        on(&mut hierarchy, Event::Prefetch { block: block(index), use_at: 5 });
        on(&mut hierarchy, Event::Loaded { block: block(index) });
    }
    let ask = |ticket, index, next_use| Event::Acquire {
        ticket,
        priority: ticket,
        wants: vec![Want { block: block(index), access: Access::Read, next_use }],
    };
    on(&mut hierarchy, ask(1, 0, 9));
    let outcomes = vec![(block(0), Outcome::Clean)];
    on(&mut hierarchy, Event::Release { ticket: 1, outcomes });
    // The hour is over once what was due later is asked for.
    on(&mut hierarchy, ask(2, 0, 20));
    let moves = on(&mut hierarchy, Event::Prefetch { block: block(50), use_at: 30 });
    assert!(matches!(moves[..], [Move::Load { haste: Haste::Foreseen, .. }]), "{moves:?}");
}
