//! A lease: the blocks that a node has pinned, as bytes.
//!
//! While it is held none of its blocks is moved or evicted. It lends its bytes for the length of
//! a borrow, so no view outlives it; blocks that were granted for reading only are lent only for
//! reading. A block whose checksum nobody has compared since it was read is compared before it is
//! lent, but where the holder takes that upon itself ([`Lease::take_expected`]).

use crate::base::{BlockId, Error, Result, checksum};
use crate::storage::arena::{Arena, SlotBytes};
use crate::storage::store::Expected;
use std::sync::Arc;

/// A block of a lease.
#[derive(Debug)]
pub struct Pinned {
    pub block: BlockId,
    pub bytes: SlotBytes,
    /// Whether the holder may change it.
    pub writable: bool,
    /// What the slot's bytes must be, if nobody has compared them since they were read.
    pub expected: Option<Expected>,
}

impl Pinned {
    fn read(&self) -> &[u8] {
        // SAFETY: the grant pins the slot: nobody writes it while it is leased for reading, and
        // an exclusive grant has no other holder. The arena lives as long as the lease.
        unsafe { self.bytes.as_slice() }
    }

    fn verify(&self) -> Result<()> {
        let expected = self.expected.as_ref();
        expected.map_or(Ok(()), |expected| expected.verify(checksum::crc32c(self.read())))
    }
}

/// See the module. The default lease pins nothing.
#[derive(Debug, Default)]
pub struct Lease {
    pinned: Vec<Pinned>,
    /// Keeps the slots mapped.
    _arena: Option<Arc<Arena>>,
}

impl Lease {
    /// Made by the prefetcher from a grant, which pins the blocks until the release that follows
    /// the lease's end.
    pub fn new(pinned: Vec<Pinned>, arena: Arc<Arena>) -> Self {
        Self { pinned, _arena: Some(arena) }
    }

    /// The bytes of a block of this lease.
    ///
    /// # Errors
    /// `Bug` for a block of no lease, `Corrupt` for one that is not what was written.
    pub fn bytes(&self, block: BlockId) -> Result<&[u8]> {
        let pinned = self.pinned.iter().find(|pinned| pinned.block == block).ok_or_else(|| {
            Error::bug("a node used a block that it has no lease on").with("block", block)
        })?;
        pinned.verify()?;
        Ok(pinned.read())
    }

    /// What the bytes of `block` must be, if nobody has compared them: then the caller must, of
    /// all bytes as they are now, before anything that came of them is kept.
    pub fn take_expected(&mut self, block: BlockId) -> Option<Expected> {
        self.pinned.iter_mut().find(|pinned| pinned.block == block)?.expected.take()
    }

    /// Compares what nobody has compared yet.
    ///
    /// # Errors
    /// `Corrupt` for a block that is not what was written.
    pub fn verify(&mut self) -> Result<()> {
        self.pinned.iter_mut().try_for_each(|pinned| {
            pinned.verify()?;
            pinned.expected = None;
            Ok(())
        })
    }

    /// All blocks of this lease at once, for changing; those granted for reading come as
    /// [`Bytes::Read`].
    ///
    /// # Errors
    /// As [`Lease::verify`].
    pub fn split(&mut self) -> Result<Vec<(BlockId, Bytes<'_>)>> {
        self.verify()?;
        let lend = |pinned: &'_ Pinned| {
            let bytes = if pinned.writable {
                // SAFETY: slots of one lease are disjoint, this one was granted exclusively,
                // and `&mut self` makes this the only borrow of it.
                Bytes::Write(unsafe { pinned.bytes.as_mut_slice() })
            } else {
                // SAFETY: as in `Pinned::read`.
                Bytes::Read(unsafe { pinned.bytes.as_slice() })
            };
            (pinned.block, bytes)
        };
        Ok(self.pinned.iter().map(lend).collect())
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{ErrorKind, Part};
    use crate::storage::disk::{Extent, FileId};
    use crate::storage::hierarchy::{SlotClass, SlotId};
    use crate::storage::store::Located;

    /// A lease on one block of zeros, of which `crc` is expected.
    fn lease(block: BlockId, crc: u32) -> Lease {
        let class = SlotClass { part: Part::State, slot_bytes: 4096, slots: 1 };
        let arena = Arena::new(&[class]).unwrap();
        let bytes = arena.slot(SlotId { part: Part::State, index: 0 }).unwrap();
        let extent = Extent { file: FileId(1), offset: 8192, len: 4096 };
        let located = Located { extent, version: 3, crc, applied: 2 };
        let expected = Some(Expected::new(block, "state.dat".into(), located));
        Lease::new(vec![Pinned { block, bytes, writable: true, expected }], arena)
    }

    #[test]
    fn bytes_that_nobody_compared_are_compared_before_they_are_lent() {
        let block = BlockId::state(0, 1);
        let mut sound = lease(block, checksum::crc32c(&[0; 4096]));
        assert_eq!(sound.bytes(block).unwrap(), [0; 4096]);
        for (_, bytes) in sound.split().unwrap() {
            bytes.write().unwrap().fill(1);
        }
        assert_eq!(sound.bytes(block).unwrap(), [1; 4096], "they are compared once");
        assert!(sound.take_expected(block).is_none());

        let mut harmed = lease(block, 7);
        assert!(harmed.bytes(block).is_err() && harmed.verify().is_err());
        let error = harmed.split().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        let told = format!("(block={block}, file=state.dat, offset=8192, version=3)");
        assert!(error.to_string().ends_with(&told), "{error}");
        let expected = harmed.take_expected(block).unwrap();
        assert!(harmed.split().is_ok(), "it is left to who took it");
        assert!(expected.verify(7).is_ok() && expected.verify(8).is_err());
    }
}
