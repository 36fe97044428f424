//! Granting and ending leases.

use super::message::{Access, Cause, Haste, Move, Outcome};
use super::table::{Content, Key};
use super::{Hierarchy, Phase};
use crate::base::{BlockId, Error, Result};

impl Hierarchy {
    /// Grants a reserved ticket if all its blocks allow it now.
    pub(super) fn try_grant(&mut self, ticket: u64, moves: &mut Vec<Move>) {
        let Some(asking) = self.tickets.get_mut(&ticket) else {
            return;
        };
        let key = asking.key;
        let mut wants = asking.wants.iter();
        let grantable = asking.phase == Phase::Reserved
            && wants.all(|(index, access)| self.table[*index].is_grantable(key, *access));
        if !grantable {
            return;
        }
        asking.phase = Phase::Granted;
        self.granted += 1;
        let mut slots = Vec::with_capacity(asking.wants.len());
        for (index, access) in &asking.wants {
            let entry = &mut self.table[*index];
            entry.reserved.retain(|(other, _)| *other != key);
            match access {
                Access::Read => entry.readers += 1,
                Access::Update | Access::Create => entry.writer = true,
            }
            let part = entry.part();
            slots.push((entry.block, super::SlotId { part, index: entry.slot }));
        }
        moves.push(Move::Grant { ticket, slots });
    }

    /// Tries the tickets that wait for this block, oldest first.
    pub(super) fn grant_waiters(&mut self, index: u32, moves: &mut Vec<Move>) {
        match self.table[index].reserved.as_slice() {
            [] => {}
            [((_, ticket), _)] => {
                let ticket = *ticket;
                self.try_grant(ticket, moves);
            }
            many => {
                let tickets: Vec<u64> = many.iter().map(|((_, ticket), _)| *ticket).collect();
                tickets.into_iter().for_each(|ticket| self.try_grant(ticket, moves));
            }
        }
    }

    pub(super) fn release(
        &mut self,
        ticket: u64,
        outcomes: &[(BlockId, Outcome)],
        moves: &mut Vec<Move>,
    ) -> Result<()> {
        let refuse = |why: &'static str| Err(Error::bug(why).with("ticket", ticket));
        let Some(lease) = self.tickets.get(&ticket).filter(|t| t.phase == Phase::Granted) else {
            return refuse("a ticket that was not granted is released");
        };
        for (block, _) in outcomes {
            if !lease.wants.iter().any(|(index, _)| self.table[*index].block == *block) {
                return refuse("a release names a block that the ticket does not hold");
            }
        }
        let Some(lease) = self.tickets.remove(&ticket) else {
            return refuse("a ticket that was not granted is released");
        };
        self.granted -= 1;
        for (index, access) in lease.wants.iter().copied() {
            let block = self.table[index].block;
            let outcome = outcomes.iter().find(|(other, _)| *other == block);
            self.end_lease(index, access, outcome.map_or(Outcome::Clean, |(_, outcome)| *outcome));
        }
        for (index, _) in &lease.wants {
            self.drop_if_doomed(*index, moves);
            self.refile(*index);
        }
        for (index, _) in &lease.wants {
            self.grant_waiters(*index, moves);
        }
        Ok(())
    }

    pub(super) fn end_lease(&mut self, index: u32, access: Access, outcome: Outcome) {
        if let Some(recorder) = &mut self.recorder {
            recorder.outcome(self.table[index].block, access, outcome);
        }
        let era = self.flusher.era();
        let entry = &mut self.table[index];
        match access {
            Access::Read => entry.readers -= 1,
            Access::Update | Access::Create => entry.writer = false,
        }
        match (outcome, access) {
            (Outcome::Dirty, _) => {
                entry.content = Content::Resident;
                entry.dirty = true;
                entry.redirtied = entry.writing;
                if entry.due == 0 {
                    entry.era = era;
                }
            }
            (Outcome::Clean, Access::Read | Access::Update) => {}
            (Outcome::Clean, Access::Create) | (Outcome::Discard, _) => {
                let keeps = entry.part().is_durable() && entry.dirty;
                entry.doomed = !keeps;
            }
        }
        // A flush that came during an exclusive lease has waited for its end.
        if entry.due != 0 && entry.flush_at.is_none() && !entry.writing && !entry.is_leased() {
            self.enqueue_flush(index);
        }
    }

    /// Drops the content of a discarded block once nobody uses it.
    pub(super) fn drop_if_doomed(&mut self, index: u32, moves: &mut Vec<Move>) {
        let entry = &mut self.table[index];
        if !entry.doomed || entry.is_leased() || entry.writing {
            return;
        }
        entry.doomed = false;
        entry.dirty = false;
        entry.redirtied = false;
        entry.stuck = false;
        entry.content = Content::Blank;
        let block = entry.block;
        if !block.part.is_durable() {
            if std::mem::take(&mut entry.stored) {
                moves.push(Move::Drop { block });
            }
            if let Some(class) = self.class(block.part) {
                class.stats.discards += 1;
            }
        }
        self.void_if_orphaned(index, moves);
    }

    /// A slot whose content is void is filled from disk for those who wait for content, left to
    /// the next creator, or given back. Who waits for content that is nowhere fails.
    pub(super) fn void_if_orphaned(&mut self, index: u32, moves: &mut Vec<Move>) {
        let entry = &mut self.table[index];
        if entry.content != Content::Blank || entry.is_leased() {
            return;
        }
        let is_reader = |waiter: &(Key, Access)| waiter.1 != Access::Create;
        let readers = entry.reserved.iter().take_while(|waiter| is_reader(waiter)).count();
        if readers > 0 && entry.stored {
            self.start_load(index, Haste::Asked, moves);
            return;
        }
        let lost: Vec<(Key, Access)> = entry.reserved.drain(..readers).collect();
        let is_awaited = !entry.reserved.is_empty();
        let block = entry.block;
        if !lost.is_empty() {
            let tickets: Vec<u64> = lost.iter().map(|((_, ticket), _)| *ticket).collect();
            moves.push(Move::Fail { block, cause: Cause::Absent, tickets: tickets.clone() });
            tickets.into_iter().for_each(|ticket| self.drop_ticket(ticket, moves));
        }
        let entry = &self.table[index];
        let mut wanters = entry.wanters.iter();
        if is_awaited
            || entry.content != Content::Blank
            || wanters.any(|(_, ticket)| self.will_create(*ticket, index))
        {
            return;
        }
        let slot = self.vacate(index);
        if let Some(class) = self.class_of(index) {
            class.give_back(slot);
        }
    }

    pub(super) fn will_create(&self, ticket: u64, index: u32) -> bool {
        let wants = self.tickets.get(&ticket).map_or(&[][..], |ticket| &ticket.wants);
        wants.contains(&(index, Access::Create))
    }
}
