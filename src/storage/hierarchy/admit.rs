//! Taking in what the planner says: acquires, cancellations, prefetches, plans.

use super::message::{Access, Haste, Move, Want};
use super::table::{Content, Key, Standing};
use super::{Hierarchy, PARTS, Phase, Ticket, bit};
use crate::base::units::Bytes;
use crate::base::{BlockId, Error, ErrorKind, Part, Result};

impl Hierarchy {
    pub(super) fn acquire(
        &mut self,
        ticket: u64,
        priority: u64,
        wants: &[Want],
        moves: &mut Vec<Move>,
    ) -> Result<()> {
        if self.tickets.contains_key(&ticket) {
            return Err(Error::bug("a ticket asks twice").with("ticket", ticket));
        }
        let joined = self.join(wants)?;
        let key: Key = (priority, ticket);
        let mut parts = 0;
        // The latest hour that was foreseen for a block of each part.
        let mut hours = [0; PARTS];
        for (index, access, next_use) in &joined {
            parts |= bit(self.table[*index].part());
            if let Some(recorder) = &mut self.recorder {
                recorder.access(ticket, self.table[*index].block, *access, *next_use);
            }
            let (part, due) = (self.table[*index].part(), self.table[*index].next_use);
            if due < u64::MAX {
                let hour = &mut hours[part as usize];
                *hour = due.max(*hour);
            }
            let entry = &mut self.table[*index];
            entry.next_use = *next_use;
            entry.wanters.push(key);
            self.drop_prefetch(*index);
            // Out of the policy's order first: a rank that changes there costs more.
            self.refile(*index);
            self.note_use(*index, *access, moves);
        }
        // Only now: what this very ticket uses was no wrong guess.
        for part in Part::ALL {
            self.give_up_unused(part, hours[part as usize], moves);
        }
        let wants = joined.into_iter().map(|(index, access, _)| (index, access)).collect();
        self.tickets.insert(ticket, Ticket { key, phase: Phase::Queued, wants });
        self.queue.insert(key, parts);
        self.queued_masks[usize::from(parts)] += 1;
        Ok(())
    }

    /// The wants as entries, each block once, checked to fit all at once.
    fn join(&mut self, wants: &[Want]) -> Result<Vec<(u32, Access, u64)>> {
        self.acquires += 1;
        let mark = self.acquires;
        let mut counts = [0; PARTS];
        let mut joined: Vec<(u32, Access, u64)> = Vec::with_capacity(wants.len());
        for Want { block, access, next_use } in wants.iter().copied() {
            let Some(class) = &self.classes[block.part as usize] else {
                return Err(Error::bug("a part has no slots").with("block", block));
            };
            let index = self.table.intern(block);
            if std::mem::replace(&mut self.table[index].mark, mark) == mark {
                if let Some(want) = joined.iter_mut().find(|(other, ..)| *other == index) {
                    *want = (index, want.1.max(access), want.2.min(next_use));
                }
                continue;
            }
            let count = &mut counts[block.part as usize];
            *count += 1;
            if *count > class.spec.slots {
                let text = "one acquire wants more blocks of a part than there are slots: \
                            give this part a larger budget";
                return Err(Error::new(ErrorKind::Budget, text)
                    .with("block", block)
                    .with("slots", class.spec.slots)
                    .with("slot", Bytes(class.spec.slot_bytes)));
            }
            joined.push((index, access, next_use));
        }
        Ok(joined)
    }

    /// Counts the use, tells the policy, and hastens a speculative load.
    pub(super) fn note_use(&mut self, index: u32, access: Access, moves: &mut Vec<Move>) {
        let was_speculative = self.take_speculative(index);
        let entry = &self.table[index];
        let (block, content) = (entry.block, entry.content);
        if was_speculative && content == Content::Loading {
            moves.push(Move::Promote { block });
        }
        let Some(class) = self.class(block.part) else {
            return;
        };
        let counter = match content {
            _ if access == Access::Create => &mut class.stats.creates,
            Content::Resident => &mut class.stats.hits,
            Content::Loading | Content::Blank => &mut class.stats.late,
            Content::Absent => &mut class.stats.misses,
        };
        *counter += 1;
        class.policy.accessed(block);
    }

    /// Whether a prefetch brought the block in and nobody had asked for it; not any more.
    pub(super) fn take_speculative(&mut self, index: u32) -> bool {
        let entry = &mut self.table[index];
        let Some(use_at) = entry.speculative.take() else {
            return false;
        };
        self.speculating -= u32::from(entry.content == Content::Loading);
        if let Some(class) = self.class_of(index) {
            class.unused.remove(&(use_at, index));
        }
        true
    }

    /// A use that was due at `now` has come: what a prefetch brought in for an earlier time was
    /// guessed wrong, and leaves first.
    pub(super) fn give_up_unused(&mut self, part: Part, now: u64, moves: &mut Vec<Move>) {
        while let Some(class) = self.class(part)
            && let Some((use_at, index)) = class.unused.first().copied()
            && use_at < now
        {
            class.stats.wasted += 1;
            self.take_speculative(index);
            let entry = &self.table[index];
            if self.ahead == Haste::Guessed {
                moves.push(Move::GiveUp { block: entry.block });
            }
            if entry.next_use < now {
                self.plan(entry.block, u64::MAX);
            }
        }
    }

    pub(super) fn cancel(&mut self, ticket: u64, moves: &mut Vec<Move>) -> Result<()> {
        match self.tickets.get(&ticket) {
            Some(known) if known.phase != Phase::Granted => {
                self.drop_ticket(ticket, moves);
                Ok(())
            }
            _ => {
                let text = "only a ticket that waits for its grant can be cancelled";
                Err(Error::bug(text).with("ticket", ticket))
            }
        }
    }

    /// Takes away all that an ungranted ticket holds and forgets it.
    pub(super) fn drop_ticket(&mut self, ticket: u64, moves: &mut Vec<Move>) {
        let Some(dropped) = self.tickets.remove(&ticket) else {
            return;
        };
        if dropped.phase == Phase::Queued {
            self.unqueue(dropped.key);
        }
        for (index, _) in &dropped.wants {
            let entry = &mut self.table[*index];
            entry.wanters.retain(|key| *key != dropped.key);
            entry.reserved.retain(|(key, _)| *key != dropped.key);
            self.void_if_orphaned(*index, moves);
            self.refile(*index);
        }
        for (index, _) in &dropped.wants {
            self.grant_waiters(*index, moves);
        }
    }

    pub(super) fn unqueue(&mut self, key: Key) {
        if let Some(parts) = self.queue.remove(&key) {
            self.queued_masks[usize::from(parts)] -= 1;
        }
    }

    pub(super) fn prefetch(&mut self, block: BlockId, use_at: u64) -> Result<()> {
        if self.class(block.part).is_none() {
            return Err(Error::bug("a part has no slots").with("block", block));
        }
        let index = self.table.intern(block);
        let entry = &self.table[index];
        if entry.is_pinned() || !entry.wanters.is_empty() {
            return Ok(());
        }
        if entry.has_slot() {
            self.plan(block, use_at);
            return Ok(());
        }
        if !entry.stored {
            return Ok(());
        }
        self.drop_prefetch(index);
        self.table[index].prefetch = Some(use_at);
        if let Some(class) = self.class(block.part) {
            class.prefetches.insert((use_at, index));
        }
        Ok(())
    }

    pub(super) fn drop_prefetch(&mut self, index: u32) {
        let waiting = self.table[index].prefetch.take();
        if let (Some(use_at), Some(class)) = (waiting, self.class_of(index)) {
            class.prefetches.remove(&(use_at, index));
        }
    }

    pub(super) fn plan(&mut self, block: BlockId, next_use: u64) {
        let index = self.table.intern(block);
        self.drop_prefetch(index);
        self.table[index].next_use = next_use;
        if self.table[index].standing == Standing::Offered {
            self.file(index, Standing::Held);
            self.file(index, Standing::Offered);
        }
    }
}
