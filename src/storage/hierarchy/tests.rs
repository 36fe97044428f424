//! The hierarchy, move by move.

use super::*;
use crate::storage::policy::PolicyKind;

const SLOT: u64 = 4096;

fn with_slots(weights: u32, grads: u32, kind: PolicyKind) -> Rig {
    let class = |part, slots| SlotClass { part, slot_bytes: SLOT, slots };
    let classes = [class(Part::Weights, weights), class(Part::Grad, grads)];
    Rig { hierarchy: Hierarchy::new(&classes, &PolicyConfig::of(kind)).unwrap(), next: 0 }
}

struct Rig {
    hierarchy: Hierarchy,
    next: u64,
}

impl Rig {
    fn on(&mut self, event: Event) -> Vec<Move> {
        let mut moves = Vec::new();
        self.hierarchy.on(event, &mut moves).unwrap();
        moves
    }

    /// A ticket of the least urgent priority so far.
    fn ask(&mut self, wants: &[(BlockId, Access, u64)]) -> (u64, Vec<Move>) {
        self.next += 1;
        (self.next, self.ask_as(self.next, self.next, wants))
    }

    fn ask_as(
        &mut self,
        ticket: u64,
        priority: u64,
        wants: &[(BlockId, Access, u64)],
    ) -> Vec<Move> {
        let wants = wants.iter().map(|(block, access, next_use)| Want {
            block: *block,
            access: *access,
            next_use: *next_use,
        });
        self.on(Event::Acquire { ticket, priority, wants: wants.collect() })
    }

    fn release(&mut self, ticket: u64, outcomes: &[(BlockId, Outcome)]) -> Vec<Move> {
        self.on(Event::Release { ticket, outcomes: outcomes.to_vec() })
    }

    /// Acquires, loads where asked, and releases as `outcome`.
    fn pass(&mut self, block: BlockId, access: Access, next_use: u64, outcome: Outcome) {
        let (ticket, moves) = self.ask(&[(block, access, next_use)]);
        if moves.contains(&load(block, slot_of(&moves, block))) {
            self.on(Event::Loaded { block });
        }
        self.release(ticket, &[(block, outcome)]);
    }
}

fn w(expert: usize) -> BlockId {
    BlockId::weights(0, expert)
}

fn g(expert: usize) -> BlockId {
    BlockId::grad(0, expert)
}

fn slot(index: u32) -> SlotId {
    SlotId { part: Part::Weights, index }
}

fn load(block: BlockId, slot: SlotId) -> Move {
    Move::Load { block, slot, haste: Haste::Asked }
}

fn write(block: BlockId, slot: SlotId, era: u64, urgent: bool) -> Move {
    Move::Write { block, slot, era, urgent }
}

fn grant(ticket: u64, slots: &[(BlockId, SlotId)]) -> Move {
    Move::Grant { ticket, slots: slots.to_vec() }
}

fn slot_of(moves: &[Move], wanted: BlockId) -> SlotId {
    let found = moves.iter().find_map(|step| match step {
        Move::Load { block, slot, .. } if *block == wanted => Some(*slot),
        _ => None,
    });
    found.unwrap_or(slot(0))
}

#[test]
fn a_miss_is_loaded_and_a_hit_granted_at_once() {
    let mut rig = with_slots(2, 0, PolicyKind::Lru);
    let (first, moves) = rig.ask(&[(w(0), Access::Read, 9), (w(1), Access::Read, 9)]);
    assert_eq!(moves, [load(w(0), slot(0)), load(w(1), slot(1))]);
    assert_eq!(rig.on(Event::Loaded { block: w(1) }), []);
    let both = [(w(0), slot(0)), (w(1), slot(1))];
    assert_eq!(rig.on(Event::Loaded { block: w(0) }), [grant(first, &both)]);
    let (second, moves) = rig.ask(&[(w(1), Access::Read, 9)]);
    assert_eq!(moves, [grant(second, &[(w(1), slot(1))])]);
    let stats = rig.hierarchy.stats().part(Part::Weights);
    assert_eq!((stats.hits, stats.misses, stats.bytes_loaded), (1, 2, 2 * SLOT));
    assert_eq!(rig.hierarchy.resident_bytes(), 2 * SLOT);
}

#[test]
fn a_dirty_block_is_written_before_its_slot_is_reused() {
    let mut rig = with_slots(1, 0, PolicyKind::Planned);
    rig.pass(w(0), Access::Update, 5, Outcome::Dirty);
    let (ticket, moves) = rig.ask(&[(w(1), Access::Read, 9)]);
    assert_eq!(moves, [write(w(0), slot(0), 1, true)]);
    assert_eq!(rig.on(Event::Written { block: w(0) }), [load(w(1), slot(0))]);
    assert_eq!(rig.on(Event::Loaded { block: w(1) }), [grant(ticket, &[(w(1), slot(0))])]);
}

#[test]
fn a_block_that_is_wanted_again_during_its_write_stays() {
    let mut rig = with_slots(1, 0, PolicyKind::Planned);
    rig.pass(w(0), Access::Update, 5, Outcome::Dirty);
    rig.on(Event::Prefetch { block: w(1), use_at: 2 });
    // The prefetch has w(0) written; reading goes on meanwhile, changing waits.
    let (reader, moves) = rig.ask(&[(w(0), Access::Read, 5)]);
    assert_eq!(moves, [grant(reader, &[(w(0), slot(0))])]);
    let (changer, moves) = rig.ask(&[(w(0), Access::Update, 5)]);
    assert_eq!(moves, []);
    assert_eq!(rig.release(reader, &[]), []);
    assert_eq!(rig.on(Event::Written { block: w(0) }), [grant(changer, &[(w(0), slot(0))])]);
    // Only after the change, and its write, is there room for the prefetch.
    let dirty = [(w(0), Outcome::Dirty)];
    assert_eq!(rig.release(changer, &dirty), [write(w(0), slot(0), 1, false)]);
    let speculative = Move::Load { block: w(1), slot: slot(0), haste: Haste::Foreseen };
    assert_eq!(rig.on(Event::Written { block: w(0) }), [speculative]);
}

#[test]
fn a_flush_commits_its_moment_while_reads_go_on() {
    let mut rig = with_slots(3, 0, PolicyKind::Planned);
    rig.pass(w(0), Access::Update, 5, Outcome::Dirty);
    rig.pass(w(1), Access::Create, 6, Outcome::Dirty);
    let moves = rig.on(Event::Flush);
    assert_eq!(moves, [write(w(0), slot(0), 1, false), write(w(1), slot(1), 1, false)]);
    let (reader, moves) = rig.ask(&[(w(0), Access::Read, 5)]);
    assert_eq!(moves, [grant(reader, &[(w(0), slot(0))])]);
    // What changes now belongs to the next flush.
    rig.pass(w(2), Access::Create, 7, Outcome::Dirty);
    let (changer, moves) = rig.ask(&[(w(1), Access::Update, 6)]);
    assert_eq!(moves, [], "its old bytes are on their way to disk");
    let granted = grant(changer, &[(w(1), slot(1))]);
    assert_eq!(rig.on(Event::Written { block: w(1) }), [granted]);
    assert_eq!(rig.on(Event::Written { block: w(0) }), [Move::Flushed { flush: 1 }]);
    rig.release(changer, &[(w(1), Outcome::Dirty)]);
    let moves = rig.on(Event::Flush);
    assert_eq!(moves, [write(w(1), slot(1), 2, false), write(w(2), slot(2), 2, false)]);
}

#[test]
fn a_flush_of_nothing_ends_at_once_and_gradients_are_not_flushed() {
    let mut rig = with_slots(1, 1, PolicyKind::Planned);
    rig.pass(g(0), Access::Create, 5, Outcome::Dirty);
    assert_eq!(rig.on(Event::Flush), [Move::Flushed { flush: 1 }]);
}

#[test]
fn an_update_hastens_the_flush_write_it_waits_for() {
    let mut rig = with_slots(40, 0, PolicyKind::Planned);
    for expert in 0..40 {
        rig.pass(w(expert), Access::Create, expert as u64, Outcome::Dirty);
    }
    let moves = rig.on(Event::Flush);
    assert_eq!(moves.len(), FLUSH_DEPTH as usize, "the disk is not drowned");
    assert_eq!(moves[0], write(w(0), slot(0), 1, false), "what is needed first goes first");
    let (ticket, moves) = rig.ask(&[(w(39), Access::Update, 9)]);
    assert_eq!(moves, [write(w(39), slot(39), 1, true)]);
    let granted = grant(ticket, &[(w(39), slot(39))]);
    assert!(rig.on(Event::Written { block: w(39) }).contains(&granted));
    let mut ended = Vec::new();
    for expert in 0..39 {
        ended = rig.on(Event::Written { block: w(expert) });
    }
    assert_eq!(ended, [Move::Flushed { flush: 1 }]);
}

#[test]
fn slots_go_to_the_older_ticket() {
    let mut rig = with_slots(2, 1, PolicyKind::Lru);
    let (holder, _) = rig.ask(&[(w(0), Access::Create, 9)]);
    let (second, _) = rig.ask(&[(w(1), Access::Create, 9)]);
    // The older needs both slots, so the younger must not take the first that is free.
    let (big, moves) = rig.ask(&[(w(2), Access::Create, 9), (w(3), Access::Create, 9)]);
    assert_eq!(moves, []);
    let (small, moves) = rig.ask(&[(w(4), Access::Create, 9)]);
    assert_eq!(moves, []);
    // One that needs no weights passes.
    let (other, moves) = rig.ask(&[(g(0), Access::Create, 9)]);
    assert!(matches!(moves[..], [Move::Grant { ticket, .. }] if ticket == other));
    assert_eq!(rig.release(holder, &[]), []);
    let moves = rig.release(second, &[]);
    assert!(matches!(moves[..], [Move::Grant { ticket, .. }] if ticket == big), "{moves:?}");
    let moves = rig.release(big, &[]);
    assert!(matches!(moves[..], [Move::Grant { ticket, .. }] if ticket == small), "{moves:?}");
}

#[test]
fn a_more_urgent_ticket_takes_what_a_waiting_one_had_gathered() {
    let mut rig = with_slots(2, 0, PolicyKind::Lru);
    let (holder, _) = rig.ask(&[(w(0), Access::Create, 9)]);
    let late = [(w(1), Access::Create, 9), (w(2), Access::Create, 9)];
    assert_eq!(rig.ask_as(100, 50, &late), []);
    let urgent = [(w(3), Access::Create, 9)];
    let moves = rig.ask_as(101, 0, &urgent);
    assert_eq!(moves, [grant(101, &[(w(3), slot(1))])]);
    rig.release(holder, &[]);
    let moves = rig.release(101, &[]);
    assert!(matches!(moves[..], [Move::Grant { ticket: 100, .. }]), "{moves:?}");
}

#[test]
fn a_prefetch_evicts_only_what_is_needed_later() {
    let mut rig = with_slots(2, 0, PolicyKind::Planned);
    rig.pass(w(0), Access::Read, 10, Outcome::Clean);
    rig.pass(w(1), Access::Read, 20, Outcome::Clean);
    assert_eq!(rig.on(Event::Prefetch { block: w(2), use_at: 20 }), []);
    let moves = rig.on(Event::Prefetch { block: w(2), use_at: 15 });
    assert_eq!(moves, [Move::Load { block: w(2), slot: slot(1), haste: Haste::Foreseen }]);
    // A ticket that needs it before it is there makes it urgent.
    let (ticket, moves) = rig.ask(&[(w(2), Access::Read, 99)]);
    assert_eq!(moves, [Move::Promote { block: w(2) }]);
    let granted = grant(ticket, &[(w(2), slot(1))]);
    assert_eq!(rig.on(Event::Loaded { block: w(2) }), [granted]);
    let stats = rig.hierarchy.stats().part(Part::Weights);
    assert_eq!((stats.prefetches, stats.late, stats.wasted), (1, 1, 0));
}

#[test]
fn a_plan_withdraws_a_wrong_guess() {
    let mut rig = with_slots(1, 0, PolicyKind::Planned);
    let (holder, _) = rig.ask(&[(w(0), Access::Create, 10)]);
    assert_eq!(rig.on(Event::Prefetch { block: w(1), use_at: 5 }), []);
    rig.on(Event::Plan { block: w(1), next_use: 50 });
    assert_eq!(rig.release(holder, &[]), []);
    // One that is in already leaves in the order of its new time.
    let guess = rig.on(Event::Prefetch { block: w(2), use_at: 6 });
    assert_eq!(guess, [Move::Load { block: w(2), slot: slot(0), haste: Haste::Foreseen }]);
    rig.on(Event::Loaded { block: w(2) });
    assert_eq!(rig.on(Event::Prefetch { block: w(3), use_at: 7 }), []);
    let moves = rig.on(Event::Plan { block: w(2), next_use: 60 });
    assert_eq!(moves, [Move::Load { block: w(3), slot: slot(0), haste: Haste::Foreseen }]);
    assert_eq!(rig.hierarchy.stats().part(Part::Weights).wasted, 1);
}

#[test]
fn a_failed_load_ends_the_tickets_that_wait_for_it() {
    let mut rig = with_slots(2, 0, PolicyKind::Planned);
    let (first, _) = rig.ask(&[(w(0), Access::Read, 9), (w(1), Access::Read, 9)]);
    let (second, _) = rig.ask(&[(w(0), Access::Read, 9)]);
    rig.on(Event::Loaded { block: w(1) });
    let tickets = vec![first, second];
    let moves = rig.on(Event::Failed { block: w(0) });
    assert_eq!(moves, [Move::Fail { block: w(0), cause: Cause::Load, tickets }]);
    // They hold nothing any more.
    let (third, moves) = rig.ask(&[(w(1), Access::Update, 9), (w(2), Access::Create, 9)]);
    assert!(matches!(moves[..], [Move::Grant { ticket, .. }] if ticket == third), "{moves:?}");
}

#[test]
fn a_failed_write_loses_nothing() {
    let mut rig = with_slots(1, 0, PolicyKind::Planned);
    rig.pass(w(0), Access::Create, 5, Outcome::Dirty);
    let (ticket, _) = rig.ask(&[(w(1), Access::Read, 9)]);
    let tickets = vec![ticket];
    let moves = rig.on(Event::Failed { block: w(0) });
    assert_eq!(moves, [Move::Fail { block: w(0), cause: Cause::Write, tickets }]);
    assert!(rig.hierarchy.is_dirty(w(0)) && rig.hierarchy.is_resident(w(0)));
    // The next who needs the slot, and the next flush, try again.
    let (_, moves) = rig.ask(&[(w(1), Access::Read, 9)]);
    assert_eq!(moves, [write(w(0), slot(0), 1, true)]);
    assert_eq!(rig.on(Event::Flush), []);
    let moves = rig.on(Event::Failed { block: w(0) });
    assert!(moves.contains(&Move::FlushFailed { flush: 1, block: w(0) }), "{moves:?}");
    assert_eq!(rig.on(Event::Flush), [write(w(0), slot(0), 1, false)]);
    assert_eq!(rig.on(Event::Written { block: w(0) }), [Move::Flushed { flush: 2 }]);
}

#[test]
fn a_consumed_gradient_is_dropped_unwritten() {
    let mut rig = with_slots(1, 1, PolicyKind::Planned);
    rig.pass(g(0), Access::Create, 5, Outcome::Dirty);
    rig.pass(g(0), Access::Read, 5, Outcome::Discard);
    let (ticket, moves) = rig.ask(&[(g(1), Access::Create, 9)]);
    assert!(matches!(moves[..], [Move::Grant { .. }]), "no write: {moves:?}");
    // One that was spilled gives its disk slot back.
    rig.release(ticket, &[(g(1), Outcome::Dirty)]);
    rig.ask(&[(g(0), Access::Create, 9)]);
    rig.on(Event::Written { block: g(1) });
    rig.release(ticket + 1, &[(g(0), Outcome::Discard)]);
    rig.ask(&[(g(1), Access::Update, 9)]);
    rig.on(Event::Loaded { block: g(1) });
    let moves = rig.release(ticket + 2, &[(g(1), Outcome::Discard)]);
    assert_eq!(moves, [Move::Drop { block: g(1) }]);
    let (reader, moves) = rig.ask(&[(g(1), Access::Read, 9)]);
    let tickets = vec![reader];
    assert_eq!(moves, [Move::Fail { block: g(1), cause: Cause::Absent, tickets }]);
}

#[test]
fn a_durable_block_with_changes_cannot_be_discarded() {
    let mut rig = with_slots(1, 0, PolicyKind::Planned);
    rig.pass(w(0), Access::Create, 5, Outcome::Dirty);
    rig.pass(w(0), Access::Update, 5, Outcome::Discard);
    assert!(rig.hierarchy.is_dirty(w(0)));
}

#[test]
fn what_cannot_happen_is_refused_and_changes_nothing() {
    let mut rig = with_slots(1, 0, PolicyKind::Planned);
    let (ticket, _) = rig.ask(&[(w(0), Access::Read, 9)]);
    let before = rig.hierarchy.snapshot();
    let want = |block| Want { block, access: Access::Read, next_use: 0 };
    let refused = [
        Event::Acquire { ticket, priority: 0, wants: vec![want(w(0))] },
        Event::Acquire { ticket: 9, priority: 0, wants: vec![want(w(0)), want(w(1))] },
        Event::Acquire { ticket: 9, priority: 0, wants: vec![want(BlockId::state(0, 0))] },
        Event::Release { ticket, outcomes: vec![] },
        Event::Cancel { ticket: 77 },
        Event::Loaded { block: w(5) },
        Event::Written { block: w(0) },
        Event::Failed { block: w(5) },
        Event::Prefetch { block: BlockId::state(0, 0), use_at: 0 },
    ];
    for event in refused {
        let mut moves = Vec::new();
        assert!(rig.hierarchy.on(event.clone(), &mut moves).is_err(), "{event:?}");
        assert_eq!(moves, []);
    }
    let after = Snapshot { blocks_known: before.blocks_known, ..rig.hierarchy.snapshot() };
    assert_eq!(before, after);
    rig.on(Event::Loaded { block: w(0) });
    let outcomes = vec![(w(3), Outcome::Clean)];
    assert!(rig.hierarchy.on(Event::Release { ticket, outcomes }, &mut Vec::new()).is_err());
}

/// The pattern of training: all blocks in a cycle, some way ahead announced by prefetches.
#[test]
fn a_sweep_keeps_a_fixed_part_and_streams_the_rest() {
    let (blocks, slots, lookahead, sweeps) = (64u64, 24, 4, 6);
    for (kind, most) in [(PolicyKind::Planned, 64 - 24 + 1 + lookahead), (PolicyKind::Lru, 64)] {
        let mut rig = with_slots(slots, 0, kind);
        let mut loads = Vec::new();
        for at in 0..blocks * sweeps {
            let name = |at: u64| w((at % blocks) as usize);
            let mut moves = Vec::new();
            for ahead in 1..=lookahead {
                moves.extend(
                    rig.on(Event::Prefetch { block: name(at + ahead), use_at: at + ahead }),
                );
            }
            let (ticket, more) = rig.ask(&[(name(at), Access::Read, at + blocks)]);
            moves.extend(more);
            while let Some(step) = moves.pop() {
                if let Move::Load { block, .. } = step {
                    loads.push(at);
                    moves.extend(rig.on(Event::Loaded { block }));
                }
            }
            rig.release(ticket, &[]);
        }
        let last = loads.iter().filter(|at| **at >= blocks * (sweeps - 1)).count() as u64;
        assert!(last <= most, "{kind}: {last} loads in a sweep");
        assert!(kind == PolicyKind::Planned || last == blocks, "{kind}: {last}");
    }
}

#[test]
fn the_recorded_trace_is_what_was_asked() {
    use crate::storage::replay::{Record, Trace};
    let mut rig = with_slots(2, 0, PolicyKind::Planned);
    rig.hierarchy.record();
    rig.pass(w(0), Access::Create, 5, Outcome::Dirty);
    rig.on(Event::Flush);
    rig.pass(w(1), Access::Read, 7, Outcome::Clean);
    let access =
        |block, access, ticket, next_use| Record::Access { block, access, ticket, next_use };
    let expected = [
        access(w(0), Access::Create, 1, 5),
        Record::Dirty { block: w(0) },
        Record::Flush,
        access(w(1), Access::Read, 2, 7),
    ];
    assert_eq!(Trace::parse(&rig.hierarchy.end_trace()).unwrap().records, expected);
    // Nothing is kept for a trace that ended.
    rig.pass(w(1), Access::Read, 9, Outcome::Clean);
    assert!(rig.hierarchy.end_trace().is_empty());
}

#[test]
fn no_more_speculative_loads_are_under_way_than_allowed() {
    let mut rig = with_slots(8, 0, PolicyKind::Planned);
    rig.hierarchy.limit_speculation(2);
    let mut loads = Vec::new();
    let take = |moves: Vec<Move>, loads: &mut Vec<BlockId>| {
        loads.extend(moves.into_iter().filter_map(|step| match step {
            Move::Load { block, haste: Haste::Foreseen, .. } => Some(block),
            _ => None,
        }));
    };
    for expert in 0..5 {
        take(rig.on(Event::Prefetch { block: w(expert), use_at: expert as u64 }), &mut loads);
    }
    assert_eq!(loads, [w(0), w(1)]);
    take(rig.on(Event::Loaded { block: w(0) }), &mut loads);
    assert_eq!(loads, [w(0), w(1), w(2)]);
    // One that is waited for no longer counts, and a demand is never held back.
    let (_, moves) = rig.ask(&[(w(1), Access::Read, 9)]);
    assert!(moves.contains(&Move::Promote { block: w(1) }), "{moves:?}");
    take(moves, &mut loads);
    assert_eq!(loads, [w(0), w(1), w(2), w(3)]);
    let (_, moves) = rig.ask(&[(w(6), Access::Read, 9)]);
    assert!(
        moves
            .iter()
            .any(|m| matches!(m, Move::Load { block, haste: Haste::Asked, .. } if *block == w(6)))
    );
    take(rig.on(Event::Failed { block: w(2) }), &mut loads);
    assert_eq!(loads.last(), Some(&w(4)));
}
