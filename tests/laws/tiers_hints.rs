//! What is said to the hierarchy of a seeded world and binds nobody.

use crate::tiers_world::{PARTS, World};
use semoe::base::BlockId;
use semoe::storage::hierarchy::Event;

impl World {
    /// Says something that binds nobody. Cancelling would break a deadlock up: it has to stop
    /// before the end.
    pub fn hint(&mut self, may_cancel: bool) {
        let part = PARTS[self.rng.below(3)];
        let block = BlockId::new(0, self.rng.below(self.setup.blocks), part);
        let at = self.time + self.rng.draw() % 30;
        match self.rng.below(9) {
            0 => self.on(Event::Plan { block, next_use: at }),
            1 if may_cancel => {
                let waiting = self.tickets.iter().find(|(_, t)| t.slots.is_none());
                if let Some(ticket) = waiting.map(|(id, _)| *id) {
                    self.tickets.remove(&ticket);
                    self.on(Event::Cancel { ticket });
                }
            }
            2 => {
                let mut moves = Vec::new();
                self.hierarchy.judge(at.saturating_sub(15), &mut moves);
                self.see(moves);
            }
            3 => {
                let mut moves = Vec::new();
                self.hierarchy.hasten(block, &mut moves);
                self.see(moves);
            }
            _ => self.on(Event::Prefetch { block, use_at: at }),
        }
    }
}
