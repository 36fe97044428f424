//! Handing out slots: to queued tickets in their order, then to prefetches.

use super::message::{Access, Cause, Haste, Move};
use super::table::{Content, Key, Standing};
use super::{Hierarchy, PARTS, PartMask, Phase, bit};
use crate::base::Part;
use std::ops::Bound;

/// For whom a slot is wanted.
#[derive(Debug, Clone, Copy)]
enum Claim {
    /// A ticket's, for a block whose next use after this one is expected at this time.
    Ticket(Key, u64),
    /// A prefetch for this time.
    Speculative(u64),
}

enum Room {
    Slot(u32),
    /// One is being written and will be free.
    Coming,
    Nothing,
}

/// What the walk over the queue has found so far.
#[derive(Debug, Default)]
struct Walk {
    /// Slots that older tickets lack but that are being written free for them.
    owed: [u32; PARTS],
    /// Parts in which an older ticket lacks a slot that nothing promises.
    starved: PartMask,
}

impl Hierarchy {
    /// Gives slots to whom they are due. To be called after anything that may free one.
    pub(super) fn reserve_queued(&mut self, moves: &mut Vec<Move>) {
        let mut walk = Walk::default();
        let mut after = Bound::Unbounded;
        while !self.all_starved(walk.starved) {
            let mut younger = self.queue.range((after, Bound::Unbounded));
            // Passing a starving ticket must not cost it a slot.
            let next = younger.find(|(_, parts)| **parts & walk.starved == 0);
            let Some(key) = next.map(|(key, _)| *key) else {
                break;
            };
            after = Bound::Excluded(key);
            self.reserve(key, &mut walk, moves);
        }
        let busy = self.queued_parts();
        for part in Part::ALL {
            let waiting = self.class(part).is_some_and(|class| !class.prefetches.is_empty());
            if waiting && busy & bit(part) == 0 {
                self.serve_prefetches(part, moves);
            }
        }
    }

    /// Whether every queued ticket touches a starved part, so that the walk may end.
    fn all_starved(&self, starved: PartMask) -> bool {
        self.queue.is_empty()
            || starved != 0
                && (self.queued_masks.iter().enumerate())
                    .all(|(mask, count)| *count == 0 || mask as PartMask & starved != 0)
    }

    /// The parts that queued tickets want.
    pub(super) fn queued_parts(&self) -> PartMask {
        if self.queue.is_empty() {
            return 0;
        }
        let counts = self.queued_masks.iter().enumerate();
        counts.filter(|(_, count)| **count > 0).fold(0, |parts, (mask, _)| parts | mask as PartMask)
    }

    /// Gives the queued ticket what slots it lacks; pins all its blocks once they all have one.
    fn reserve(&mut self, key: Key, walk: &mut Walk, moves: &mut Vec<Move>) {
        let Some(ticket) = self.tickets.get_mut(&key.1) else {
            return;
        };
        let wants = std::mem::take(&mut ticket.wants);
        let mut lacking = false;
        let mut absent = None;
        for (index, access) in wants.iter().copied() {
            let entry = &self.table[index];
            let (block, part) = (entry.block, entry.part());
            let needs_content = access != Access::Create;
            let unfilled = needs_content && entry.is_unfilled_for(key);
            if entry.has_slot() && !unfilled {
                continue;
            }
            if needs_content && !entry.stored {
                let older = entry.wanters.iter().filter(|wanter| **wanter < key);
                if older.into_iter().any(|(_, ticket)| self.will_create(*ticket, index)) {
                    lacking = true;
                    continue;
                }
                absent = Some(block);
                break;
            }
            if unfilled {
                self.start_load(index, Haste::Asked, moves);
                self.refile(index);
                continue;
            }
            let claim = Claim::Ticket(key, self.table[index].next_use);
            match self.make_room(part, claim, walk.owed[part as usize], moves) {
                Room::Slot(slot) => self.occupy(index, slot, access, moves),
                Room::Coming => {
                    walk.owed[part as usize] += 1;
                    lacking = true;
                }
                Room::Nothing => {
                    walk.starved |= bit(part);
                    lacking = true;
                }
            }
        }
        let complete = absent.is_none() && !lacking && self.may_pin(&wants, walk);
        if let Some(ticket) = self.tickets.get_mut(&key.1) {
            ticket.wants = wants;
        }
        if let Some(block) = absent {
            moves.push(Move::Fail { block, cause: Cause::Absent, tickets: vec![key.1] });
            self.drop_ticket(key.1, moves);
        } else if complete {
            self.pin(key, moves);
        }
    }

    /// Whether older tickets get their slots even if blocks among `wants` that are leaving stay.
    fn may_pin(&self, wants: &[(u32, Access)], walk: &Walk) -> bool {
        let mut staying = [0; PARTS];
        for (index, _) in wants {
            let entry = &self.table[*index];
            if entry.standing == Standing::Leaving {
                staying[entry.part() as usize] += 1;
            }
        }
        let classes = self.classes.iter().zip(staying).zip(walk.owed);
        classes.into_iter().all(|((class, staying), owed)| {
            staying == 0 || class.as_ref().is_some_and(|class| class.leaving >= owed + staying)
        })
    }

    /// All blocks of the ticket have slots: none of them leaves before the ticket ends.
    fn pin(&mut self, key: Key, moves: &mut Vec<Move>) {
        self.unqueue(key);
        let Some(ticket) = self.tickets.get_mut(&key.1) else {
            return;
        };
        ticket.phase = Phase::Reserved;
        let wants = std::mem::take(&mut ticket.wants);
        for (index, access) in wants.iter().copied() {
            let entry = &mut self.table[index];
            entry.wanters.retain(|other| *other != key);
            let place = entry.reserved.partition_point(|(other, _)| *other < key);
            entry.reserved.insert(place, (key, access));
            // A change has to wait for the write that a flush is owed: that write comes first.
            let overtakes = access.is_exclusive() && entry.flush_at.is_some();
            self.refile(index);
            if overtakes {
                self.start_write(index, true, moves);
            }
        }
        if let Some(ticket) = self.tickets.get_mut(&key.1) {
            ticket.wants = wants;
        }
        self.try_grant(key.1, moves);
    }

    /// `index` moves into `slot`.
    fn occupy(&mut self, index: u32, slot: u32, access: Access, moves: &mut Vec<Move>) {
        if let Some(class) = self.class_of(index) {
            class.settle_in(slot, index);
        }
        self.table[index].slot = slot;
        if access == Access::Create {
            self.table[index].content = Content::Blank;
        } else {
            self.start_load(index, Haste::Asked, moves);
        }
        self.refile(index);
    }

    /// A slot of `part`, by eviction if need be. `owed` slots that are becoming free are
    /// somebody else's.
    fn make_room(&mut self, part: Part, claim: Claim, owed: u32, moves: &mut Vec<Move>) -> Room {
        let Some(class) = self.class(part) else {
            return Room::Nothing;
        };
        if let Some(slot) = class.take_free() {
            return Room::Slot(slot);
        }
        if class.leaving > owed {
            return Room::Coming;
        }
        let Some(victim) = self.choose_victim(part, claim) else {
            return Room::Nothing;
        };
        if !self.table[victim].dirty {
            return Room::Slot(self.evict(victim));
        }
        self.file(victim, Standing::Leaving);
        if !self.table[victim].writing {
            self.start_write(victim, matches!(claim, Claim::Ticket(..)), moves);
        }
        Room::Coming
    }

    fn choose_victim(&mut self, part: Part, claim: Claim) -> Option<u32> {
        let Self { table, classes, .. } = self;
        let class = classes[part as usize].as_mut()?;
        if class.offered > 0 {
            let (named, later_than) = match claim {
                Claim::Ticket(_, next_use) => (class.policy.victim_for(next_use), None),
                Claim::Speculative(use_at) => (class.policy.victim(Some(use_at)), Some(use_at)),
            };
            let named = named.and_then(|block| table.find(block));
            // A policy of somebody's own may name what it was not offered.
            let valid = named.filter(|index| {
                let entry = &table[*index];
                entry.part() == part
                    && entry.standing == Standing::Offered
                    && later_than.is_none_or(|limit| entry.next_use > limit)
            });
            if valid.is_some() {
                return valid;
            }
        }
        let Claim::Ticket(key, _) = claim else {
            return None;
        };
        if class.offered > 0 {
            // The policy owes a victim and named none: any will do.
            return class.tenants().find(|index| table[*index].standing == Standing::Offered);
        }
        let youngest = class.wanted.last().filter(|(wanter, _)| *wanter > key);
        youngest.map(|(_, index)| *index).or_else(|| class.stuck.first().copied())
    }

    /// Takes the slot of a clean block. The caller passes it on or gives it back.
    pub(super) fn evict(&mut self, index: u32) -> u32 {
        let entry = &self.table[index];
        debug_assert!(!entry.dirty && !entry.writing && !entry.is_pinned(), "law 2");
        let was_unused = self.take_speculative(index);
        if let Some(class) = self.class_of(index) {
            class.stats.evictions += 1;
            class.stats.wasted += u64::from(was_unused);
        }
        self.vacate(index)
    }

    /// The block loses its slot, which the caller passes on or gives back.
    pub(super) fn vacate(&mut self, index: u32) -> u32 {
        self.file(index, Standing::Held);
        let entry = &mut self.table[index];
        entry.content = Content::Absent;
        let (block, slot) = (entry.block, entry.slot);
        if let Some(class) = self.class(block.part) {
            class.policy.evicted(block);
        }
        slot
    }

    /// Starts speculative loads, those for the nearest use first, as far as slots can be had.
    fn serve_prefetches(&mut self, part: Part, moves: &mut Vec<Move>) {
        let mut owed = 0;
        let mut after = Bound::Unbounded;
        while self.speculating < self.most_speculating {
            let Some(class) = self.class(part) else {
                return;
            };
            let Some((use_at, index)) = class.prefetches.range((after, Bound::Unbounded)).next()
            else {
                return;
            };
            let (use_at, index) = (*use_at, *index);
            if class.free_slots() == 0 && class.unused.len() as u32 + owed >= class.window {
                return;
            }
            after = Bound::Excluded((use_at, index));
            match self.make_room(part, Claim::Speculative(use_at), owed, moves) {
                Room::Slot(slot) => {
                    self.drop_prefetch(index);
                    let entry = &mut self.table[index];
                    entry.slot = slot;
                    entry.next_use = use_at;
                    entry.speculative = Some(use_at);
                    if let Some(class) = self.class(part) {
                        class.settle_in(slot, index);
                        class.stats.prefetches += 1;
                        class.unused.insert((use_at, index));
                    }
                    self.speculating += 1;
                    self.start_load(index, self.ahead, moves);
                }
                Room::Coming => owed += 1,
                // Those behind are needed later still, so even fewer blocks may leave for them.
                Room::Nothing => return,
            }
        }
    }
}
