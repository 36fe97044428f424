//! A twin of data files and index that records what is written and synced, and shows what a
//! power cut at any moment may leave of it.
//!
//! Law 7's witness. The model is harsher than a disk: of what was not synced, every write and
//! every index change survives, vanishes or (a write) survives in some of its sectors, each by
//! its own and in any order; a write may survive from its beginning and is within a sync's reach
//! from its end; an index change that was not flushed is not reached by a sync.

use super::commit::{Barrier, Medium};
use super::disk::faulty::scramble;
use super::disk::{Extent, FileId};
use crate::base::Result;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What a disk writes whole or not at all.
pub const SECTOR: usize = 512;

/// Something that happened to the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// A write of a data file is under way; the number names it.
    Begin(u64, Write),
    /// It has ended.
    End(u64),
    SyncData(FileId),
    Change(Change),
    Flush,
    Sync,
}

/// Bytes on their way to a data file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Write {
    pub file: FileId,
    pub offset: u64,
    pub bytes: Arc<[u8]>,
}

/// A change of the index: a key with its new value, or with none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    pub key: Vec<u8>,
    pub value: Option<Vec<u8>>,
}

/// A call that the recorder leaves out: a mutation of the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Omission {
    SyncData(FileId),
    Flush(Barrier),
    Sync(Barrier),
}

/// What lies on a disk.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Image {
    sectors: HashMap<(FileId, u64), [u8; SECTOR]>,
    index: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Image {
    /// The bytes of an extent; what was never written reads as zeros.
    pub fn read(&self, extent: Extent) -> Vec<u8> {
        let first = extent.offset / SECTOR as u64;
        let count = extent.len / SECTOR as u64;
        let sector = |at| self.sectors.get(&(extent.file, at)).copied().unwrap_or([0; SECTOR]);
        (first..first + count).flat_map(sector).collect()
    }

    fn write(&mut self, write: &Write, survives: impl Fn(u64) -> bool) {
        let first = write.offset / SECTOR as u64;
        for (nth, sector) in write.bytes.as_chunks::<SECTOR>().0.iter().enumerate() {
            if survives(nth as u64) {
                self.sectors.insert((write.file, first + nth as u64), *sector);
            }
        }
    }

    fn change(&mut self, change: &Change) {
        match &change.value {
            Some(value) => self.index.insert(change.key.clone(), value.clone()),
            None => self.index.remove(&change.key),
        };
    }
}

/// What a power cut does to the effects that are not durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// None survives.
    Dropped,
    /// All survive, in order.
    Kept,
    /// Each survives, vanishes or tears, in an order of the seed's choice.
    Seeded(u64),
}

/// A disk to which effects happen one after the other.
#[derive(Debug, Clone)]
pub struct Disk {
    durable: Image,
    /// Writes that no sync has reached: number, whether it has ended, bytes.
    writes: Vec<(u64, bool, Write)>,
    /// Index changes that no sync has reached; those before `flushed` are within its reach.
    changes: Vec<Change>,
    flushed: usize,
}

/// What a power cut decides about.
enum Loose<'a> {
    Write(&'a Write),
    Change(&'a Change),
}

impl Disk {
    pub fn new(base: Image) -> Self {
        Self { durable: base, writes: Vec::new(), changes: Vec::new(), flushed: 0 }
    }

    pub fn happen(&mut self, effect: &Effect) {
        match effect {
            Effect::Begin(number, write) => self.writes.push((*number, false, write.clone())),
            Effect::End(number) => {
                for write in self.writes.iter_mut().filter(|write| write.0 == *number) {
                    write.1 = true;
                }
            }
            Effect::SyncData(file) => {
                let durable = &mut self.durable;
                self.writes.retain(|(_, ended, write)| {
                    let reached = *ended && write.file == *file;
                    if reached {
                        durable.write(write, |_| true);
                    }
                    !reached
                });
            }
            Effect::Change(change) => self.changes.push(change.clone()),
            Effect::Flush => self.flushed = self.changes.len(),
            Effect::Sync => {
                for change in self.changes.drain(..self.flushed) {
                    self.durable.change(&change);
                }
                self.flushed = 0;
            }
        }
    }

    /// What lies on the disk if the power goes now.
    pub fn after_power_cut(&self, fate: Fate) -> Image {
        let mut image = self.durable.clone();
        let writes = self.writes.iter().map(|(_, _, write)| Loose::Write(write));
        let mut loose: Vec<Loose> = writes.chain(self.changes.iter().map(Loose::Change)).collect();
        match fate {
            Fate::Dropped => loose.clear(),
            Fate::Kept => {}
            Fate::Seeded(seed) => shuffle(&mut loose, seed),
        }
        for (nth, effect) in loose.into_iter().enumerate() {
            let chance = match fate {
                Fate::Seeded(seed) => scramble(seed.wrapping_add(scramble(nth as u64))),
                _ => 0,
            };
            // Whole, torn (a write) or gone.
            match (effect, chance % 3) {
                (Loose::Write(write), 0) => image.write(write, |_| true),
                (Loose::Write(write), 1) => {
                    image.write(write, |at| scramble(chance ^ at) & 1 == 0);
                }
                (Loose::Change(change), 0) => image.change(change),
                (_, _) => {}
            }
        }
        image
    }
}

fn shuffle(effects: &mut [Loose<'_>], seed: u64) {
    for at in (1..effects.len()).rev() {
        let other = scramble(seed ^ (at as u64).rotate_left(32)) % (at as u64 + 1);
        effects.swap(at, other as usize);
    }
}

#[derive(Debug, Default)]
struct Recording {
    base: Image,
    log: Vec<Effect>,
    writes: u64,
    live: BTreeMap<Vec<u8>, Vec<u8>>,
    omit: Option<Omission>,
}

/// Records the effects of a store on its medium. Clones share the recording.
#[derive(Debug, Clone, Default)]
pub struct Recorder {
    recording: Arc<Mutex<Recording>>,
}

impl Recorder {
    /// A recorder over what lies on a disk, with one call left out if `omit` names one.
    pub fn over(base: Image, omit: Option<Omission>) -> Self {
        let live = base.index.clone();
        let recording = Recording { base, live, omit, ..Recording::default() };
        Self { recording: Arc::new(Mutex::new(recording)) }
    }

    fn lock(&self) -> MutexGuard<'_, Recording> {
        self.recording.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A write of a data file begins; returns its number.
    pub fn begin_write(&self, extent: Extent, bytes: &[u8]) -> u64 {
        let mut recording = self.lock();
        recording.writes += 1;
        let number = recording.writes;
        let write = Write { file: extent.file, offset: extent.offset, bytes: bytes.into() };
        recording.log.push(Effect::Begin(number, write));
        number
    }

    /// The write with this number has ended.
    pub fn end_write(&self, number: u64) {
        self.lock().log.push(Effect::End(number));
    }

    /// Effects so far.
    pub fn len(&self) -> usize {
        self.lock().log.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The disk before everything, and what happened to it since.
    pub fn recorded(&self) -> (Disk, Vec<Effect>) {
        let recording = self.lock();
        (Disk::new(recording.base.clone()), recording.log.clone())
    }

    fn change(&self, key: &[u8], value: Option<&[u8]>) {
        let mut recording = self.lock();
        match value {
            Some(value) => recording.live.insert(key.to_vec(), value.to_vec()),
            None => recording.live.remove(key),
        };
        let change = Change { key: key.to_vec(), value: value.map(<[u8]>::to_vec) };
        recording.log.push(Effect::Change(change));
    }

    fn unless(&self, omission: Omission, effect: Effect) {
        let mut recording = self.lock();
        if recording.omit != Some(omission) {
            recording.log.push(effect);
        }
    }
}

impl Medium for Recorder {
    fn sync_data(&self, file: FileId) -> Result<()> {
        self.unless(Omission::SyncData(file), Effect::SyncData(file));
        Ok(())
    }

    fn insert(&self, key: &[u8], value: &[u8]) -> Result<()> {
        self.change(key, Some(value));
        Ok(())
    }

    fn remove(&self, key: &[u8]) -> Result<()> {
        self.change(key, None);
        Ok(())
    }

    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        Ok(self.lock().live.get(key).cloned())
    }

    fn scan(&self) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        Ok(self.lock().live.iter().map(|(key, value)| (key.clone(), value.clone())).collect())
    }

    fn flush(&self, barrier: Barrier) -> Result<()> {
        self.unless(Omission::Flush(barrier), Effect::Flush);
        Ok(())
    }

    fn sync(&self, barrier: Barrier) -> Result<()> {
        self.unless(Omission::Sync(barrier), Effect::Sync);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_synced_survives_and_the_rest_may_tear() {
        let file = FileId(0);
        let extent = Extent { file, offset: 0, len: 4096 };
        let recorder = Recorder::default();
        let first = recorder.begin_write(extent, &[1; 4096]);
        recorder.end_write(first);
        recorder.begin_write(extent, &[2; 4096]);
        recorder.sync_data(file).unwrap();
        recorder.insert(b"k", b"v").unwrap();
        recorder.sync(Barrier::Commit).unwrap();
        let (mut disk, log) = recorder.recorded();
        log.iter().for_each(|effect| disk.happen(effect));
        let dropped = disk.after_power_cut(Fate::Dropped);
        assert_eq!(dropped.read(extent), vec![1; 4096], "a sync does not reach what has not ended");
        assert!(dropped.index.is_empty(), "a sync without a flush reaches nothing");
        let kept = disk.after_power_cut(Fate::Kept);
        assert_eq!(kept.read(extent), vec![2; 4096]);
        let torn = (0..20).map(|seed| disk.after_power_cut(Fate::Seeded(seed)).read(extent));
        assert!(torn.into_iter().any(|bytes| bytes.contains(&1) && bytes.contains(&2)));
    }
}
