//! What the prefetcher knows of the bytes of blocks: what those contain that changed, and what those
//! must be that were read and not compared.
//!
//! Law: what is known of a block's bytes is of the bytes that its slot holds now.

use super::message::Release;
use crate::base::{BlockId, Error, Result};
use crate::storage::hierarchy::Outcome::{Clean, Dirty, Discard};
use crate::storage::store::Expected;
use std::collections::HashMap;

/// What a changed block contains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Content {
    pub version: u64,
    pub applied: u64,
    /// The CRC32C of its slot, where whoever changed it computed it.
    pub crc: Option<u32>,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Contents {
    changed: HashMap<BlockId, Content>,
    unchecked: HashMap<BlockId, Expected>,
}

impl Contents {
    /// A block was read: what its bytes must be, if nobody has compared them.
    pub fn read(&mut self, block: BlockId, unchecked: Option<Expected>) {
        match unchecked {
            Some(expected) => self.unchecked.insert(block, expected),
            None => self.unchecked.remove(&block),
        };
    }

    /// What the bytes of a block must be that is leased. It stays so until the block changes: a
    /// lease that ends otherwise proves nothing.
    pub fn expected(&self, block: BlockId) -> Option<Expected> {
        self.unchecked.get(&block).cloned()
    }

    /// What a block contains that is written back.
    ///
    /// # Errors
    /// `Bug` for a block that nobody changed.
    pub fn changed(&self, block: BlockId) -> Result<Content> {
        self.changed.get(&block).copied().ok_or_else(|| {
            Error::bug("a block is written back that nobody changed").with("block", block)
        })
    }

    /// A lease has ended.
    pub fn released(&mut self, release: &Release) {
        let Release { version, applied, .. } = *release;
        for (block, outcome) in &release.outcomes {
            match outcome {
                Dirty => {
                    let crc = release.crc.filter(|(of, _)| of == block).map(|(_, crc)| crc);
                    self.changed.insert(*block, Content { version, applied, crc });
                    self.unchecked.remove(block);
                }
                Discard => {
                    self.changed.remove(block);
                    self.unchecked.remove(block);
                }
                Clean => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checksum_belongs_to_the_last_change_of_its_block() {
        let (state, weights) = (BlockId::state(0, 1), BlockId::weights(0, 1));
        let mut contents = Contents::default();
        assert!(contents.changed(state).is_err());
        let mut release = Release {
            node: 1,
            outcomes: vec![(state, Dirty), (weights, Dirty)],
            applied: 4,
            version: 5,
            crc: Some((state, 7)),
        };
        contents.released(&release);
        let content = |crc| Content { version: 5, applied: 4, crc };
        assert_eq!(contents.changed(state).unwrap(), content(Some(7)));
        assert_eq!(contents.changed(weights).unwrap(), content(None));
        release.outcomes = vec![(state, Clean)];
        contents.released(&release);
        assert_eq!(contents.changed(state).unwrap(), content(Some(7)));
        (release.outcomes, release.crc) = (vec![(state, Dirty)], None);
        contents.released(&release);
        assert_eq!(contents.changed(state).unwrap(), content(None));
    }
}
