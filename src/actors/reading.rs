//! The prefetcher's reads: of a store's blocks, and of files of others, where a block comes in pieces.

use super::backing::Backing;
use super::prefetcher::{Kind, Prefetcher, Transfer, fills};
use crate::base::{BlockId, Error, Part, Result};
use crate::storage::disk::{IDLE, IoBuf, IoOp, IoRequest};
use crate::storage::hierarchy::{Haste, SlotId};
use crate::storage::in_place::InPlace;
use std::sync::Arc;
use std::sync::atomic::Ordering;

impl Prefetcher {
    pub(super) fn load(&mut self, block: BlockId, slot: SlotId, haste: Haste) -> Result<()> {
        let buf = self.buffer(slot)?;
        let urgency = match haste {
            Haste::Asked => 0,
            Haste::Foreseen => 1,
            Haste::Guessed => IDLE,
        };
        let located = match &self.parts.backing {
            Backing::Store(store) => store.locate(block)?,
            Backing::InPlace(files) => return self.fetch(block, &Arc::clone(files), slot, urgency),
        };
        let located = located.ok_or_else(|| {
            Error::corrupt("the store has no such block; check it with `semoe store check`")
                .with("block", block)
        })?;
        let extent = located.extent;
        // An update goes over all bytes of a state anyway, and has them in its cache then.
        let check = block.part != Part::State || !fills(&extent, &buf);
        let tag = self.tag(Transfer { block, kind: Kind::Load { located, check } });
        let op = IoOp::Read;
        self.parts.io.submit(IoRequest { tag, op, extent, buf, urgency, check, lift: None })
    }

    /// Reads all pieces of a block of somebody else's file in one batch.
    fn fetch(&mut self, block: BlockId, files: &InPlace, slot: SlotId, urgency: u64) -> Result<()> {
        let bytes = self.parts.cache.arena().slot(slot)?;
        let fetches = files.fetches(block)?;
        self.reads.begin(block, fetches.len());
        for fetch in fetches {
            let (extent, lift) = (fetch.extent, Some(fetch.lift));
            // SAFETY: as in `buffer`; the fetches of a block lie apart inside its slot.
            let buf = unsafe {
                IoBuf::new(bytes.ptr.wrapping_add(fetch.at), bytes.len.saturating_sub(fetch.at))
            };
            let tag = self.tag(Transfer { block, kind: Kind::Fetch });
            let (op, check) = (IoOp::Read, false);
            self.parts.io.submit(IoRequest { tag, op, extent, buf, urgency, check, lift })?;
        }
        Ok(())
    }

    /// The reads of `block` that are under way.
    fn reads_of(&self, block: BlockId) -> impl Iterator<Item = u64> {
        let loads = move |transfer: &Transfer| {
            transfer.block == block && matches!(transfer.kind, Kind::Load { .. } | Kind::Fetch)
        };
        let tags = self.transfers.iter().filter(move |(_, transfer)| loads(transfer));
        tags.map(|(tag, _)| *tag)
    }

    pub(super) fn promote(&mut self, block: BlockId) -> Result<()> {
        self.reads_of(block).try_for_each(|tag| self.parts.io.promote(tag))
    }

    /// A guess was wrong: reads no further what can be stopped, and counts the bytes.
    pub(super) fn give_up(&mut self, block: BlockId) -> Result<()> {
        if self.reads_of(block).next().is_some() {
            self.reads_of(block).for_each(|tag| self.parts.io.give_up(tag));
            self.in_vain.insert(block);
        } else if let Backing::InPlace(files) = &self.parts.backing {
            let bytes = files.fetches(block)?.iter().map(|fetch| fetch.extent.len).sum();
            self.parts.meter.bytes_in_vain.fetch_add(bytes, Ordering::Relaxed);
        }
        Ok(())
    }
}
