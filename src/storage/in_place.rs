//! Blocks that lie in files of others, read where they are: no second copy, nothing written.
//!
//! A block is a list of pieces `(file, offset, length)` at whatever offsets the file's format gave
//! them. Each is read in whole pages and then moved, inside its slot, so that it starts at a
//! multiple of 64 bytes: so what computes on a piece never sees where it lay.
//!
//! ```text
//! file   ······|piece····|······       offset 7 past a page
//! read   |page|page|page|              O_DIRECT, rounded out to pages
//! slot   |piece····|                   moved back by offset % 64
//! ```

use super::arena::SLOT_ALIGN;
use super::disk::{BLOCK_ALIGN, DataFile, Extent, FileId, Lift};
use super::hierarchy::BlockMap;
use crate::base::units::round_up;
use crate::base::{BlockId, Error, Result};
use std::ops::Range;
use std::path::PathBuf;

/// What operands are aligned to.
pub const OPERAND_ALIGN: u64 = 64;

/// Some bytes of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// The file's place among those of the [`InPlace`].
    pub file: usize,
    pub offset: u64,
    pub len: u64,
}

/// One read of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fetch {
    /// Whole pages of the file.
    pub extent: Extent,
    /// Where in the slot the read goes.
    pub at: usize,
    /// What is wanted of it, and where it belongs; relative to `at`.
    pub lift: Lift,
}

#[derive(Debug, Default)]
struct Layout {
    fetches: Vec<Fetch>,
    /// Where each piece lies in the slot once everything is read.
    places: Vec<Range<usize>>,
}

/// See the module.
#[derive(Debug)]
pub struct InPlace {
    files: Vec<DataFile>,
    blocks: BlockMap<Layout>,
    slot_bytes: u64,
}

impl InPlace {
    /// The blocks of `files`, each with its pieces in the order in which they are lent.
    ///
    /// # Errors
    /// `Io` for a file that cannot be asked for its length; `Input` for a piece outside its file.
    pub fn new(
        files: &[PathBuf],
        blocks: impl IntoIterator<Item = (BlockId, Vec<Piece>)>,
    ) -> Result<Self> {
        let files = (files.iter().enumerate())
            .map(|(index, path)| {
                let meta = std::fs::metadata(path)
                    .map_err(|e| Error::io(format!("cannot read {}", path.display()), e))?;
                let id = FileId(u16::try_from(index).map_err(|_| {
                    Error::input("a checkpoint of more than 65535 files cannot be read in place")
                })?);
                Ok(DataFile { id, path: path.clone(), len: meta.len(), read_only: true })
            })
            .collect::<Result<Vec<_>>>()?;
        let mut made = Self { files, blocks: BlockMap::default(), slot_bytes: 0 };
        for (block, pieces) in blocks {
            let (layout, bytes) = made.layout(block, &pieces)?;
            made.slot_bytes = made.slot_bytes.max(round_up(bytes, SLOT_ALIGN));
            made.blocks.insert(block, layout);
        }
        Ok(made)
    }

    fn layout(&self, block: BlockId, pieces: &[Piece]) -> Result<(Layout, u64)> {
        let mut layout = Layout::default();
        let mut at = 0;
        let mut rest = pieces;
        while let Some(first) = rest.first() {
            let run = run_length(rest);
            let len: u64 = rest[..run].iter().map(|piece| piece.len).sum();
            let end = first.offset.checked_add(len);
            let file = self.files.get(first.file);
            let Some((file, end)) = file.zip(end).filter(|(file, end)| *end <= file.len) else {
                let path = file.map(|file| file.path.display().to_string());
                return Err(Error::input("a tensor lies outside its file: it was truncated")
                    .with("block", block)
                    .with("file", path.unwrap_or_default())
                    .with("offset", first.offset)
                    .with("bytes", len));
            };
            let start = first.offset / BLOCK_ALIGN * BLOCK_ALIGN;
            let skip = first.offset - start;
            let to = skip / OPERAND_ALIGN * OPERAND_ALIGN;
            let extent =
                Extent { file: file.id, offset: start, len: round_up(end, BLOCK_ALIGN) - start };
            let lift = Lift { from: skip as usize, to: to as usize, len: len as usize };
            layout.fetches.push(Fetch { extent, at: at as usize, lift });
            let mut place = at + to;
            for piece in &rest[..run] {
                layout.places.push(place as usize..(place + piece.len) as usize);
                place += piece.len;
            }
            at += extent.len;
            rest = &rest[run..];
        }
        layout.fetches.retain(|fetch| fetch.lift.len > 0);
        Ok((layout, at))
    }

    /// The files, for the io service.
    pub fn files(&self) -> Vec<DataFile> {
        self.files.clone()
    }

    /// Bytes of a slot that holds any of the blocks.
    pub fn slot_bytes(&self) -> u64 {
        self.slot_bytes
    }

    pub fn len(&self) -> usize {
        self.blocks.len()
    }

    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    /// Bytes that reading `block` moves off the disk.
    pub fn read_bytes(&self, block: BlockId) -> u64 {
        let fetches = self.blocks.get(&block).map_or(&[][..], |layout| &layout.fetches);
        fetches.iter().map(|fetch| fetch.extent.len).sum()
    }

    /// The reads that bring a block.
    ///
    /// # Errors
    /// `Bug` for a block that is not there.
    pub fn fetches(&self, block: BlockId) -> Result<&[Fetch]> {
        Ok(&self.of(block)?.fetches)
    }

    /// The pieces of a block, in the order in which they were given, out of its slot's bytes.
    ///
    /// # Errors
    /// `Bug` for a block that is not there, or a slot that is too short.
    pub fn pieces<'a>(
        &self,
        block: BlockId,
        slot: &'a [u8],
        into: &mut Vec<&'a [u8]>,
    ) -> Result<()> {
        into.clear();
        for place in &self.of(block)?.places {
            let piece = slot.get(place.clone()).ok_or_else(|| {
                Error::bug("a block is longer than its slot").with("block", block)
            })?;
            into.push(piece);
        }
        Ok(())
    }

    fn of(&self, block: BlockId) -> Result<&Layout> {
        self.blocks
            .get(&block)
            .ok_or_else(|| Error::bug("the checkpoint has no such block").with("block", block))
    }
}

/// How many of the first pieces follow one another in one file and stay aligned as a whole.
fn run_length(pieces: &[Piece]) -> usize {
    let joins = |pair: &[Piece]| {
        pair[0].file == pair[1].file
            && pair[0].offset.checked_add(pair[0].len) == Some(pair[1].offset)
            && pair[0].len.is_multiple_of(OPERAND_ALIGN)
    };
    1 + pieces.windows(2).take_while(|pair| joins(pair)).count()
}

#[cfg(test)]
mod tests;
