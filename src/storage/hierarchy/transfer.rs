//! Loads, writes and flushes: starting them, and what follows when they end or fail.

use super::message::{Access, Cause, Haste, Move};
use super::table::{Content, Standing};
use super::{Hierarchy, bit};
use crate::base::{BlockId, Error, Part, Result};

impl Hierarchy {
    /// Reads the block into the slot it has.
    pub(super) fn start_load(&mut self, index: u32, haste: Haste, moves: &mut Vec<Move>) {
        let entry = &mut self.table[index];
        entry.content = Content::Loading;
        let (block, slot) = (entry.block, entry.slot);
        if let Some(class) = self.class(block.part) {
            class.stats.loads += 1;
            class.stats.bytes_loaded += class.spec.slot_bytes;
            let slot = class.slot_id(slot);
            moves.push(Move::Load { block, slot, haste });
        }
    }

    /// Writes the block's slot to disk.
    pub(super) fn start_write(&mut self, index: u32, urgent: bool, moves: &mut Vec<Move>) {
        let entry = &mut self.table[index];
        entry.writing = true;
        if let Some(at) = entry.flush_at.take() {
            self.flusher.dequeue(at, index);
        }
        let (block, slot, era) = (entry.block, entry.slot, entry.era);
        if let Some(class) = self.class(block.part) {
            class.stats.writes += 1;
            class.stats.bytes_written += class.spec.slot_bytes;
            let slot = class.slot_id(slot);
            moves.push(Move::Write { block, slot, era, urgent });
        }
    }

    pub(super) fn loaded(&mut self, block: BlockId, moves: &mut Vec<Move>) -> Result<()> {
        let index = self.entry_of(block, "loaded")?;
        if self.table[index].content != Content::Loading {
            return Err(Error::bug("a block that was not loading is loaded").with("block", block));
        }
        self.table[index].content = Content::Resident;
        self.speculating -= u32::from(self.table[index].speculative.is_some());
        self.refile(index);
        self.grant_waiters(index, moves);
        Ok(())
    }

    pub(super) fn written(&mut self, block: BlockId, moves: &mut Vec<Move>) -> Result<()> {
        let index = self.entry_of(block, "written")?;
        self.end_write(index, "a block that was not being written is written")?;
        let entry = &mut self.table[index];
        entry.stored = true;
        entry.stuck = false;
        if std::mem::take(&mut entry.redirtied) {
            if entry.due != 0 {
                self.enqueue_flush(index);
            }
        } else {
            entry.dirty = false;
            let due = std::mem::take(&mut entry.due);
            if due != 0 {
                self.flusher.block_written(due);
            }
        }
        if self.table[index].standing == Standing::Leaving {
            self.leave(index);
        }
        self.drop_if_doomed(index, moves);
        self.refile(index);
        self.grant_waiters(index, moves);
        Ok(())
    }

    fn end_write(&mut self, index: u32, refusal: &'static str) -> Result<()> {
        let entry = &mut self.table[index];
        if !std::mem::take(&mut entry.writing) {
            return Err(Error::bug(refusal).with("block", entry.block));
        }
        if std::mem::take(&mut entry.flushing) {
            self.flusher.write_ended();
        }
        Ok(())
    }

    /// A block chosen to leave is clean now: it goes if its slot is still wanted.
    fn leave(&mut self, index: u32) {
        let part = self.table[index].part();
        let waited_for = self.queued_parts() & bit(part) != 0
            || self.class(part).is_some_and(|class| !class.prefetches.is_empty());
        if !waited_for {
            // `refile` offers it again.
            self.file(index, Standing::Held);
            return;
        }
        let slot = self.evict(index);
        if let Some(class) = self.class(part) {
            class.give_back(slot);
        }
    }

    pub(super) fn failed(&mut self, block: BlockId, moves: &mut Vec<Move>) -> Result<()> {
        let index = self.entry_of(block, "failed")?;
        if self.table[index].content == Content::Loading {
            self.load_failed(index, moves);
        } else {
            self.end_write(index, "a block with no load or write under way failed")?;
            self.write_failed(index, moves);
        }
        if let Some(class) = self.class(block.part) {
            class.stats.failures += 1;
        }
        Ok(())
    }

    /// All tickets that wait for the content fail; the slot becomes free.
    fn load_failed(&mut self, index: u32, moves: &mut Vec<Move>) {
        self.take_speculative(index);
        let entry = &mut self.table[index];
        let block = entry.block;
        entry.content = Content::Blank;
        let keys = entry.reserved.iter().map(|(key, _)| *key).chain(entry.wanters.iter().copied());
        let mut tickets: Vec<u64> = keys.map(|(_, ticket)| ticket).collect();
        tickets.retain(|ticket| {
            let wants = self.tickets.get(ticket).map_or(&[][..], |ticket| &ticket.wants);
            !wants.contains(&(index, Access::Create))
        });
        let entry = &mut self.table[index];
        entry.reserved.retain(|((_, ticket), _)| !tickets.contains(ticket));
        entry.wanters.retain(|(_, ticket)| !tickets.contains(ticket));
        moves.push(Move::Fail { block, cause: Cause::Load, tickets: tickets.clone() });
        tickets.into_iter().for_each(|ticket| self.drop_ticket(ticket, moves));
        self.void_if_orphaned(index, moves);
        self.refile(index);
        self.grant_waiters(index, moves);
    }

    /// The block stays, dirty. Who waits longest for a slot of this part fails, so that a disk
    /// that takes no more writes ends the run instead of hanging it.
    fn write_failed(&mut self, index: u32, moves: &mut Vec<Move>) {
        let entry = &mut self.table[index];
        let (block, part) = (entry.block, entry.part());
        entry.stuck = true;
        entry.redirtied = false;
        let due = std::mem::take(&mut entry.due);
        let was_leaving = entry.standing == Standing::Leaving;
        let mut tickets = Vec::new();
        if was_leaving {
            self.file(index, Standing::Held);
            match self.oldest_without_slot(part) {
                Some(ticket) => tickets.push(ticket),
                None => self.give_up_prefetch(part),
            }
        }
        moves.push(Move::Fail { block, cause: Cause::Write, tickets: tickets.clone() });
        if due != 0 {
            let failed = self.flusher.block_failed(due).into_iter();
            moves.extend(failed.map(|flush| Move::FlushFailed { flush, block }));
        }
        tickets.into_iter().for_each(|ticket| self.drop_ticket(ticket, moves));
        self.drop_if_doomed(index, moves);
        self.refile(index);
        self.grant_waiters(index, moves);
    }

    fn oldest_without_slot(&self, part: Part) -> Option<u64> {
        let waiting = self.queue.iter().filter(|(_, parts)| **parts & bit(part) != 0);
        let mut tickets = waiting.map(|((_, ticket), _)| *ticket);
        tickets.find(|ticket| {
            let wants = self.tickets.get(ticket).map_or(&[][..], |ticket| &ticket.wants);
            let mut entries = wants.iter().map(|(index, _)| &self.table[*index]);
            entries.any(|entry| entry.part() == part && !entry.has_slot())
        })
    }

    fn give_up_prefetch(&mut self, part: Part) {
        let first = self.class(part).and_then(|class| class.prefetches.first().copied());
        if let Some((_, index)) = first {
            self.drop_prefetch(index);
        }
    }

    /// All durable blocks that are dirty now are to be written, once each.
    pub(super) fn flush(&mut self) {
        if let Some(recorder) = &mut self.recorder {
            recorder.flush();
        }
        let flush = self.flusher.begin();
        for part in Part::ALL.into_iter().filter(|part| part.is_durable()) {
            let Some(class) = &self.classes[part as usize] else {
                continue;
            };
            let tenants: Vec<u32> = class.tenants().collect();
            for index in tenants {
                let entry = &mut self.table[index];
                // What an earlier flush waits for is in time for this one too: they end in order.
                if !entry.dirty || entry.due != 0 {
                    continue;
                }
                entry.due = flush;
                self.flusher.expect_block();
                let entry = &self.table[index];
                if !entry.writing && !entry.writer {
                    self.enqueue_flush(index);
                }
            }
        }
    }

    pub(super) fn enqueue_flush(&mut self, index: u32) {
        let entry = &mut self.table[index];
        let awaited = entry.reserved.iter().any(|(_, access)| access.is_exclusive());
        let at = if awaited { 0 } else { entry.next_use };
        entry.flush_at = Some(at);
        self.flusher.enqueue(at, index);
    }

    /// Hands out writes for flushes, as many as may be in flight.
    pub(super) fn write_flushed(&mut self, moves: &mut Vec<Move>) {
        while let Some(index) = self.flusher.next() {
            let entry = &mut self.table[index];
            entry.flush_at = None;
            entry.flushing = true;
            self.start_write(index, false, moves);
        }
    }
}
