//! Guesses: blocks that the next use of a part may need, read while the disk would rest.
//!
//! Law: a guess never keeps what is certain waiting for longer than a few small reads, and what its
//! hour has shown to be wrong is read no further.

use super::Hierarchy;
use super::message::{Haste, Move};
use super::table::Content;
use crate::base::{BlockId, Error, Part, Result};

impl Hierarchy {
    /// From now on prefetches are guesses, of which no more than `most` are read at once.
    pub fn guess(&mut self, most: u32) {
        self.limit_speculation(most);
        self.ahead = Haste::Guessed;
    }

    /// A guess was right: if `block` is on its way, it is waited for from now on.
    pub fn hasten(&mut self, block: BlockId, moves: &mut Vec<Move>) {
        let Some(index) = self.table.find(block) else { return };
        if self.table[index].content == Content::Loading && self.take_speculative(index) {
            moves.push(Move::Promote { block });
        }
    }

    /// The hour is `now`, and its uses are known: prefetches for it that nobody asked for are given
    /// up, those that wait for a slot and those under way. Policies learn the hour too.
    pub fn judge(&mut self, now: u64, moves: &mut Vec<Move>) {
        for part in Part::ALL {
            while let Some(class) = self.class(part)
                && let Some((use_at, index)) = class.prefetches.first().copied()
                && use_at <= now
            {
                self.drop_prefetch(index);
            }
            self.give_up_unused(part, now.saturating_add(1), moves);
            if let Some(class) = self.class(part) {
                class.policy.hour(now);
            }
        }
    }

    /// A load was given up: its slot is free, unless somebody has come to wait for the block.
    pub(super) fn given_up(&mut self, block: BlockId, moves: &mut Vec<Move>) -> Result<()> {
        let index = self.entry_of(block, "given up")?;
        if self.table[index].content != Content::Loading {
            let text = "a load that is not under way was given up";
            return Err(Error::bug(text).with("block", block));
        }
        self.take_speculative(index);
        self.table[index].content = Content::Blank;
        self.void_if_orphaned(index, moves);
        self.refile(index);
        // Who makes the content anew waited for the read to end.
        self.grant_waiters(index, moves);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::hierarchy::{Access, Event, SlotClass, SlotId, Want};
    use crate::storage::policy::PolicyConfig;

    struct Rig(Hierarchy);

    impl Rig {
        fn new(slots: u32) -> Self {
            let class = SlotClass { part: Part::Weights, slot_bytes: 4096, slots };
            let mut hierarchy = Hierarchy::new(&[class], &PolicyConfig::for_decoding()).unwrap();
            hierarchy.guess(2);
            Self(hierarchy)
        }

        fn on(&mut self, event: Event) -> Vec<Move> {
            let mut moves = Vec::new();
            self.0.on(event, &mut moves).unwrap();
            moves
        }

        fn prefetch(&mut self, expert: usize, use_at: u64) -> Vec<Move> {
            self.on(Event::Prefetch { block: w(expert), use_at })
        }

        fn ask(&mut self, ticket: u64, expert: usize) -> Vec<Move> {
            let want = Want { block: w(expert), access: Access::Read, next_use: u64::MAX };
            self.on(Event::Acquire { ticket, priority: ticket, wants: vec![want] })
        }

        fn judge(&mut self, now: u64) -> Vec<Move> {
            let mut moves = Vec::new();
            self.0.judge(now, &mut moves);
            moves
        }

        fn waiting(&self) -> u32 {
            self.0.snapshot().classes[0].prefetches_waiting
        }
    }

    fn w(expert: usize) -> BlockId {
        BlockId::weights(0, expert)
    }

    fn slot(index: u32) -> SlotId {
        SlotId { part: Part::Weights, index }
    }

    fn load(expert: usize, index: u32, haste: Haste) -> Move {
        Move::Load { block: w(expert), slot: slot(index), haste }
    }

    #[test]
    fn the_hour_gives_up_what_it_did_not_need() {
        let mut rig = Rig::new(3);
        assert_eq!(rig.prefetch(0, 5), [load(0, 0, Haste::Guessed)]);
        assert_eq!(rig.prefetch(1, 5), [load(1, 1, Haste::Guessed)]);
        assert_eq!(rig.prefetch(2, 5), [], "two at once");
        assert_eq!(rig.waiting(), 1);
        assert_eq!(rig.judge(4), [], "its hour has not come");
        // The gate of hour 5 chose the second one.
        let mut moves = Vec::new();
        rig.0.hasten(w(1), &mut moves);
        assert_eq!(moves, [Move::Promote { block: w(1) }]);
        assert_eq!(rig.judge(5), [Move::GiveUp { block: w(0) }]);
        assert_eq!(rig.waiting(), 0);
        assert_eq!(rig.judge(6), [], "once");
        assert_eq!(rig.on(Event::GivenUp { block: w(0) }), []);
        assert!(!rig.0.is_on_its_way(w(0)) && rig.0.is_on_its_way(w(1)));
        // Its slot serves the next one.
        assert_eq!(rig.ask(1, 2), [load(2, 0, Haste::Asked)]);
        assert_eq!(rig.0.stats().total().wasted, 1);
    }

    #[test]
    fn what_is_asked_for_after_all_is_read_from_the_beginning() {
        let mut rig = Rig::new(2);
        rig.prefetch(0, 5);
        assert_eq!(rig.judge(5), [Move::GiveUp { block: w(0) }]);
        assert_eq!(rig.ask(1, 0), []);
        assert_eq!(rig.on(Event::GivenUp { block: w(0) }), [load(0, 0, Haste::Asked)]);
        let slots = vec![(w(0), slot(0))];
        assert_eq!(rig.on(Event::Loaded { block: w(0) }), [Move::Grant { ticket: 1, slots }]);
        let mut moves = Vec::new();
        assert!(rig.0.on(Event::GivenUp { block: w(0) }, &mut moves).is_err());
    }

    #[test]
    fn who_makes_the_content_anew_is_granted_when_the_load_was_given_up() {
        let mut rig = Rig::new(2);
        rig.prefetch(0, 5);
        assert_eq!(rig.judge(5), [Move::GiveUp { block: w(0) }]);
        let want = Want { block: w(0), access: Access::Create, next_use: u64::MAX };
        assert_eq!(rig.on(Event::Acquire { ticket: 1, priority: 1, wants: vec![want] }), []);
        let slots = vec![(w(0), slot(0))];
        assert_eq!(rig.on(Event::GivenUp { block: w(0) }), [Move::Grant { ticket: 1, slots }]);
    }

    #[test]
    fn a_load_that_ended_before_it_could_be_given_up_stays_and_leaves_first() {
        let mut rig = Rig::new(2);
        assert_eq!(rig.ask(1, 1), [load(1, 0, Haste::Asked)]);
        rig.on(Event::Loaded { block: w(1) });
        rig.on(Event::Release { ticket: 1, outcomes: Vec::new() });
        assert_eq!(rig.prefetch(0, 5), [load(0, 1, Haste::Guessed)]);
        assert_eq!(rig.judge(5), [Move::GiveUp { block: w(0) }]);
        assert_eq!(rig.on(Event::Loaded { block: w(0) }), []);
        assert!(rig.0.is_resident(w(0)));
        assert_eq!(rig.ask(2, 2), [load(2, 1, Haste::Asked)]);
    }
}
