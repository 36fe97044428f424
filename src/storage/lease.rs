//! A lease: the blocks that a node has pinned, as bytes.
//!
//! While it is held none of its blocks is moved or evicted. It lends its bytes for the length of
//! a borrow, so no view outlives it; blocks that were granted for reading only are lent only for
//! reading.

use crate::base::{BlockId, Error, Result};
use crate::storage::arena::{Arena, SlotBytes};
use std::sync::Arc;

#[derive(Debug)]
struct Pinned {
    block: BlockId,
    bytes: SlotBytes,
    writable: bool,
}

/// See the module. The default lease pins nothing.
#[derive(Debug, Default)]
pub struct Lease {
    pinned: Vec<Pinned>,
    /// Keeps the slots mapped.
    _arena: Option<Arc<Arena>>,
}

impl Lease {
    /// `slots`: block, its slot, and whether the holder may change it. Made by the prefetcher
    /// from a grant, which pins the blocks until the release that follows the lease's end.
    pub fn new(slots: Vec<(BlockId, SlotBytes, bool)>, arena: Arc<Arena>) -> Self {
        let pinned = slots
            .into_iter()
            .map(|(block, bytes, writable)| Pinned { block, bytes, writable })
            .collect();
        Self { pinned, _arena: Some(arena) }
    }

    /// The bytes of a block of this lease.
    pub fn bytes(&self, block: BlockId) -> Result<&[u8]> {
        let pinned = self.find(block)?;
        // SAFETY: the grant pins the slot: nobody writes it while it is leased for reading, and
        // an exclusive grant has no other holder. The arena lives as long as `self`.
        Ok(unsafe { pinned.bytes.as_slice() })
    }

    /// All blocks of this lease at once, for changing; those granted for reading come as
    /// [`Bytes::Read`].
    pub fn split(&mut self) -> Vec<(BlockId, Bytes<'_>)> {
        self.pinned
            .iter()
            .map(|pinned| {
                let bytes = if pinned.writable {
                    // SAFETY: slots of one lease are disjoint, this one was granted exclusively,
                    // and `&mut self` makes this the only borrow of it.
                    Bytes::Write(unsafe { pinned.bytes.as_mut_slice() })
                } else {
                    // SAFETY: as in `bytes`.
                    Bytes::Read(unsafe { pinned.bytes.as_slice() })
                };
                (pinned.block, bytes)
            })
            .collect()
    }

    fn find(&self, block: BlockId) -> Result<&Pinned> {
        self.pinned.iter().find(|pinned| pinned.block == block).ok_or_else(|| {
            Error::bug("a node used a block that it has no lease on").with("block", block)
        })
    }
}

/// Bytes of a leased block.
#[derive(Debug)]
pub enum Bytes<'a> {
    Read(&'a [u8]),
    Write(&'a mut [u8]),
}

impl<'a> Bytes<'a> {
    pub fn read(self) -> &'a [u8] {
        match self {
            Self::Read(bytes) => bytes,
            Self::Write(bytes) => bytes,
        }
    }

    /// Refuses a block that was granted for reading.
    pub fn write(self) -> Result<&'a mut [u8]> {
        match self {
            Self::Write(bytes) => Ok(bytes),
            Self::Read(_) => Err(Error::bug("a node writes a block that it leased for reading")),
        }
    }
}
