//! A twin of data files and index that records what is written and synced, and shows what a
//! power cut at any moment may leave of it.
//!
//! Law 7's witness. The model is harsher than a disk: of what was not synced, every write and
//! every index change survives, vanishes or (a write) survives in some of its sectors, each by
//! its own and in any order; an index change that was not flushed is not reached by a sync.

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
    Write { file: FileId, offset: u64, bytes: Vec<u8> },
    SyncData(FileId),
    Insert { key: Vec<u8>, value: Vec<u8> },
    Remove { key: Vec<u8> },
    Flush,
    Sync,
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

    fn write(&mut self, file: FileId, offset: u64, bytes: &[u8], survives: impl Fn(u64) -> bool) {
        for (nth, sector) in bytes.as_chunks::<SECTOR>().0.iter().enumerate() {
            if survives(nth as u64) {
                self.sectors.insert((file, offset / SECTOR as u64 + nth as u64), *sector);
            }
        }
    }

    fn change(&mut self, effect: &Effect) {
        match effect {
            Effect::Insert { key, value } => {
                self.index.insert(key.clone(), value.clone());
            }
            Effect::Remove { key } => {
                self.index.remove(key);
            }
            _ => {}
        }
    }
}

/// What a power cut does to the unsynced effects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// None survives.
    Dropped,
    /// All survive, in order.
    Kept,
    /// Each survives, vanishes or tears, in an order of the seed's choice.
    Seeded(u64),
}

/// What lies on the disk after `log` happened to `base` and the power went.
pub fn after_power_cut(base: &Image, log: &[Effect], fate: Fate) -> Image {
    let mut image = base.clone();
    let mut writes: Vec<&Effect> = Vec::new();
    // Index changes that are not durable; those before `flushed` are within a sync's reach.
    let mut changes: Vec<&Effect> = Vec::new();
    let mut flushed = 0;
    for effect in log {
        match effect {
            Effect::Write { .. } => writes.push(effect),
            Effect::SyncData(synced) => writes.retain(|write| match write {
                Effect::Write { file, offset, bytes } if file == synced => {
                    image.write(*file, *offset, bytes, |_| true);
                    false
                }
                _ => true,
            }),
            Effect::Insert { .. } | Effect::Remove { .. } => changes.push(effect),
            Effect::Flush => flushed = changes.len(),
            Effect::Sync => {
                changes.drain(..flushed).for_each(|change| image.change(change));
                flushed = 0;
            }
        }
    }
    let mut left = writes;
    left.extend(changes);
    match fate {
        Fate::Dropped => left.clear(),
        Fate::Kept => {}
        Fate::Seeded(seed) => shuffle(&mut left, seed),
    }
    for (nth, effect) in left.into_iter().enumerate() {
        let chance = match fate {
            Fate::Seeded(seed) => scramble(seed.wrapping_add(scramble(nth as u64))),
            _ => 0,
        };
        match (effect, chance % 3) {
            // Whole, gone, or torn for a write; whole or gone for an index change.
            (Effect::Write { file, offset, bytes }, 0) => {
                image.write(*file, *offset, bytes, |_| true);
            }
            (Effect::Write { file, offset, bytes }, 1) => {
                image.write(*file, *offset, bytes, |at| scramble(chance ^ at) & 1 == 0);
            }
            (_, 0) => image.change(effect),
            (_, _) => {}
        }
    }
    image
}

fn shuffle(effects: &mut [&Effect], seed: u64) {
    for at in (1..effects.len()).rev() {
        let other = scramble(seed ^ (at as u64).rotate_left(32)) % (at as u64 + 1);
        effects.swap(at, other as usize);
    }
}

#[derive(Debug, Default)]
struct Recording {
    base: Image,
    log: Vec<Effect>,
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
        let recording = Recording { base, log: Vec::new(), live, omit };
        Self { recording: Arc::new(Mutex::new(recording)) }
    }

    fn lock(&self) -> MutexGuard<'_, Recording> {
        self.recording.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, effect: Effect) {
        self.lock().log.push(effect);
    }

    /// A finished write of a data file.
    pub fn write(&self, extent: Extent, bytes: Vec<u8>) {
        self.push(Effect::Write { file: extent.file, offset: extent.offset, bytes });
    }

    /// Effects so far.
    pub fn len(&self) -> usize {
        self.lock().log.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What a power cut after the first `effects` effects leaves.
    pub fn after_power_cut(&self, effects: usize, fate: Fate) -> Image {
        let recording = self.lock();
        after_power_cut(&recording.base, &recording.log[..effects], fate)
    }
}

impl Medium for Recorder {
    fn sync_data(&self, file: FileId) -> Result<()> {
        if self.lock().omit != Some(Omission::SyncData(file)) {
            self.push(Effect::SyncData(file));
        }
        Ok(())
    }

    fn insert(&self, key: &[u8], value: &[u8]) -> Result<()> {
        self.lock().live.insert(key.to_vec(), value.to_vec());
        self.push(Effect::Insert { key: key.to_vec(), value: value.to_vec() });
        Ok(())
    }

    fn remove(&self, key: &[u8]) -> Result<()> {
        self.lock().live.remove(key);
        self.push(Effect::Remove { key: key.to_vec() });
        Ok(())
    }

    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        Ok(self.lock().live.get(key).cloned())
    }

    fn scan(&self) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        Ok(self.lock().live.iter().map(|(key, value)| (key.clone(), value.clone())).collect())
    }

    fn flush(&self, barrier: Barrier) -> Result<()> {
        if self.lock().omit != Some(Omission::Flush(barrier)) {
            self.push(Effect::Flush);
        }
        Ok(())
    }

    fn sync(&self, barrier: Barrier) -> Result<()> {
        if self.lock().omit != Some(Omission::Sync(barrier)) {
            self.push(Effect::Sync);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_synced_survives_and_the_rest_may_tear() {
        let file = FileId(0);
        let recorder = Recorder::default();
        recorder.write(Extent { file, offset: 0, len: 4096 }, vec![1; 4096]);
        recorder.sync_data(file).unwrap();
        recorder.write(Extent { file, offset: 0, len: 4096 }, vec![2; 4096]);
        recorder.insert(b"k", b"v").unwrap();
        recorder.sync(Barrier::Commit).unwrap();
        let extent = Extent { file, offset: 0, len: 4096 };
        let dropped = recorder.after_power_cut(recorder.len(), Fate::Dropped);
        assert_eq!(dropped.read(extent), vec![1; 4096]);
        assert!(dropped.index.is_empty(), "a sync without a flush reaches nothing");
        let kept = recorder.after_power_cut(recorder.len(), Fate::Kept);
        assert_eq!(kept.read(extent), vec![2; 4096]);
        let torn = (0..20)
            .map(|seed| recorder.after_power_cut(recorder.len(), Fate::Seeded(seed)).read(extent));
        assert!(torn.into_iter().any(|bytes| bytes.contains(&1) && bytes.contains(&2)));
    }
}
