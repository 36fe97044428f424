//! Leases on what is resident, without a ticket: for an executor that runs on while it finds what
//! it needs.
//!
//! Such a lease never waits and holds nothing that it waits for, so it cannot take part in a
//! deadlock (law 8): the holder computes and lets go, whatever it does about what was missing.

use super::Hierarchy;
use super::SlotId;
use super::message::{Access, Haste, Move, Outcome};
use super::table::{Key, Standing};
use crate::base::{BlockId, Error, Result};

/// Behind every ticket.
const LAST: Key = (u64::MAX, u64::MAX);

impl Hierarchy {
    /// Pins `block` for reading if it is resident and nobody older waits to change it or for its
    /// slot. Counts as a use like an acquire; a block that cannot be had counts when its ticket
    /// asks. `ticket` names the use in a recorded trace.
    pub fn lease_resident(&mut self, ticket: u64, block: BlockId, next_use: u64) -> Option<SlotId> {
        let index = self.table.find(block)?;
        let entry = &self.table[index];
        if !entry.is_grantable(LAST, Access::Read) || entry.standing == Standing::Leaving {
            return None;
        }
        if let Some(recorder) = &mut self.recorder {
            recorder.access(ticket, block, Access::Read, next_use);
        }
        let entry = &mut self.table[index];
        entry.next_use = next_use;
        entry.readers += 1;
        let slot = entry.slot;
        self.drop_prefetch(index);
        self.refile(index);
        // A resident block has no load to hasten, so no move comes of it.
        self.note_use(index, Access::Read, &mut Vec::new());
        self.class(block.part).map(|class| class.slot_id(slot))
    }

    /// Ends a lease of [`Hierarchy::lease_resident`]: the slot may serve another block from now on.
    ///
    /// # Errors
    /// `Bug` if no lease for reading is held on the block.
    pub fn end_resident(&mut self, block: BlockId, moves: &mut Vec<Move>) -> Result<()> {
        let index = self.entry_of(block, "the end of a lease")?;
        if self.table[index].readers == 0 {
            return Err(Error::bug("a lease that nobody holds is ended").with("block", block));
        }
        self.end_lease(index, Access::Read, Outcome::Clean);
        self.drop_if_doomed(index, moves);
        self.refile(index);
        self.grant_waiters(index, moves);
        self.reserve_queued(moves);
        self.write_flushed(moves);
        Ok(())
    }

    /// Reads `block` if there is a free slot for it, and tells the policy of `uses` uses that it
    /// had before.
    ///
    /// # Errors
    /// `Bug` for a block of a part without slots.
    pub fn recall(&mut self, block: BlockId, uses: u32, moves: &mut Vec<Move>) -> Result<()> {
        let index = self.table.intern(block);
        let entry = &self.table[index];
        let wanted = entry.has_slot() || !entry.wanters.is_empty() || !entry.stored;
        let Some(class) = self.class(block.part) else {
            return Err(Error::bug("a part has no slots").with("block", block));
        };
        (0..uses).for_each(|_| class.policy.accessed(block));
        let Some(slot) = (!wanted).then(|| class.take_free()).flatten() else { return Ok(()) };
        class.settle_in(slot, index);
        let entry = &mut self.table[index];
        entry.slot = slot;
        // Foreseen for no hour: nothing is spared for it, and none of the room that prefetches may
        // take is taken by it.
        entry.next_use = u64::MAX;
        entry.speculative = Some(u64::MAX);
        self.speculating += 1;
        self.start_load(index, Haste::Foreseen, moves);
        Ok(())
    }

    /// Whether `block` has a slot: resident, or on its way in.
    pub fn is_on_its_way(&self, block: BlockId) -> bool {
        self.table.find(block).is_some_and(|index| self.table[index].has_slot())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Part;
    use crate::storage::hierarchy::{Event, SlotClass, Want};
    use crate::storage::policy::PolicyConfig;

    #[test]
    fn a_resident_block_is_leased_without_a_ticket_and_stays_until_the_end() {
        let class = SlotClass { part: Part::Weights, slot_bytes: 4096, slots: 1 };
        let mut hierarchy = Hierarchy::new(&[class], &PolicyConfig::default()).unwrap();
        let (a, b) = (BlockId::weights(0, 0), BlockId::weights(0, 1));
        let mut moves = Vec::new();
        assert_eq!(hierarchy.lease_resident(9, a, 0), None);
        hierarchy.on(Event::Prefetch { block: a, use_at: 5 }, &mut moves).unwrap();
        assert!(hierarchy.is_on_its_way(a) && !hierarchy.is_on_its_way(b));
        assert_eq!(hierarchy.lease_resident(9, a, 0), None, "it is not there yet");
        hierarchy.on(Event::Loaded { block: a }, &mut moves).unwrap();
        moves.clear();
        let slot = hierarchy.lease_resident(9, a, u64::MAX).unwrap();
        assert_eq!(hierarchy.lease_resident(10, a, u64::MAX), Some(slot), "readers share");
        let want = Want { block: b, access: Access::Read, next_use: 0 };
        hierarchy
            .on(Event::Acquire { ticket: 1, priority: 0, wants: vec![want] }, &mut moves)
            .unwrap();
        hierarchy.end_resident(a, &mut moves).unwrap();
        assert_eq!(moves, [], "the slot is still leased");
        hierarchy.end_resident(a, &mut moves).unwrap();
        assert_eq!(moves, [Move::Load { block: b, slot, haste: Haste::Asked }]);
        assert!(hierarchy.end_resident(a, &mut moves).is_err());
        assert_eq!(hierarchy.stats().total().hits, 2);
    }

    #[test]
    fn what_is_recalled_fills_free_slots_and_makes_way_for_what_is_used() {
        let class = SlotClass { part: Part::Weights, slot_bytes: 4096, slots: 2 };
        let policy = PolicyConfig::for_decoding();
        let mut hierarchy = Hierarchy::new(&[class], &policy).unwrap();
        let [a, b, c] = [0, 1, 2].map(|expert| BlockId::weights(0, expert));
        let mut moves = Vec::new();
        for (block, uses) in [(a, 1), (b, 4), (c, 1)] {
            hierarchy.recall(block, uses, &mut moves).unwrap();
        }
        assert_eq!(moves.len(), 2, "{moves:?}");
        assert!(!hierarchy.is_on_its_way(c), "nothing is evicted for it");
        moves.clear();
        hierarchy.on(Event::Loaded { block: a }, &mut moves).unwrap();
        let want = |block| Want { block, access: Access::Read, next_use: u64::MAX };
        let ask = |ticket, block| Event::Acquire { ticket, priority: 0, wants: vec![want(block)] };
        hierarchy.on(ask(1, b), &mut moves).unwrap();
        assert_eq!(moves, [Move::Promote { block: b }], "it is waited for now");
        hierarchy.on(Event::Loaded { block: b }, &mut moves).unwrap();
        hierarchy.on(Event::Release { ticket: 1, outcomes: Vec::new() }, &mut moves).unwrap();
        hierarchy.on(ask(2, c), &mut moves).unwrap();
        assert!(hierarchy.is_on_its_way(b) && !hierarchy.is_on_its_way(a), "the cooler one left");
        let stats = hierarchy.stats().total();
        assert_eq!((stats.wasted, stats.late, stats.misses), (1, 1, 1));
    }
}
