//! Which slot holds which version of a block, and which slots are free.
//!
//! Pure: no files. Law: a slot that a commit or a checkpoint refers to is never given out.

use crate::base::units::round_up;
use crate::base::{BlockId, Error, ErrorKind, Part, Result, Step};
use crate::storage::disk::{BLOCK_ALIGN, Extent, FileId};
use crate::storage::index::BlockRecord;
use crate::storage::store::{ClassSpec, Located, StoreSpec};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// The slots of one part: one data file.
#[derive(Debug)]
pub(crate) struct Class {
    pub part: Part,
    pub file: FileId,
    pub slot_bytes: u64,
    pub slots: u64,
    free: Vec<u64>,
}

impl Class {
    fn extent(&self, slot: u64) -> Extent {
        Extent { file: self.file, offset: slot * self.slot_bytes, len: self.slot_bytes }
    }

    pub fn file_len(&self) -> u64 {
        self.slots * self.slot_bytes
    }

    pub fn free_slots(&self) -> u64 {
        self.free.len() as u64
    }

    /// The slot of an entry, if the entry can be one of this class.
    fn slot_of(&self, extent: Extent) -> Option<u64> {
        let whole = extent.file == self.file
            && extent.len == self.slot_bytes
            && extent.offset.is_multiple_of(self.slot_bytes);
        let slot = extent.offset / self.slot_bytes;
        (whole && slot < self.slots).then_some(slot)
    }
}

/// Bytes of a slot and count of slots of a class.
pub(crate) fn slots_of(spec: &StoreSpec, class: &ClassSpec) -> (u64, u64) {
    let generations = if class.part.is_durable() { 2 + u64::from(spec.keep) } else { 1 };
    (round_up(class.block_bytes, BLOCK_ALIGN), class.blocks * generations)
}

/// A version of a block in a slot.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Entry {
    pub version: Step,
    slot: u64,
    crc: u32,
    applied: Step,
    /// Whether the slot holds it; before, its write is under way.
    written: bool,
    /// The version that the slot was first placed for.
    first: Step,
    /// The version that is being written into the slot, or was last.
    target: Step,
}

impl Entry {
    fn placed(version: Step, slot: u64) -> Self {
        Self { version, slot, crc: 0, applied: 0, written: false, first: version, target: version }
    }
}

/// What `written` changes in the index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Change {
    pub record: BlockRecord,
    /// An uncommitted version that was overwritten in place.
    pub replaced: Option<Step>,
}

#[derive(Debug)]
pub(crate) struct Table {
    pub classes: Vec<Class>,
    /// Durable blocks; the versions of each ascend.
    entries: HashMap<BlockId, Vec<Entry>>,
    /// Blocks that no commit ever holds.
    scratch: HashMap<BlockId, Entry>,
    pub committed: Option<Step>,
    /// Versions up to here belong to a commit that is being made.
    sealed: Option<Step>,
    pub kept: BTreeMap<String, Step>,
    /// Data files written since they were last synced.
    pub unsynced: BTreeSet<FileId>,
}

impl Table {
    pub fn new(spec: &StoreSpec) -> Self {
        let classes = spec
            .classes
            .iter()
            .enumerate()
            .map(|(index, class)| {
                let (slot_bytes, slots) = slots_of(spec, class);
                let file = FileId(index as u16);
                let free = (0..slots).rev().collect();
                Class { part: class.part, file, slot_bytes, slots, free }
            })
            .collect();
        Self {
            classes,
            entries: HashMap::new(),
            scratch: HashMap::new(),
            committed: None,
            sealed: None,
            kept: BTreeMap::new(),
            unsynced: BTreeSet::new(),
        }
    }

    fn class(&mut self, block: BlockId) -> Result<&mut Class> {
        self.classes.iter_mut().find(|class| class.part == block.part).ok_or_else(|| {
            Error::bug("the store was made without blocks of this part").with("block", block)
        })
    }

    fn located(&self, block: BlockId, entry: &Entry) -> Option<Located> {
        let class = self.classes.iter().find(|class| class.part == block.part)?;
        let Entry { version, slot, crc, applied, .. } = *entry;
        Some(Located { extent: class.extent(slot), version, crc, applied })
    }

    /// Puts an entry read from the index into its slot.
    ///
    /// # Errors
    /// `Corrupt` for one that lies outside its file, is no slot, or shares a slot with another.
    pub fn restore(&mut self, record: &BlockRecord) -> Result<()> {
        let BlockRecord { block, version, extent, crc, applied } = *record;
        let class = self.class(block).map_err(|_| {
            Error::corrupt("the index holds a block of a part that the store does not have")
                .with("block", block)
        })?;
        let file_len = class.file_len();
        let Some(slot) = class.slot_of(extent) else {
            return Err(Error::corrupt(
                "the index points outside its file; restore the store from a copy",
            )
            .with("block", block)
            .with("version", version)
            .with("file", extent.file.0)
            .with("offset", extent.offset)
            .with("len", extent.len)
            .with("file_len", file_len));
        };
        let entry = Entry { crc, applied, written: true, ..Entry::placed(version, slot) };
        self.entries.entry(block).or_default().push(entry);
        Ok(())
    }

    /// Puts the restored versions of each block in order.
    pub fn sort(&mut self) {
        for versions in self.entries.values_mut() {
            versions.sort_by_key(|entry| entry.version);
        }
    }

    /// Makes every slot free that no entry holds.
    ///
    /// # Errors
    /// `Corrupt` if two entries share a slot.
    pub fn settle(&mut self) -> Result<()> {
        let mut taken: HashMap<(Part, u64), BlockId> = HashMap::new();
        for (block, versions) in &self.entries {
            for entry in versions {
                if let Some(other) = taken.insert((block.part, entry.slot), *block) {
                    return Err(Error::corrupt(
                        "the index gives one slot to two blocks; restore the store from a copy",
                    )
                    .with("block", block)
                    .with("other", other));
                }
            }
        }
        for class in &mut self.classes {
            let is_free = |slot: &u64| !taken.contains_key(&(class.part, *slot));
            class.free = (0..class.slots).rev().filter(is_free).collect();
        }
        Ok(())
    }

    pub fn place(&mut self, block: BlockId, version: Step) -> Result<Extent> {
        if !block.part.is_durable() {
            return self.place_scratch(block, version);
        }
        let newest = self.entries.get(&block).and_then(|versions| versions.last()).copied();
        if let Some(newest) = newest
            && version < newest.version
        {
            return Err(Error::bug("an older version of a block is written over a newer one")
                .with("block", block)
                .with("version", version)
                .with("newer", newest.version));
        }
        if self.committed.is_some_and(|step| version <= step) {
            return Err(Error::bug("a committed version is written again")
                .with("block", block)
                .with("version", version));
        }
        let sealed = self.sealed;
        let same_commit = |old: Step| sealed.is_none_or(|step| old > step || version <= step);
        let uncommitted = |old: Step| self.committed.is_none_or(|step| old > step);
        if let Some(newest) = newest.filter(|e| uncommitted(e.version) && same_commit(e.version)) {
            if let Some(entry) = self.entries.get_mut(&block).and_then(|all| all.last_mut()) {
                entry.written = false;
                entry.target = version;
            }
            return Ok(self.class(block)?.extent(newest.slot));
        }
        let committing = sealed.is_some();
        let class = self.class(block)?;
        let Some(slot) = class.free.pop() else {
            return Err(no_slot(block, committing));
        };
        let extent = class.extent(slot);
        self.entries.entry(block).or_default().push(Entry::placed(version, slot));
        Ok(extent)
    }

    fn place_scratch(&mut self, block: BlockId, version: Step) -> Result<Extent> {
        if let Some(entry) = self.scratch.get_mut(&block) {
            *entry = Entry::placed(version, entry.slot);
            let slot = entry.slot;
            return Ok(self.class(block)?.extent(slot));
        }
        let class = self.class(block)?;
        let Some(slot) = class.free.pop() else {
            return Err(no_slot(block, false));
        };
        let extent = class.extent(slot);
        self.scratch.insert(block, Entry::placed(version, slot));
        Ok(extent)
    }

    /// Notes that the block's newest slot holds `version` now. Scratch changes no index.
    pub fn written(
        &mut self,
        block: BlockId,
        version: Step,
        crc: u32,
        applied: Step,
    ) -> Result<Option<Change>> {
        let entry = match block.part.is_durable() {
            true => self.entries.get_mut(&block).and_then(|versions| versions.last_mut()),
            false => self.scratch.get_mut(&block),
        };
        let Some(entry) = entry.filter(|entry| entry.target == version) else {
            return Err(Error::bug("a block was written without a place")
                .with("block", block)
                .with("version", version));
        };
        let old =
            std::mem::replace(entry, Entry { version, crc, applied, written: true, ..*entry });
        if !block.part.is_durable() {
            return Ok(None);
        }
        let replaced = (old.version != version).then_some(old.version);
        let extent = self.class(block)?.extent(old.slot);
        self.unsynced.insert(extent.file);
        let record = BlockRecord { block, version, extent, crc, applied };
        Ok(Some(Change { record, replaced }))
    }

    pub fn locate(&self, block: BlockId) -> Result<Option<Located>> {
        let newest = match block.part.is_durable() {
            true => self.entries.get(&block).and_then(|versions| versions.last()),
            false => self.scratch.get(&block),
        };
        let Some(entry) = newest else { return Ok(None) };
        if !entry.written {
            return Err(Error::bug("a block is looked for while it is being written")
                .with("block", block)
                .with("version", entry.version));
        }
        Ok(self.located(block, entry))
    }

    pub fn drop_scratch(&mut self, block: BlockId) -> Result<()> {
        if block.part.is_durable() {
            return Err(Error::bug("a durable block cannot be dropped").with("block", block));
        }
        if let Some(entry) = self.scratch.remove(&block) {
            self.class(block)?.free.push(entry.slot);
        }
        Ok(())
    }

    /// Every durable block as of `step`.
    pub fn as_of(&self, step: Step) -> impl Iterator<Item = (BlockId, Located)> {
        self.entries.iter().filter_map(move |(block, versions)| {
            let entry = versions.iter().rfind(|entry| entry.version <= step)?;
            Some((*block, self.located(*block, entry)?))
        })
    }

    /// From now on, versions up to `step` are left alone until their commit has ended.
    pub fn seal(&mut self, step: Step) -> Result<()> {
        if self.committed.is_some_and(|committed| step <= committed) {
            return Err(Error::bug("a step is committed that is not newer than the last commit")
                .with("step", step)
                .with("committed", self.committed.unwrap_or_default()));
        }
        if self.sealed == Some(step) {
            return Ok(());
        }
        if let Some(other) = self.sealed {
            return Err(Error::bug("a commit begins before the last one has ended")
                .with("step", step)
                .with("last", other));
        }
        let overwritten = |entry: &Entry| entry.first <= step && step < entry.target;
        let lost = self.entries.iter().find(|(_, versions)| versions.iter().any(overwritten));
        if let Some((block, _)) = lost {
            return Err(Error::bug("a later step has overwritten a block before its commit began")
                .with("block", block)
                .with("step", step));
        }
        self.sealed = Some(step);
        Ok(())
    }

    /// # Errors
    /// `Bug` if a version that the commit of `step` would hold is not written.
    pub fn require_written(&self, step: Step) -> Result<()> {
        let waiting = |entry: &Entry| entry.version <= step && !entry.written;
        let missing = self.entries.iter().find(|(_, versions)| versions.iter().any(waiting));
        match missing {
            Some((block, _)) => Err(Error::bug("a commit found a block that is still written")
                .with("block", block)
                .with("step", step)),
            None => Ok(()),
        }
    }

    /// The commit of `step` is durable.
    pub fn commit(&mut self, step: Step) {
        self.committed = Some(step);
        self.sealed = None;
    }

    /// The commit failed: its versions may be overwritten again.
    pub fn unseal(&mut self) {
        self.sealed = None;
    }

    /// Versions that neither the last commit, nor a checkpoint, nor the running step needs.
    pub fn superseded(&self) -> Vec<(BlockId, Step)> {
        let mut out = Vec::new();
        for (block, versions) in &self.entries {
            for (at, entry) in versions.iter().enumerate() {
                // It is what a reader of any step in version..next sees.
                let next = versions.get(at + 1).map_or(Step::MAX, |next| next.version);
                let seen = |step: Step| (entry.version..next).contains(&step);
                let uncommitted = self.committed.is_none_or(|step| entry.version > step);
                let live = uncommitted
                    || self.committed.is_some_and(seen)
                    || self.kept.values().any(|step| seen(*step));
                if !live {
                    out.push((*block, entry.version));
                }
            }
        }
        out
    }

    /// Versions newer than the last commit: what an opened store discards.
    pub fn uncommitted(&self) -> Vec<(BlockId, Step)> {
        let newer = |entry: &&Entry| self.committed.is_none_or(|step| entry.version > step);
        let of_block = |(block, versions): (&BlockId, &Vec<Entry>)| {
            let found: Vec<_> =
                versions.iter().filter(newer).map(|entry| (*block, entry.version)).collect();
            found
        };
        self.entries.iter().flat_map(of_block).collect()
    }

    /// Forgets a version and frees its slot.
    pub fn forget(&mut self, block: BlockId, version: Step) {
        let Some(versions) = self.entries.get_mut(&block) else { return };
        let Some(at) = versions.iter().position(|entry| entry.version == version) else { return };
        let entry = versions.remove(at);
        if versions.is_empty() {
            self.entries.remove(&block);
        }
        if let Ok(class) = self.class(block) {
            class.free.push(entry.slot);
        }
    }
}

fn no_slot(block: BlockId, committing: bool) -> Error {
    let error = match committing {
        true => Error::new(ErrorKind::Busy, "no slot is free until the running commit has ended"),
        false => Error::bug("more blocks are placed than the store was made for"),
    };
    error.with("block", block)
}
