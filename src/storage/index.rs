//! The index of a store: which slot holds which version of a block. sled behind one small trait.
//!
//! Law: nothing here is durable before [`SledIndex::flush`] and then [`SledIndex::sync`] returned;
//! sled's own flush ends in sync_file_range, which a power cut undoes.

use super::disk::{Extent, FileId};
use crate::base::behind::give_back;
use crate::base::{BlockId, Error, ErrorKind, Part, Result, Step, checksum};
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

/// The key under which the last commit stands.
pub(super) const COMMIT_KEY: &[u8] = b"commit";

/// The key of a commit's small data.
pub(super) fn meta_key(step: Step) -> Vec<u8> {
    [b"meta/".as_slice(), &step.to_be_bytes()].concat()
}

/// The key of a named checkpoint.
pub(super) fn keep_key(name: &str) -> Vec<u8> {
    [b"keep/", name.as_bytes()].concat()
}

/// Where one version of a block lies, as the index keeps it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BlockRecord {
    pub block: BlockId,
    pub version: Step,
    pub extent: Extent,
    /// CRC32C of the extent's bytes.
    pub crc: u32,
    /// The last optimizer step that the block contains.
    pub applied: Step,
}

const BLOCK_PREFIX: u8 = b'b';
const KEY_LEN: usize = 14;
const VALUE_LEN: usize = 34;

impl BlockRecord {
    pub fn key(block: BlockId, version: Step) -> [u8; KEY_LEN] {
        let mut key = [0; KEY_LEN];
        key[0] = BLOCK_PREFIX;
        key[1..3].copy_from_slice(&block.layer.to_be_bytes());
        key[3..5].copy_from_slice(&block.expert.to_be_bytes());
        key[5] = block.part as u8;
        key[6..14].copy_from_slice(&version.to_be_bytes());
        key
    }

    /// Little-endian fields, then the CRC32C of key and fields.
    pub fn value(&self) -> [u8; VALUE_LEN] {
        let mut value = [0; VALUE_LEN];
        value[0..2].copy_from_slice(&self.extent.file.0.to_le_bytes());
        value[2..10].copy_from_slice(&self.extent.offset.to_le_bytes());
        value[10..18].copy_from_slice(&self.extent.len.to_le_bytes());
        value[18..22].copy_from_slice(&self.crc.to_le_bytes());
        value[22..30].copy_from_slice(&self.applied.to_le_bytes());
        let own = self.checksum(&value[..30]);
        value[30..].copy_from_slice(&own.to_le_bytes());
        value
    }

    fn checksum(&self, fields: &[u8]) -> u32 {
        checksum::crc32c_append(checksum::crc32c(&Self::key(self.block, self.version)), fields)
    }

    pub fn is_block_key(key: &[u8]) -> bool {
        key.first() == Some(&BLOCK_PREFIX) && key.len() == KEY_LEN
    }

    /// # Errors
    /// `Corrupt` for an entry that is not what was written.
    pub fn parse(key: &[u8], value: &[u8]) -> Result<Self> {
        let bad = || {
            Error::corrupt("an index entry is damaged; restore the store from a copy")
                .with("key", format!("{key:02x?}"))
        };
        let part = |at: u8| Part::ALL.into_iter().find(|part| *part as u8 == at);
        if key.len() != KEY_LEN || value.len() != VALUE_LEN {
            return Err(bad());
        }
        let block = BlockId {
            layer: u16::from_be_bytes([key[1], key[2]]),
            expert: u16::from_be_bytes([key[3], key[4]]),
            part: part(key[5]).ok_or_else(bad)?,
        };
        let record = Self {
            block,
            version: u64::from_be_bytes(array(&key[6..14])),
            extent: Extent {
                file: FileId(u16::from_le_bytes([value[0], value[1]])),
                offset: u64::from_le_bytes(array(&value[2..10])),
                len: u64::from_le_bytes(array(&value[10..18])),
            },
            crc: u32::from_le_bytes(array(&value[18..22])),
            applied: u64::from_le_bytes(array(&value[22..30])),
        };
        let own = u32::from_le_bytes(array(&value[30..34]));
        if own != record.checksum(&value[..30]) { Err(bad()) } else { Ok(record) }
    }
}

/// The first N bytes of a slice that has them.
pub(super) fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[..N]);
    out
}

/// sled 0.34 in a folder of its own.
pub struct SledIndex {
    db: sled::Db,
    dir: PathBuf,
}

impl std::fmt::Debug for SledIndex {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SledIndex").field("dir", &self.dir).finish_non_exhaustive()
    }
}

impl SledIndex {
    /// Opens the index in `dir`, creating it if it is not there. Its page cache holds at most
    /// `cache_bytes`; nothing is written behind our back.
    ///
    /// # Errors
    /// `Corrupt` if sled finds its files damaged, `Io` otherwise.
    pub fn open(dir: &Path, cache_bytes: u64) -> Result<Self> {
        let config = sled::Config::new().path(dir).cache_capacity(cache_bytes).flush_every_ms(None);
        discard_unfinished(dir)
            .map_err(|e| Error::io("cannot clear the index", e).with("path", dir.display()))?;
        // sled asserts some of what it reads: a damaged file must not end the program.
        let opened = open_patiently(&config);
        let damaged = || {
            Error::corrupt("the index is damaged; restore the store from a copy")
                .with("path", dir.display())
        };
        match opened {
            Ok(Ok(db)) => Ok(Self { db, dir: dir.to_owned() }),
            Ok(Err(sled::Error::Corruption { .. } | sled::Error::ReportableBug(_))) | Err(_) => {
                Err(damaged())
            }
            Ok(Err(e)) => Err(failed("opening", dir, e)),
        }
    }

    /// Every file that sled keeps, and the folders that name them.
    fn paths(&self) -> std::io::Result<Vec<PathBuf>> {
        let mut paths = Vec::new();
        let mut folders = vec![self.dir.clone()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(&folder)? {
                let entry = entry?;
                match entry.file_type()? {
                    kind if kind.is_dir() => folders.push(entry.path()),
                    _ => paths.push(entry.path()),
                }
            }
            paths.push(folder);
        }
        Ok(paths)
    }
}

/// Removes snapshots that were not written to their end: sled takes one for a damaged snapshot,
/// though the one before it is still there. A kill or a full disk while the index was being opened
/// leaves them.
fn discard_unfinished(dir: &Path) -> std::io::Result<()> {
    let entries = match std::fs::read_dir(dir) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "generating") {
            std::fs::remove_file(path)?;
        }
    }
    Ok(())
}

/// sled lets go of its lock a moment after it was closed, on a thread of its own. The store's lock
/// is ours by now, so nobody else can be in the folder.
fn open_patiently(config: &sled::Config) -> std::thread::Result<sled::Result<sled::Db>> {
    let begun = std::time::Instant::now();
    loop {
        let opened = catch_unwind(AssertUnwindSafe(|| config.open()));
        let locked = matches!(&opened, Ok(Err(sled::Error::Io(e)))
            if e.kind() == std::io::ErrorKind::WouldBlock || e.to_string().contains("acquire lock"));
        if !locked || begun.elapsed().as_secs() >= 10 {
            return opened;
        }
        std::thread::yield_now();
    }
}

fn failed(doing: &str, dir: &Path, e: sled::Error) -> Error {
    let doing = format!("{doing} the index failed");
    let error = match e {
        sled::Error::Io(e) => Error::io(doing, e),
        e => Error::new(ErrorKind::Io, doing).from_source(e),
    };
    error.with("path", dir.display())
}

// All errors are `Io`, naming the index's folder.
impl SledIndex {
    pub fn insert(&self, key: &[u8], value: &[u8]) -> Result<()> {
        self.db.insert(key, value).map(drop).map_err(|e| failed("writing", &self.dir, e))
    }

    pub fn remove(&self, key: &[u8]) -> Result<()> {
        self.db.remove(key).map(drop).map_err(|e| failed("writing", &self.dir, e))
    }

    pub fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        let found = self.db.get(key).map_err(|e| failed("reading", &self.dir, e))?;
        Ok(found.map(|value| value.to_vec()))
    }

    /// Every key with its value, in the order of keys.
    pub fn scan(&self) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        self.db
            .iter()
            .map(|entry| entry.map(|(key, value)| (key.to_vec(), value.to_vec())))
            .collect::<Result<_, _>>()
            .map_err(|e| failed("reading", &self.dir, e))
    }

    /// Hands all changes to the operating system.
    pub fn flush(&self) -> Result<()> {
        self.db.flush().map(drop).map_err(|e| failed("flushing", &self.dir, e))
    }

    /// Makes durable what was flushed, and gives its page cache back.
    pub fn sync(&self) -> Result<()> {
        let cannot = |e| Error::io("cannot sync the index", e).with("path", self.dir.display());
        for path in self.paths().map_err(cannot)? {
            let file = match File::open(&path) {
                Ok(file) => file,
                // sled may have removed a file that it no longer needs.
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
                Err(e) => return Err(cannot(e)),
            };
            file.sync_data().map_err(cannot)?;
            give_back(&file, None);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_round_trip_and_show_damage() {
        let record = BlockRecord {
            block: BlockId::state(3, 700),
            version: 12,
            extent: Extent { file: FileId(1), offset: 1 << 40, len: 8192 },
            crc: 0xdead_beef,
            applied: 11,
        };
        let key = BlockRecord::key(record.block, record.version);
        let mut value = record.value();
        assert_eq!(BlockRecord::parse(&key, &value).unwrap(), record);
        value[7] ^= 4;
        assert!(BlockRecord::parse(&key, &value).is_err());
        let other = BlockRecord::key(record.block, 13);
        assert!(BlockRecord::parse(&other, &record.value()).is_err());
    }

    #[test]
    fn the_index_survives_reopening() {
        let dir = tempfile::tempdir().unwrap();
        let index = SledIndex::open(dir.path(), 1 << 20).unwrap();
        index.insert(b"a", b"1").unwrap();
        index.insert(b"b", b"2").unwrap();
        index.remove(b"a").unwrap();
        index.flush().unwrap();
        index.sync().unwrap();
        drop(index);
        // As a kill or a full disk leaves it when it comes while sled is opening.
        std::fs::write(dir.path().join("snap.00000000FFFFFFFF.generating"), b"").unwrap();
        let index = SledIndex::open(dir.path(), 1 << 20).unwrap();
        assert_eq!(index.scan().unwrap(), [(b"b".to_vec(), b"2".to_vec())]);
        assert_eq!(index.get(b"b").unwrap(), Some(b"2".to_vec()));
    }
}
