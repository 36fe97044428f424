//! The hierarchy of a rank, shared by the prefetcher, which carries out its moves, and an executor
//! that runs on while what it needs is resident.
//!
//! Law: moves are carried out by the prefetcher alone, in the order in which they were decided.
//! Whoever causes some leaves them here and nudges it.

use crate::base::{BlockId, Result};
use crate::storage::arena::{Arena, SlotBytes};
use crate::storage::hierarchy::{Event, Hierarchy, Move};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// Tickets of leases that were taken without the scheduler, apart from the nodes' ids.
const TICKETLESS: u64 = 1 << 63;

type Nudge = Box<dyn Fn() + Send + Sync>;

struct Inner {
    hierarchy: Hierarchy,
    moves: Vec<Move>,
    leases: u64,
}

/// See the module. Cheap to share; the lock is held for a decision and never for I/O.
pub struct Cache {
    inner: Mutex<Inner>,
    arena: Arc<Arena>,
    nudge: OnceLock<Nudge>,
}

impl std::fmt::Debug for Cache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cache").finish_non_exhaustive()
    }
}

impl Cache {
    pub fn new(hierarchy: Hierarchy, arena: Arc<Arena>) -> Arc<Self> {
        let inner = Inner { hierarchy, moves: Vec::new(), leases: 0 };
        Arc::new(Self { inner: Mutex::new(inner), arena, nudge: OnceLock::new() })
    }

    pub fn arena(&self) -> &Arc<Arena> {
        &self.arena
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at the hierarchy.
    pub fn with<T>(&self, look: impl FnOnce(&mut Hierarchy) -> T) -> T {
        look(&mut self.lock().hierarchy)
    }

    /// How the prefetcher is told that moves wait for it.
    pub(super) fn on_moves(&self, nudge: impl Fn() + Send + Sync + 'static) {
        drop(self.nudge.set(Box::new(nudge)));
    }

    /// Feeds an event.
    pub(super) fn feed(&self, event: Event) -> Result<()> {
        let mut inner = self.lock();
        let Inner { hierarchy, moves, .. } = &mut *inner;
        hierarchy.on(event, moves)
    }

    /// The moves decided since the last call, in order, in exchange for an empty list.
    pub(super) fn take_moves(&self, into: &mut Vec<Move>) {
        into.clear();
        std::mem::swap(&mut self.lock().moves, into);
    }

    /// Begins to read blocks that were used before, each with how often (see
    /// [`Hierarchy::recall`]); for the time before anything is asked for.
    ///
    /// # Errors
    /// As [`Hierarchy::recall`].
    pub fn warm(&self, blocks: &[(BlockId, u32)]) -> Result<()> {
        let mut inner = self.lock();
        let Inner { hierarchy, moves, .. } = &mut *inner;
        blocks.iter().try_for_each(|(block, uses)| hierarchy.recall(*block, *uses, moves))?;
        drop(inner);
        self.nudge();
        Ok(())
    }

    fn nudge(&self) {
        if let Some(nudge) = self.nudge.get() {
            nudge();
        }
    }

    /// Pins for reading those of `blocks` that are resident, all at one moment: so none of them
    /// makes room for another. `held[i]` answers for `blocks[i]`, which are all that is used at `now`, the
    /// planner's hour; `next_use` is when they are used after it. Those on their way in are waited for from
    /// now on, and what else was foreseen for this hour is given up: the prefetcher hears of it with the
    /// next message, be it of what is missing or of what is likely next, or of [`Cache::settle`].
    /// Not for states, which may be resident before their checksum was compared.
    pub fn hold_resident(
        self: &Arc<Self>,
        now: u64,
        next_use: u64,
        blocks: &[BlockId],
        held: &mut Vec<Option<Held>>,
    ) {
        held.clear();
        let mut inner = self.lock();
        let Inner { hierarchy, moves, leases } = &mut *inner;
        for block in blocks {
            *leases += 1;
            let slot = hierarchy.lease_resident(TICKETLESS | *leases, *block, next_use);
            if slot.is_none() {
                hierarchy.hasten(*block, moves);
            }
            // A slot of the hierarchy is one of the arena's: both are made of the same classes.
            let bytes = slot.and_then(|slot| self.arena.slot(slot).ok());
            held.push(bytes.map(|bytes| Held { cache: Arc::clone(self), block: *block, bytes }));
        }
        hierarchy.judge(now, moves);
    }

    /// Has what was given up carried out where no message of something else follows.
    pub fn settle(&self) {
        if !self.lock().moves.is_empty() {
            self.nudge();
        }
    }

    /// Those of `blocks` that are neither resident nor on their way in.
    pub fn lacking(&self, blocks: &[BlockId], into: &mut Vec<BlockId>) {
        into.clear();
        let inner = self.lock();
        into.extend(blocks.iter().filter(|block| !inner.hierarchy.is_on_its_way(**block)));
    }

    fn end(&self, block: BlockId) {
        let mut inner = self.lock();
        let Inner { hierarchy, moves, .. } = &mut *inner;
        let ended = hierarchy.end_resident(block, moves);
        let waiting = !moves.is_empty();
        drop(inner);
        if let Err(error) = ended {
            tracing::error!(%error, "a lease could not be ended");
        }
        if waiting {
            self.nudge();
        }
    }
}

/// A pin on a resident block; dropping it lets the slot be refilled.
#[derive(Debug)]
pub struct Held {
    cache: Arc<Cache>,
    block: BlockId,
    bytes: SlotBytes,
}

impl Held {
    pub fn block(&self) -> BlockId {
        self.block
    }

    /// The bytes of the slot.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the hierarchy pins the slot for reading until `self` is dropped, and the arena
        // lives as long as the cache that `self` keeps.
        unsafe { self.bytes.as_slice() }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.cache.end(self.block);
    }
}
