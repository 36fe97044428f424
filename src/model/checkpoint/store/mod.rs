//! A folder that `semoe import` writes: each expert one aligned block, dense tensors beside, and an
//! index that says where they lie.
//!
//! ```text
//! Source ─► Plan (files, offsets, layouts: pure) ─► blocks, checksummed, logged ─► index, last
//!                                                     ▲ killed: goes on behind the last good block
//! ```
//!
//! Law: a folder that has an index is whole; an import that was killed ends with the same bytes as
//! one that was not.

mod import;
mod log;
mod plan;
mod recode;
#[cfg(test)]
mod tests;

pub(super) use import::write_beside;
pub use import::{Imported, LayerDeviation, Options, import};
pub use recode::{Deviation, recode};

use super::entries::Entries;
use crate::base::{Error, Result};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// The file whose being there says that a folder is a store, and whole: it is written last.
pub const INDEX: &str = "semoe_store.json";

/// This form of a store.
const VERSION: u32 = 1;

/// The index.
#[derive(Debug, Serialize, Deserialize)]
struct Index {
    version: u32,
    entries: Entries,
    /// CRC32C of every block, in the order of the plan: dense tensors, then experts.
    checksums: Vec<u32>,
    imported: Imported,
}

fn read(folder: &Path) -> Result<Index> {
    let path = folder.join(INDEX);
    let text =
        std::fs::read(&path).map_err(|e| Error::io(format!("reading {}", path.display()), e))?;
    let index: Index = serde_json::from_slice(&text).map_err(|e| {
        Error::corrupt("the store's index is damaged; import the checkpoint again")
            .with("file", path.display())
            .from_source(e)
    })?;
    if index.version != VERSION {
        return Err(Error::input(format!(
            "the store has version {}, this program reads {VERSION}; import the checkpoint again",
            index.version
        ))
        .with("file", path.display()));
    }
    Ok(index)
}

/// Where the tensors of a store lie.
pub(super) fn read_entries(folder: &Path) -> Result<Entries> {
    read(folder).map(|index| index.entries)
}
