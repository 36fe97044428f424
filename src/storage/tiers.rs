//! Tiered storage alone: a store behind a budget of slots, driven by its caller's thread.
//!
//! What the actors do with messages, [`Tiers`] does with plain calls: for tools and tests, and for
//! programs that want blocks larger than memory without training anything.
//!
//! ```text
//! with(wants, body) ─▶ Hierarchy ─▶ moves ─▶ Store + IoService ─▶ slots ─▶ body(bytes) ─▶ outcomes
//! ```
//!
//! Law: `body` sees a block only after its checksum was compared, and what it changed is on SSD
//! before its slot serves another block.

use super::arena::Arena;
use super::disk::{IoBuf, IoDone, IoEffective, IoOp, IoOptions, IoRequest, IoService};
use super::hierarchy::{
    Event, Haste, Hierarchy, Move, Outcome, SlotClass, SlotId, Snapshot, Stats, Want,
};
use super::lease::{Lease, Pinned};
use super::policy::PolicyConfig;
use super::store::{Located, Store};
use crate::base::{BlockId, Error, Result, Step};
use crossbeam_channel::{Receiver, unbounded};
use std::collections::HashMap;
use std::sync::Arc;

/// A transfer under way.
#[derive(Debug)]
enum Transfer {
    Load(BlockId, Located),
    Write(BlockId, Step),
}

/// See the module.
pub struct Tiers {
    io: IoService, // Dropped first: it answers what is under way, in slots still mapped.
    hierarchy: Hierarchy,
    arena: Arc<Arena>,
    store: Store,
    done: Receiver<IoDone>,
    transfers: HashMap<u64, Transfer>,
    next_tag: u64,
    next_ticket: u64,
    /// The slots of the ticket that waits, once it is granted.
    granted: Option<Vec<(BlockId, SlotId)>>,
    flushed: bool,
    /// The step that changed a block since it was read or written.
    changed: HashMap<BlockId, Step>,
}

impl std::fmt::Debug for Tiers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tiers").field("state", &self.snapshot()).finish_non_exhaustive()
    }
}

impl Tiers {
    /// Puts `store` behind `slots`, which are all the memory that its blocks will ever take.
    ///
    /// # Errors
    /// `Budget` if the memory cannot be had, `Config` for a policy or an io choice that cannot be.
    pub fn new(
        store: Store,
        slots: &[SlotClass],
        policy: &PolicyConfig,
        io: &IoOptions,
    ) -> Result<Self> {
        let hierarchy = Hierarchy::new(slots, policy)?;
        let arena = Arena::new(slots)?;
        let (sender, done) = unbounded();
        let on_done = Arc::new(move |finished: IoDone| drop(sender.send(finished)));
        let whole = arena.whole();
        let io = IoService::start(io, store.files(), Some((whole.ptr, whole.len)), on_done)?;
        Ok(Self {
            hierarchy,
            arena,
            store,
            io,
            done,
            transfers: HashMap::new(),
            next_tag: 0,
            next_ticket: 0,
            granted: None,
            flushed: false,
            changed: HashMap::new(),
        })
    }

    /// Leases all blocks of `wants` at once to `body`, which says what became of those that it
    /// changed; `step` is their version from then on.
    ///
    /// # Errors
    /// `Budget` for more blocks than there are slots, `Corrupt` for a block that is not what was
    /// written, `Io` when the disk fails; and what `body` returns.
    pub fn with<T>(
        &mut self,
        step: Step,
        wants: &[Want],
        body: impl FnOnce(&mut Lease) -> Result<(T, Vec<(BlockId, Outcome)>)>,
    ) -> Result<T> {
        self.next_ticket += 1;
        let ticket = self.next_ticket;
        self.feed(Event::Acquire { ticket, priority: 0, wants: wants.to_vec() })?;
        let slots = loop {
            match self.granted.take() {
                Some(slots) => break slots,
                None => self.wait()?,
            }
        };
        let writable =
            |block| wants.iter().any(|want| want.block == block && want.access.is_exclusive());
        let pinned = slots
            .into_iter()
            .map(|(block, slot)| {
                let (bytes, writable) = (self.arena.slot(slot)?, writable(block));
                Ok(Pinned { block, bytes, writable, expected: None })
            })
            .collect::<Result<Vec<_>>>()?;
        let mut lease = Lease::new(pinned, Arc::clone(&self.arena));
        let result = body(&mut lease);
        drop(lease);
        let outcomes = match &result {
            Ok((_, outcomes)) => outcomes.clone(),
            Err(_) => Vec::new(),
        };
        for (block, outcome) in &outcomes {
            match outcome {
                Outcome::Dirty => drop(self.changed.insert(*block, step)),
                Outcome::Discard => drop(self.changed.remove(block)),
                Outcome::Clean => {}
            }
        }
        self.feed(Event::Release { ticket, outcomes })?;
        result.map(|(value, _)| value)
    }

    /// Starts reading a block that will be needed at the caller's virtual time `use_at`.
    ///
    /// # Errors
    /// `Bug` for a block of a part without slots.
    pub fn prefetch(&mut self, block: BlockId, use_at: u64) -> Result<()> {
        self.feed(Event::Prefetch { block, use_at })
    }

    /// Writes what is dirty and makes `step` the state that the store opens at.
    ///
    /// # Errors
    /// `Io` when a write or a sync fails: then the last commit stands.
    pub fn commit(&mut self, step: Step, meta: &[u8]) -> Result<()> {
        self.flushed = false;
        self.feed(Event::Flush)?;
        while !self.flushed {
            self.wait()?;
        }
        self.store.commit(step, meta)
    }

    /// What is where.
    pub fn snapshot(&self) -> Snapshot {
        self.hierarchy.snapshot()
    }

    /// Hits, misses and bytes moved since the start.
    pub fn stats(&self) -> Stats {
        self.hierarchy.stats()
    }

    /// How the disk is driven, and why where that differs from what was asked.
    pub fn io(&self) -> &IoEffective {
        self.io.effective()
    }

    pub fn store(&self) -> &Store {
        &self.store
    }

    fn feed(&mut self, event: Event) -> Result<()> {
        let mut moves = Vec::new();
        self.hierarchy.on(event, &mut moves)?;
        moves.into_iter().try_for_each(|step| self.carry_out(step))
    }

    fn carry_out(&mut self, step: Move) -> Result<()> {
        match step {
            Move::Load { block, slot, haste } => {
                let located = self.store.locate(block)?.ok_or_else(|| {
                    Error::input("the store holds no such block").with("block", block)
                })?;
                let urgent = haste == Haste::Asked;
                self.submit(IoOp::Read, Transfer::Load(block, located), slot, urgent)
            }
            Move::Write { block, slot, urgent, .. } => {
                let version = self.changed.get(&block).copied().ok_or_else(|| {
                    Error::bug("a block is written back that nobody changed").with("block", block)
                })?;
                self.submit(IoOp::Write, Transfer::Write(block, version), slot, urgent)
            }
            Move::Promote { block } => {
                let loads = |t: &Transfer| matches!(t, Transfer::Load(b, _) if *b == block);
                let tag = self.transfers.iter().find(|(_, t)| loads(t)).map(|(tag, _)| *tag);
                tag.map_or(Ok(()), |tag| self.io.promote(tag))
            }
            // Blocks are foreseen here, not guessed: they are all read.
            Move::GiveUp { .. } => Ok(()),
            Move::Drop { block } => self.store.drop_scratch(block),
            Move::Grant { slots, .. } => {
                self.granted = Some(slots);
                Ok(())
            }
            Move::Flushed { .. } => {
                self.flushed = true;
                Ok(())
            }
            Move::Fail { block, cause, .. } => Err(Error::input("a block cannot be had")
                .with("block", block)
                .with("cause", format!("{cause:?}"))),
            Move::FlushFailed { block, .. } => {
                Err(Error::input("a commit could not write a block").with("block", block))
            }
        }
    }

    fn submit(&mut self, op: IoOp, transfer: Transfer, slot: SlotId, urgent: bool) -> Result<()> {
        let extent = match &transfer {
            Transfer::Load(_, located) => located.extent,
            Transfer::Write(block, version) => self.store.place(*block, *version)?,
        };
        let bytes = self.arena.slot(slot)?;
        // SAFETY: the arena lives as long as the io service, and the hierarchy hands the slot to
        // nobody else while the transfer is under way.
        let buf = unsafe { IoBuf::new(bytes.ptr, bytes.len) };
        self.next_tag += 1;
        self.transfers.insert(self.next_tag, transfer);
        let urgency = u64::from(!urgent);
        let tag = self.next_tag;
        self.io.submit(IoRequest { tag, op, extent, buf, urgency, check: true, lift: None })
    }

    /// Takes in the end of one transfer.
    fn wait(&mut self) -> Result<()> {
        if self.transfers.is_empty() {
            return Err(Error::bug("a ticket waits although nothing is under way"));
        }
        let done = self.done.recv().map_err(|_| Error::bug("the io thread went away"))?;
        let transfer = self.transfers.remove(&done.tag);
        let transfer = transfer
            .ok_or_else(|| Error::bug("the io thread finished a request that nobody made"))?;
        let (block, result) = match transfer {
            Transfer::Load(block, located) => {
                let checked =
                    done.result.and_then(|crc| self.store.verify_crc(block, &located, crc));
                (block, checked.map(|()| Event::Loaded { block }))
            }
            Transfer::Write(block, version) => {
                let noted =
                    done.result.and_then(|crc| self.store.written(block, version, crc, version));
                (block, noted.map(|()| Event::Written { block }))
            }
        };
        match result {
            Ok(event) => self.feed(event),
            // What fails of it says less than the cause.
            Err(cause) => {
                drop(self.feed(Event::Failed { block }));
                Err(cause)
            }
        }
    }
}

impl Drop for Tiers {
    fn drop(&mut self) {
        // The slots must outlive what is under way in them.
        while !self.transfers.is_empty() {
            let Ok(done) = self.done.recv() else { break };
            self.transfers.remove(&done.tag);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{ErrorKind, Part};
    use crate::storage::hierarchy::Access;
    use crate::storage::policy::PolicyKind;
    use crate::storage::store::{ClassSpec, StoreOptions, StoreSpec};
    use std::path::Path;

    const BLOCKS: usize = 12;
    const BYTES: u64 = 4096;

    fn tiers(dir: &Path, slots: u32) -> Tiers {
        let spec = StoreSpec {
            classes: vec![ClassSpec {
                part: Part::Weights,
                block_bytes: BYTES,
                blocks: BLOCKS as u64,
            }],
            keep: 0,
            identity: "test".into(),
        };
        let options = StoreOptions::default();
        let store = match Store::is_in(dir) {
            true => Store::open(dir, &options),
            false => Store::create(dir, &spec, &options),
        };
        let slots = [SlotClass { part: Part::Weights, slot_bytes: BYTES, slots }];
        let policy = PolicyConfig::of(PolicyKind::Lru);
        Tiers::new(store.unwrap(), &slots, &policy, &IoOptions::default()).unwrap()
    }

    fn want(expert: usize, access: Access) -> Want {
        Want { block: BlockId::weights(0, expert), access, next_use: u64::MAX }
    }

    fn fill(tiers: &mut Tiers, step: Step, expert: usize, access: Access, value: u8) {
        let want = want(expert, access);
        let filled = tiers.with(step, &[want], |lease| {
            for (_, bytes) in lease.split()? {
                bytes.write()?.fill(value);
            }
            Ok(((), vec![(want.block, Outcome::Dirty)]))
        });
        filled.unwrap();
    }

    fn read(tiers: &mut Tiers, expert: usize) -> Result<u8> {
        let want = want(expert, Access::Read);
        tiers.with(0, &[want], |lease| Ok((lease.bytes(want.block)?[BYTES as usize - 1], vec![])))
    }

    #[test]
    fn blocks_survive_eviction_and_the_last_commit_survives_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let mut tiers_1 = tiers(dir.path(), 3);
        for expert in 0..BLOCKS {
            fill(&mut tiers_1, 1, expert, Access::Create, expert as u8);
        }
        for expert in (0..BLOCKS).rev() {
            assert_eq!(read(&mut tiers_1, expert).unwrap(), expert as u8);
        }
        let snapshot = tiers_1.snapshot();
        assert!(tiers_1.stats().total().evictions >= 2 * (BLOCKS as u64 - 3), "{snapshot:?}");
        tiers_1.commit(1, b"").unwrap();
        fill(&mut tiers_1, 2, 0, Access::Update, 200);
        fill(&mut tiers_1, 2, 11, Access::Update, 211);
        assert_eq!(read(&mut tiers_1, 0).unwrap(), 200);
        drop(tiers_1);
        let mut again = tiers(dir.path(), 3);
        assert_eq!(again.store().committed(), Some(1));
        for expert in 0..BLOCKS {
            assert_eq!(read(&mut again, expert).unwrap(), expert as u8);
        }
    }

    #[test]
    fn what_cannot_be_had_is_an_error_and_the_rest_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let mut tiers = tiers(dir.path(), 2);
        fill(&mut tiers, 1, 3, Access::Create, 7);
        assert!(read(&mut tiers, 5).is_err());
        let wants = [0, 1, 3].map(|expert| want(expert, Access::Read));
        let refused = tiers.with(1, &wants, |_| Ok(((), vec![]))).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Budget, "{refused}");
        let changed = tiers.with(1, &[want(3, Access::Read)], |lease| {
            lease.split()?.into_iter().try_for_each(|(_, bytes)| bytes.write().map(drop))?;
            Ok(((), vec![]))
        });
        assert!(changed.is_err());
        assert_eq!(read(&mut tiers, 3).unwrap(), 7);
    }
}
