//! The bookkeeping of flushes: how many blocks each still waits for, and who is written next.
//!
//! Flushes end in the order of their events, each once every block that was dirty at its event
//! has been written.

use std::collections::{BTreeSet, VecDeque};

#[derive(Debug)]
struct Open {
    flush: u64,
    left: u64,
    failed: bool,
}

#[derive(Debug)]
pub(super) struct Flusher {
    events: u64,
    open: VecDeque<Open>,
    /// Entries to be written, those that are needed soonest first: an update of theirs has to wait
    /// for the write.
    queue: BTreeSet<(u64, u32)>,
    in_flight: u32,
    depth: u32,
}

impl Flusher {
    /// At most `depth` writes are in flight for flushes alone, so that they do not drown loads.
    pub fn new(depth: u32) -> Self {
        let queue = BTreeSet::new();
        Self { events: 0, open: VecDeque::new(), queue, in_flight: 0, depth: depth.max(1) }
    }

    pub fn events(&self) -> u64 {
        self.events
    }

    pub fn blocks_left(&self) -> u64 {
        self.open.iter().map(|open| open.left).sum()
    }

    /// The flush that content changed now belongs to.
    pub fn era(&self) -> u64 {
        self.events + 1
    }

    /// A flush of `left` blocks begins; returns its number.
    pub fn begin(&mut self) -> u64 {
        self.events += 1;
        self.open.push_back(Open { flush: self.events, left: 0, failed: false });
        self.events
    }

    /// One more block belongs to the latest flush.
    pub fn expect_block(&mut self) {
        if let Some(open) = self.open.back_mut() {
            open.left += 1;
        }
    }

    pub fn enqueue(&mut self, next_use: u64, entry: u32) {
        self.queue.insert((next_use, entry));
    }

    pub fn dequeue(&mut self, next_use: u64, entry: u32) -> bool {
        self.queue.remove(&(next_use, entry))
    }

    /// The next entry to write, if one more may be in flight.
    pub fn next(&mut self) -> Option<u32> {
        if self.in_flight >= self.depth {
            return None;
        }
        let (_, entry) = self.queue.pop_first()?;
        self.in_flight += 1;
        Some(entry)
    }

    pub fn write_ended(&mut self) {
        self.in_flight -= 1;
    }

    /// A block of `flush` has been written.
    pub fn block_written(&mut self, flush: u64) {
        if let Some(open) = self.open.iter_mut().find(|open| open.flush == flush) {
            open.left -= 1;
        }
    }

    /// A block of `flush` could not be written, so neither this flush nor a later one that is open
    /// can succeed. Returns those that fail by it.
    pub fn block_failed(&mut self, flush: u64) -> Vec<u64> {
        self.block_written(flush);
        let mut failed = Vec::new();
        for open in self.open.iter_mut().filter(|open| open.flush >= flush && !open.failed) {
            open.failed = true;
            failed.push(open.flush);
        }
        failed
    }

    /// The flushes that have ended well, in order.
    pub fn ended(&mut self) -> Option<u64> {
        while let Some(open) = self.open.front()
            && open.left == 0
        {
            let Open { flush, failed, .. } = *open;
            self.open.pop_front();
            if !failed {
                return Some(flush);
            }
        }
        None
    }
}
