//! The live nodes, and exactly which ids are done.
//!
//! Ids are dense, so a window from the oldest live id to the newest says it all: below the window
//! everything is done, inside it an empty place is done, above it nothing was added yet. Slots
//! are reused, so a run of any length allocates for its widest moment only.

use super::node::NodeId;
use std::collections::VecDeque;

/// Position of a live node in the slots.
pub(super) type Slot = u32;

const EMPTY: Slot = Slot::MAX;

#[derive(Debug)]
pub(super) struct Live<T> {
    slots: Vec<T>,
    free: Vec<Slot>,
    /// Entry `i` is the slot of node `low + i`, or EMPTY when that node is done.
    window: VecDeque<Slot>,
    low: NodeId,
}

impl<T> Live<T> {
    pub fn new() -> Self {
        Self { slots: Vec::new(), free: Vec::new(), window: VecDeque::new(), low: 0 }
    }

    /// The id that the next node gets.
    pub fn next_id(&self) -> NodeId {
        self.low + self.window.len() as NodeId
    }

    /// The oldest id that may still be live: every id below is done.
    pub fn low(&self) -> NodeId {
        self.low
    }

    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// The slot of a live node; None when it is done or was never added.
    pub fn find(&self, id: NodeId) -> Option<Slot> {
        let place = usize::try_from(id.checked_sub(self.low)?).ok()?;
        self.window.get(place).copied().filter(|slot| *slot != EMPTY)
    }

    pub fn get(&self, slot: Slot) -> &T {
        &self.slots[slot as usize]
    }

    pub fn get_mut(&mut self, slot: Slot) -> &mut T {
        &mut self.slots[slot as usize]
    }

    /// Adds the node with id [`Self::next_id`].
    pub fn insert(&mut self, node: T) -> Slot {
        let slot = match self.free.pop() {
            Some(slot) => {
                self.slots[slot as usize] = node;
                slot
            }
            None => {
                self.slots.push(node);
                (self.slots.len() - 1) as Slot
            }
        };
        self.window.push_back(slot);
        slot
    }

    /// Marks a live node as done; its slot may be reused from now on.
    pub fn remove(&mut self, id: NodeId) {
        let Some(slot) = self.find(id) else { return };
        self.window[(id - self.low) as usize] = EMPTY;
        self.free.push(slot);
        while self.window.front() == Some(&EMPTY) {
            self.window.pop_front();
            self.low += 1;
        }
    }

    /// Ids and contents of the live nodes, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = (NodeId, &T)> {
        let places = self.window.iter().enumerate().filter(|(_, slot)| **slot != EMPTY);
        places.map(|(i, slot)| (self.low + i as NodeId, &self.slots[*slot as usize]))
    }
}
