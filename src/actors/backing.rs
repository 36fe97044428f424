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

/// Blocks that come in several reads: a block has come when the last of them has ended, for until
/// then its slot must not be used for anything else, whatever became of the others.
#[derive(Debug, Default)]
pub struct Reads {
    left: HashMap<BlockId, (usize, bool)>,
}

impl Reads {
    pub fn begin(&mut self, block: BlockId, reads: usize) {
        self.left.insert(block, (reads, true));
    }

    /// One read of `block` has ended; once all have: whether all went well.
    pub fn ended(&mut self, block: BlockId, well: bool) -> Option<bool> {
        let (left, all_well) = self.left.get_mut(&block)?;
        *left = left.saturating_sub(1);
        *all_well &= well;
        if *left > 0 {
            return None;
        }
        self.left.remove(&block).map(|(_, all_well)| all_well)
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
        assert_eq!(reads.ended(a, false), None);
        assert_eq!(reads.ended(b, true), Some(true));
        assert_eq!(reads.ended(a, true), Some(false));
        assert_eq!(reads.ended(a, true), None);
    }
}
