//! Blocks outside a run: writing the initial ones, reading them for export.
//!
//! Two sets of slots alternate, so that one expert is made while the one before is written.

use crate::actors::prefetcher::DENSE;
use crate::base::{BlockId, Error, Part, Result};
use crate::model::expert::ExpertShape;
use crate::storage::arena::{Arena, SlotBytes};
use crate::storage::disk::{IoBuf, IoDone, IoOp, IoOptions, IoRequest, IoService};
use crate::storage::hierarchy::{SlotClass, SlotId};
use crate::storage::store::{Located, Store};
use crossbeam_channel::{Receiver, unbounded};
use std::collections::HashMap;
use std::sync::Arc;

/// Slots of each part that are in use at once.
const SETS: u32 = 2;

/// A write under way.
#[derive(Debug, Clone, Copy)]
struct Writing {
    block: BlockId,
    version: u64,
    applied: u64,
    set: u32,
}

/// Reads and writes the blocks of one store.
pub struct Blocks {
    store: Arc<Store>,
    io: IoService,
    done: Receiver<IoDone>,
    arena: Arc<Arena>,
    shape: ExpertShape,
    /// By tag.
    writing: HashMap<u64, Writing>,
    next_tag: u64,
}

impl Blocks {
    /// Memory that it holds.
    pub fn bytes(classes: &[SlotClass]) -> u64 {
        classes.iter().map(|class| class.slot_bytes * u64::from(SETS)).sum()
    }

    /// `classes`: the slot classes of the run, for the sizes of blocks; `dense`: bytes of the
    /// dense block.
    pub fn open(
        store: Arc<Store>,
        options: &IoOptions,
        shape: ExpertShape,
        classes: &[SlotClass],
        dense: u64,
    ) -> Result<Self> {
        let mut slots: Vec<SlotClass> = classes
            .iter()
            .filter(|class| matches!(class.part, Part::Weights | Part::State))
            .map(|class| SlotClass { slots: SETS, ..*class })
            .collect();
        slots.push(SlotClass { part: Part::Dense, slot_bytes: dense, slots: 1 });
        let arena = Arena::new(&slots)?;
        let (sender, done) = unbounded();
        let on_done = Arc::new(move |finished: IoDone| drop(sender.send(finished)));
        let io = IoService::start(options, store.files(), None, on_done)?;
        Ok(Self { store, io, done, arena, shape, writing: HashMap::new(), next_tag: 0 })
    }

    fn slot(&self, part: Part, index: u32) -> Result<SlotBytes> {
        self.arena.slot(SlotId { part, index })
    }

    fn submit(
        &mut self,
        op: IoOp,
        located: crate::storage::disk::Extent,
        slot: SlotBytes,
    ) -> Result<u64> {
        self.next_tag += 1;
        let tag = self.next_tag;
        // SAFETY: the arena lives as long as `self`, and the slot is not touched before the
        // request is done.
        let buf = unsafe { IoBuf::new(slot.ptr, slot.len) };
        let (extent, urgency) = (located, 0);
        self.io.submit(IoRequest { tag, op, extent, buf, urgency, check: true, lift: None })?;
        Ok(tag)
    }

    fn start_write(&mut self, writing: Writing) -> Result<()> {
        let extent = self.store.place(writing.block, writing.version)?;
        let slot = self.slot(writing.block.part, writing.set)?;
        let tag = self.submit(IoOp::Write, extent, slot)?;
        self.writing.insert(tag, writing);
        Ok(())
    }

    /// Waits until no write of `set` is under way: they may end in any order.
    fn settle(&mut self, set: u32) -> Result<()> {
        while self.writing.values().any(|writing| writing.set == set) {
            let done = self.done.recv().map_err(|_| Error::bug("the io thread went away"))?;
            let crc = done.result?;
            let Writing { block, version, applied, .. } = self
                .writing
                .remove(&done.tag)
                .ok_or_else(|| Error::bug("the io thread finished a request that nobody made"))?;
            self.store.written(block, version, crc, applied)?;
        }
        Ok(())
    }

    /// Writes weights and fresh optimizer states of experts; `fill(layer, expert, master)` makes
    /// each one's parameters. `progress` is told after each.
    pub fn write_experts(
        &mut self,
        experts: impl IntoIterator<Item = (usize, usize)>,
        mut fill: impl FnMut(usize, usize, &mut [f32]) -> Result<()>,
        mut progress: impl FnMut(u64),
    ) -> Result<()> {
        let mut master = vec![0f32; self.shape.elements()];
        for (count, (layer, expert)) in experts.into_iter().enumerate() {
            fill(layer, expert, &mut master)?;
            let set = count as u32 % SETS;
            self.settle(set)?;
            let (weights, state) = (self.slot(Part::Weights, set)?, self.slot(Part::State, set)?);
            // SAFETY: no write of this set is under way, and nobody else has the slots.
            let (w, s) = unsafe { (weights.as_mut_slice(), state.as_mut_slice()) };
            w.fill(0);
            s.fill(0);
            self.shape.write_master(&master, w, s)?;
            for block in [BlockId::weights(layer, expert), BlockId::state(layer, expert)] {
                self.start_write(Writing { block, version: 0, applied: 0, set })?;
            }
            progress(count as u64 + 1);
        }
        (0..SETS).try_for_each(|set| self.settle(set))
    }

    /// Writes the dense state.
    pub fn write_dense(&mut self, version: u64, state: &[u8]) -> Result<()> {
        let slot = self.slot(Part::Dense, 0)?;
        // SAFETY: no write of the slot is under way, and nobody else has it.
        let bytes = unsafe { slot.as_mut_slice() };
        if state.len() > bytes.len() {
            return Err(Error::bug("the dense state does not fit its slot"));
        }
        bytes[..state.len()].copy_from_slice(state);
        bytes[state.len()..].fill(0);
        self.start_write(Writing { block: DENSE, version, applied: version, set: 0 })?;
        self.settle(0)
    }

    fn read(&mut self, block: BlockId, index: u32) -> Result<(&[u8], Located)> {
        let located = self.store.locate(block)?.ok_or_else(|| {
            Error::corrupt("the store has no such block; check it with `semoe store check`")
                .with("block", block)
        })?;
        let slot = self.slot(block.part, index)?;
        self.submit(IoOp::Read, located.extent, slot)?;
        let done = self.done.recv().map_err(|_| Error::bug("the io thread went away"))?;
        self.store.verify_crc(block, &located, done.result?)?;
        // SAFETY: the read is done, and the slot is not written again before the borrow ends.
        Ok((unsafe { slot.as_slice() }, located))
    }

    /// The dense state as it was committed.
    pub fn read_dense(&mut self, bytes: usize) -> Result<Vec<u8>> {
        let (state, _) = self.read(DENSE, 0)?;
        state
            .get(..bytes)
            .map(<[u8]>::to_vec)
            .ok_or_else(|| Error::corrupt("the dense state is shorter than the model's"))
    }

    /// An expert's weights, state, and the updates that they contain.
    pub fn read_expert(&mut self, layer: usize, expert: usize) -> Result<(Vec<u8>, Vec<u8>, u64)> {
        let (weights, located) = self.read(BlockId::weights(layer, expert), 0)?;
        let (weights, applied) = (weights.to_vec(), located.applied);
        let (state, _) = self.read(BlockId::state(layer, expert), 0)?;
        Ok((weights, state.to_vec(), applied))
    }

    pub fn finish(self) {
        self.io.shutdown();
    }
}
