//! Where the blocks of a rank come from: a store of its own, or files of others.

use crate::base::{BlockId, Error, Result};
use crate::storage::in_place::InPlace;
use crate::storage::store::Store;
use std::collections::HashMap;
use std::sync::Arc;

/// See the module.
#[derive(Debug, Clone)]
pub enum Backing {
    Store(Arc<Store>),
    /// Read only, unversioned, without checksums.
    InPlace(Arc<InPlace>),
}

impl Backing {
    /// The store, for what only a rank that changes blocks does.
    ///
    /// # Errors
    /// `Bug` if the blocks are files of others.
    pub fn store(&self) -> Result<&Store> {
        match self {
            Self::Store(store) => Ok(store),
            Self::InPlace(_) => Err(Error::bug("a block of somebody else's file would be written")),
        }
    }
}

/// How a block's reads ended: as the worst of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ending {
    Well,
    GivenUp,
    Failed,
}

#[derive(Debug, Clone, Copy)]
struct Left {
    reads: usize,
    ending: Ending,
    bytes: u64,
}

/// Blocks that come in several reads: a block has come when the last of them has ended, for until
/// then its slot must not be used for anything else, whatever became of the others.
#[derive(Debug, Default)]
pub struct Reads {
    left: HashMap<BlockId, Left>,
}

impl Reads {
    pub fn begin(&mut self, block: BlockId, reads: usize) {
        self.left.insert(block, Left { reads, ending: Ending::Well, bytes: 0 });
    }

    /// One read of `block` has ended with `bytes`; once all have: how, and the bytes of all.
    pub fn ended(&mut self, block: BlockId, ending: Ending, bytes: u64) -> Option<(Ending, u64)> {
        let left = self.left.get_mut(&block)?;
        left.reads = left.reads.saturating_sub(1);
        left.ending = left.ending.max(ending);
        left.bytes += bytes;
        if left.reads > 0 {
            return None;
        }
        self.left.remove(&block).map(|left| (left.ending, left.bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_has_come_with_its_last_read() {
        let mut reads = Reads::default();
        let (a, b) = (BlockId::weights(0, 0), BlockId::weights(0, 1));
        reads.begin(a, 2);
        reads.begin(b, 1);
        assert_eq!(reads.ended(a, Ending::GivenUp, 5), None);
        assert_eq!(reads.ended(b, Ending::Well, 7), Some((Ending::Well, 7)));
        assert_eq!(reads.ended(a, Ending::Well, 4), Some((Ending::GivenUp, 9)));
        assert_eq!(reads.ended(a, Ending::Well, 4), None);
    }
}
