//! The order of a commit, over anything that can write and sync: files, or a recording twin.
//!
//! Law 7: whatever a power cut leaves of the unsynced writes, the store opens at its last commit.
//!
//! ```text
//! data of every block written ─► fdatasync ─► meta ─► flush, sync (Barrier::Entries)
//!                       ─► commit record ─► flush, sync (Barrier::Commit) ─► old slots are free
//! ```

use super::disk::FileId;
use super::index::{COMMIT_KEY, SledIndex, array, keep_key, meta_key};
use crate::base::{Error, Result, Step, checksum};
use std::fs::File;

/// The points at which index changes must be durable before the work goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Barrier {
    /// Every entry of a commit, before the record that makes them valid.
    Entries,
    /// The commit record, before the slots that it supersedes are reused.
    Commit,
    /// A checkpoint's name, before the next commit would free its slots.
    Keep,
    /// A checkpoint's end, before its slots are reused.
    Drop,
}

impl Barrier {
    pub const ALL: [Self; 4] = [Self::Entries, Self::Commit, Self::Keep, Self::Drop];
}

/// What a store stands on: data files that can be synced, and an ordered map whose changes are
/// durable once flushed and then synced.
pub trait Medium: Send + Sync {
    /// Makes the finished writes to a data file durable.
    fn sync_data(&self, file: FileId) -> Result<()>;
    fn insert(&self, key: &[u8], value: &[u8]) -> Result<()>;
    fn remove(&self, key: &[u8]) -> Result<()>;
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>>;
    /// Every key with its value.
    fn scan(&self) -> Result<Vec<(Vec<u8>, Vec<u8>)>>;
    /// Hands the index changes to the operating system.
    fn flush(&self, barrier: Barrier) -> Result<()>;
    /// Makes durable what was flushed.
    fn sync(&self, barrier: Barrier) -> Result<()>;
}

/// Real files: sled for the index, one handle per data file.
#[derive(Debug)]
pub(super) struct FileMedium {
    pub index: SledIndex,
    pub files: Vec<(FileId, File)>,
}

impl Medium for FileMedium {
    fn sync_data(&self, id: FileId) -> Result<()> {
        let Some((_, file)) = self.files.iter().find(|(other, _)| *other == id) else {
            return Err(Error::bug("a data file is synced that the store does not have"));
        };
        file.sync_data().map_err(|e| Error::io("cannot sync a data file", e).with("file", id.0))
    }

    fn insert(&self, key: &[u8], value: &[u8]) -> Result<()> {
        self.index.insert(key, value)
    }

    fn remove(&self, key: &[u8]) -> Result<()> {
        self.index.remove(key)
    }

    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        self.index.get(key)
    }

    fn scan(&self) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        self.index.scan()
    }

    fn flush(&self, _: Barrier) -> Result<()> {
        self.index.flush()
    }

    fn sync(&self, _: Barrier) -> Result<()> {
        self.index.sync()
    }
}

/// What a commit promises: so many blocks, with these entries and this meta.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct CommitRecord {
    pub step: Step,
    /// Blocks of the committed state.
    pub blocks: u64,
    /// Wrapping sum over the blocks of a hash of key and entry: whatever their order.
    pub digest: u64,
    pub meta_crc: u32,
}

const RECORD_LEN: usize = 32;

impl CommitRecord {
    pub fn bytes(&self) -> [u8; RECORD_LEN] {
        let mut out = [0; RECORD_LEN];
        out[0..8].copy_from_slice(&self.step.to_le_bytes());
        out[8..16].copy_from_slice(&self.blocks.to_le_bytes());
        out[16..24].copy_from_slice(&self.digest.to_le_bytes());
        out[24..28].copy_from_slice(&self.meta_crc.to_le_bytes());
        let own = checksum::crc32c(&out[..28]);
        out[28..].copy_from_slice(&own.to_le_bytes());
        out
    }

    /// # Errors
    /// `Corrupt` for a record that is not what was written.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let sound = bytes.len() == RECORD_LEN
            && checksum::crc32c(&bytes[..28]) == u32::from_le_bytes(array(&bytes[28..]));
        if !sound {
            let what = "a commit record of the index is damaged; restore the store from a copy";
            return Err(Error::corrupt(what));
        }
        Ok(Self {
            step: u64::from_le_bytes(array(&bytes[0..8])),
            blocks: u64::from_le_bytes(array(&bytes[8..16])),
            digest: u64::from_le_bytes(array(&bytes[16..24])),
            meta_crc: u32::from_le_bytes(array(&bytes[24..28])),
        })
    }
}

fn barrier(medium: &dyn Medium, at: Barrier) -> Result<()> {
    medium.flush(at)?;
    medium.sync(at)
}

/// Makes a commit durable. Its blocks are written and their entries inserted; `files` are the
/// data files written since they were last synced.
pub(super) fn commit(
    medium: &dyn Medium,
    files: &[FileId],
    record: &CommitRecord,
    meta: &[u8],
) -> Result<()> {
    for file in files {
        medium.sync_data(*file)?;
    }
    medium.insert(&meta_key(record.step), meta)?;
    barrier(medium, Barrier::Entries)?;
    medium.insert(COMMIT_KEY, &record.bytes())?;
    barrier(medium, Barrier::Commit)
}

/// Gives the commit of `record` a name, durably.
pub(super) fn keep(medium: &dyn Medium, name: &str, record: &CommitRecord) -> Result<()> {
    medium.insert(&keep_key(name), &record.bytes())?;
    barrier(medium, Barrier::Keep)
}

/// Makes an older commit the last one again, durably.
pub(super) fn roll_back(medium: &dyn Medium, record: &CommitRecord) -> Result<()> {
    medium.insert(COMMIT_KEY, &record.bytes())?;
    barrier(medium, Barrier::Commit)
}

/// Takes a name away, durably.
pub(super) fn unkeep(medium: &dyn Medium, name: &str) -> Result<()> {
    medium.remove(&keep_key(name))?;
    barrier(medium, Barrier::Drop)
}
