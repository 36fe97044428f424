//! A store: blocks of experts in preallocated data files, versioned, committed step by step.
//!
//! Law 7: a slot that a commit or a checkpoint refers to is never overwritten; a block that
//! changes goes to a fresh slot, and the old one is free once its successor's commit is durable.
//!
//! ```text
//! place(block, version) ─► extent ─► (IoService writes) ─► written(crc) ─► … ─► commit(step)
//! locate(block) ─► extent + crc ─► (IoService reads) ─► verify_crc
//! ```

mod checkpoints;
mod expected;
mod opening;
mod table;

pub use expected::Expected;

use super::commit::{self, Barrier, CommitRecord, FileMedium, Medium};
use super::disk::direct::{create_reserved, free_space};
use super::disk::{DataFile, Extent, FileId};
use super::index::{BlockRecord, COMMIT_KEY, SledIndex, keep_key, meta_key};
use crate::base::units::Bytes;
use crate::base::{BlockId, Error, ErrorKind, Part, Result, Step, checksum};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use table::Table;

/// How many blocks of a part there are, and how large each is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClassSpec {
    pub part: Part,
    /// Bytes of a block; its slot is rounded up to 4096.
    pub block_bytes: u64,
    pub blocks: u64,
}

/// What a store is made for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreSpec {
    /// One data file for each; a part is named once.
    pub classes: Vec<ClassSpec>,
    /// Named checkpoints to reserve space for.
    pub keep: u32,
    /// What the blocks belong to; compared by the caller.
    pub identity: serde_json::Value,
}

/// How a store is opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreOptions {
    /// Bytes that the index may cache.
    pub index_cache: u64,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self { index_cache: 8 << 20 }
    }
}

/// Where a version of a block lies and what it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Located {
    pub extent: Extent,
    pub version: Step,
    /// CRC32C of the extent's bytes.
    pub crc: u32,
    /// The last optimizer step that the block contains.
    pub applied: Step,
}

/// A named checkpoint, for reading. It stays valid until it is dropped.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    pub step: Step,
    pub meta: Vec<u8>,
    blocks: HashMap<BlockId, Located>,
}

impl Checkpoint {
    pub fn locate(&self, block: BlockId) -> Option<Located> {
        self.blocks.get(&block).copied()
    }

    pub fn blocks(&self) -> impl Iterator<Item = (BlockId, Located)> {
        self.blocks.iter().map(|(block, located)| (*block, *located))
    }
}

/// `store.json`: written last when a store is created, so its presence means a whole store.
#[derive(Debug, Serialize, Deserialize)]
struct Manifest {
    format: u32,
    spec: StoreSpec,
}

const FORMAT: u32 = 1;
const MANIFEST: &str = "store.json";
const LOCK: &str = "store.lock";
const INDEX: &str = "index";

/// See the module. All methods may be called from any thread; none of them waits for the disk
/// except `commit`, `keep_checkpoint` and `drop_checkpoint`.
pub struct Store {
    files: Vec<DataFile>,
    spec: StoreSpec,
    medium: Box<dyn Medium>,
    table: Mutex<Table>,
    /// Held for a whole commit or change of checkpoints: one at a time.
    committing: Mutex<()>,
    // Held for its drop, after the medium's: the exclusive lock on the folder.
    _lock: Option<File>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("files", &self.files).finish_non_exhaustive()
    }
}

impl Store {
    /// The data files, for the io service.
    pub fn files(&self) -> Vec<DataFile> {
        self.files.clone()
    }

    pub fn spec(&self) -> &StoreSpec {
        &self.spec
    }

    /// The last committed step; `None` before the first commit.
    pub fn committed(&self) -> Option<Step> {
        self.table().committed
    }

    /// Where `version` of a block is to be written: the slot of its uncommitted version, or a
    /// fresh one. Scratch blocks keep one slot until they are dropped.
    ///
    /// # Errors
    /// `Busy` if every slot is held until the running commit has ended; `Bug` for a version that
    /// is committed, or older than one that was written.
    pub fn place(&self, block: BlockId, version: Step) -> Result<Extent> {
        self.table().place(block, version)
    }

    /// The write to the placed extent has ended: `crc` is the CRC32C of its bytes, `applied` the
    /// last optimizer step that it contains.
    ///
    /// # Errors
    /// `Bug` without a place for that version, `Io` from the index.
    pub fn written(&self, block: BlockId, version: Step, crc: u32, applied: Step) -> Result<()> {
        // The index changes under the table's lock, so that a commit sees both or neither.
        let mut table = self.table();
        let Some(change) = table.written(block, version, crc, applied)? else { return Ok(()) };
        if let Some(old) = change.replaced {
            self.medium.remove(&BlockRecord::key(block, old))?;
        }
        self.medium.insert(&BlockRecord::key(block, version), &change.record.value())
    }

    /// The newest version of a block; `None` if it was never written.
    ///
    /// # Errors
    /// `Bug` while it is being written.
    pub fn locate(&self, block: BlockId) -> Result<Option<Located>> {
        self.table().locate(block)
    }

    /// Compares the checksum of what was read with that of what was written.
    ///
    /// # Errors
    /// `Corrupt`, naming block, file and offset.
    pub fn verify_crc(&self, block: BlockId, located: &Located, crc: u32) -> Result<()> {
        if crc == located.crc { Ok(()) } else { self.expected(block, located).verify(crc) }
    }

    /// For whoever compares the checksum of what was read later.
    pub fn expected(&self, block: BlockId, located: &Located) -> Expected {
        let file = self.files.iter().find(|file| file.id == located.extent.file);
        let file = file.map(|file| file.path.clone()).unwrap_or_default();
        Expected::new(block, file, *located)
    }

    /// Frees the slot of a scratch block; nothing if it has none.
    ///
    /// # Errors
    /// `Bug` for a durable block.
    pub fn drop_scratch(&self, block: BlockId) -> Result<()> {
        self.table().drop_scratch(block)
    }

    /// Announces the commit of `step`: from now on a later version of a block goes to a slot of
    /// its own, so that the next step may write while this one is being committed. Without it,
    /// nothing of a later step may be written before [`Store::commit`] is called.
    ///
    /// # Errors
    /// `Bug` if the step is not newer than the last commit, or is partly overwritten already.
    pub fn prepare_commit(&self, step: Step) -> Result<()> {
        self.table().seal(step)
    }

    /// Makes `step` durable, with `meta` beside it. Every block of it was written before.
    ///
    /// # Errors
    /// `Io` if syncing fails: then the last commit stands. `Bug` for a block still being written.
    pub fn commit(&self, step: Step, meta: &[u8]) -> Result<()> {
        let _exclusive = self.exclusive();
        let (record, files, last) = {
            let mut table = self.table();
            table.seal(step)?;
            table.require_written(step)?;
            let files: Vec<FileId> = std::mem::take(&mut table.unsynced).into_iter().collect();
            (summary(&table, step, meta), files, table.committed)
        };
        let result = commit::commit(self.medium.as_ref(), &files, &record, meta);
        let mut table = self.table();
        if let Err(e) = result {
            table.unsynced.extend(files);
            table.unseal();
            return Err(e.with("committing", step));
        }
        table.commit(step);
        if let Some(last) = last {
            self.forget_meta(&table, last)?;
        }
        self.release(&mut table)
    }

    /// Frees the slots of versions that nothing refers to.
    fn release(&self, table: &mut Table) -> Result<()> {
        for (block, version) in table.superseded() {
            table.forget(block, version);
            self.medium.remove(&BlockRecord::key(block, version))?;
        }
        Ok(())
    }

    fn forget_meta(&self, table: &Table, step: Step) -> Result<()> {
        let needed = table.committed == Some(step) || table.kept.values().any(|kept| *kept == step);
        if needed { Ok(()) } else { self.medium.remove(&meta_key(step)) }
    }

    /// What was committed beside the blocks; empty before the first commit.
    pub fn meta(&self) -> Result<Vec<u8>> {
        match self.committed() {
            Some(step) => Ok(self.medium.get(&meta_key(step))?.unwrap_or_default()),
            None => Ok(Vec::new()),
        }
    }

    /// Bytes of all data files, of their slots that are free, and of scratch.
    pub(super) fn usage(&self) -> Vec<(Part, u64, u64, u64)> {
        let table = self.table();
        let classes = table.classes.iter();
        classes
            .map(|class| (class.part, class.slot_bytes, class.slots, class.free_slots()))
            .collect()
    }

    /// Makes the removal of unreachable index entries durable.
    pub(super) fn settle_index(&self) -> Result<()> {
        let _exclusive = self.exclusive();
        self.medium.flush(Barrier::Drop)?;
        self.medium.sync(Barrier::Drop)
    }
}

/// What a commit of `step` holds, as the table has it.
fn summary(table: &Table, step: Step, meta: &[u8]) -> CommitRecord {
    let mut record = CommitRecord { step, blocks: 0, digest: 0, meta_crc: checksum::crc32c(meta) };
    for (block, Located { extent, version, crc, applied }) in table.as_of(step) {
        let entry = BlockRecord { block, version, extent, crc, applied };
        let low = checksum::crc32c_append(
            checksum::crc32c(&entry.value()),
            &BlockRecord::key(block, version),
        );
        let high = checksum::crc32c(&entry.value()[..30]);
        record.blocks += 1;
        record.digest = record.digest.wrapping_add(u64::from(high) << 32 | u64::from(low));
    }
    record
}

fn validate(spec: &StoreSpec) -> Result<()> {
    for (at, class) in spec.classes.iter().enumerate() {
        if spec.classes[..at].iter().any(|other| other.part == class.part) {
            return Err(Error::bug("a store's spec names a part twice")
                .with("part", format!("{:?}", class.part)));
        }
        let (slot_bytes, slots) = table::slots_of(spec, class);
        if (slot_bytes == 0 && slots > 0)
            || slot_bytes.checked_mul(slots).is_none_or(|n| n > i64::MAX as u64)
        {
            return Err(Error::config("a store's blocks have an impossible size")
                .with("part", format!("{:?}", class.part))
                .with("block_bytes", class.block_bytes)
                .with("blocks", class.blocks));
        }
    }
    Ok(())
}

/// The data files of a store, by their place in the spec.
fn data_files(dir: &Path, spec: &StoreSpec) -> Vec<DataFile> {
    let name = |part| match part {
        Part::Weights => "weights.dat",
        Part::State => "state.dat",
        Part::Grad => "grad.dat",
        Part::Dense => "dense.dat",
        Part::Activation => "activation.dat",
    };
    let classes = spec.classes.iter().enumerate();
    classes
        .map(|(index, class)| {
            let (slot_bytes, slots) = table::slots_of(spec, class);
            let path = dir.join(name(class.part));
            DataFile { id: FileId(index as u16), path, len: slot_bytes * slots, read_only: false }
        })
        .filter(|file| file.len > 0)
        .collect()
}

fn lock(dir: &Path) -> Result<File> {
    let path = dir.join(LOCK);
    let cannot = |e| Error::io(format!("cannot lock {}", path.display()), e);
    let file = OpenOptions::new().create(true).append(true).open(&path).map_err(cannot)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Error::new(
            ErrorKind::Busy,
            format!(
                "the store {} is open elsewhere: wait for the other run, or stop it",
                dir.display()
            ),
        )),
        Err(TryLockError::Error(e)) => Err(cannot(e)),
    }
}

fn read_manifest(dir: &Path) -> Result<StoreSpec> {
    let path = dir.join(MANIFEST);
    let text = std::fs::read(&path)
        .map_err(|e| Error::io(format!("cannot read {}", path.display()), e))?;
    let manifest: Manifest = serde_json::from_slice(&text).map_err(|e| {
        Error::corrupt(format!("{} is damaged; restore it from a copy", path.display()))
            .from_source(e)
    })?;
    if manifest.format != FORMAT {
        return Err(Error::input(format!(
            "{} has format {}, and this program reads format {FORMAT}",
            path.display(),
            manifest.format
        )));
    }
    validate(&manifest.spec)?;
    Ok(manifest.spec)
}

/// Written beside, synced and renamed, so that it is there whole or not at all.
fn write_manifest(dir: &Path, spec: &StoreSpec) -> Result<()> {
    let beside: PathBuf = dir.join("store.json.new");
    let cannot = |e| Error::io(format!("cannot write {}", beside.display()), e);
    let manifest = Manifest { format: FORMAT, spec: spec.clone() };
    let text = serde_json::to_vec_pretty(&manifest)
        .map_err(|e| Error::bug("the store's spec cannot be written").from_source(e))?;
    std::fs::write(&beside, text).map_err(cannot)?;
    File::open(&beside).and_then(|file| file.sync_all()).map_err(cannot)?;
    std::fs::rename(&beside, dir.join(MANIFEST)).map_err(cannot)?;
    let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty());
    for folder in [Some(dir), parent].into_iter().flatten() {
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(cannot)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
