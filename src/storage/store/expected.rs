//! What the bytes of a block must be that was read and is not compared yet.

use super::Located;
use crate::base::{BlockId, Error, Result};
use std::path::PathBuf;

/// See the module. [`super::Store::expected`] makes it.
#[derive(Debug, Clone)]
pub struct Expected {
    block: BlockId,
    file: PathBuf,
    located: Located,
}

impl Expected {
    /// Of a version of a block in `file`, the data file of its extent.
    pub fn new(block: BlockId, file: PathBuf, located: Located) -> Self {
        Self { block, file, located }
    }

    /// Compares the checksum of what was read, all bytes of its extent, with that of what was
    /// written.
    ///
    /// # Errors
    /// `Corrupt`, naming block, file and offset.
    pub fn verify(&self, crc: u32) -> Result<()> {
        if crc == self.located.crc {
            return Ok(());
        }
        Err(Error::corrupt(
            "a block is not what was written: its checksum differs; restore the store from a copy",
        )
        .with("block", self.block)
        .with("file", self.file.display())
        .with("offset", self.located.extent.offset)
        .with("version", self.located.version))
    }
}
