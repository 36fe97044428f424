//! What a power cut leaves of files, from the calls that were made on them.
//!
//! The model is a journaling file system at its least: a folder's names change in the order of the
//! calls, and are durable once the folder is synced; of bytes and lengths that were not synced,
//! each write survives, vanishes, or survives in some of its sectors, each by its own.

use crate::file_calls::Call;
use crate::tiers_chance::Rng;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

const SECTOR: usize = 512;

/// A change of a file's bytes: where they go, or a new length.
#[derive(Debug, Clone)]
enum Edit {
    Write(u64, Vec<u8>),
    SetLen(u64),
}

#[derive(Debug, Default)]
struct File {
    /// Each with its name and whether a sync has reached it.
    edits: Vec<(u64, bool, Edit)>,
    /// Edits that had ended when a sync began, by the sync's name.
    ended: BTreeSet<u64>,
}

/// A change of names.
#[derive(Debug, Clone)]
enum Naming {
    Create(PathBuf, usize),
    Rename(PathBuf, PathBuf),
    Remove(PathBuf),
}

impl Naming {
    fn touches(&self, folder: &Path) -> bool {
        let inside = |path: &Path| path.parent() == Some(folder);
        match self {
            Self::Create(path, _) | Self::Remove(path) => inside(path),
            Self::Rename(from, to) => inside(from) || inside(to),
        }
    }

    fn happen(&self, names: &mut BTreeMap<PathBuf, usize>) {
        match self {
            Self::Create(path, file) => {
                names.insert(path.clone(), *file);
            }
            Self::Rename(from, to) => {
                if let Some(file) = names.remove(from) {
                    names.insert(to.clone(), file);
                }
            }
            Self::Remove(path) => {
                names.remove(path);
            }
        }
    }
}

/// How loose changes fare.
#[derive(Debug, Clone, Copy)]
pub enum Fate {
    Dropped,
    Kept,
    Seeded(u64),
}

/// The files after some calls.
#[derive(Debug, Default)]
pub struct Files {
    files: Vec<File>,
    /// As the running program sees them.
    live: BTreeMap<PathBuf, usize>,
    namings: Vec<(bool, Naming)>,
    /// What a sync under way will have reached.
    syncs: BTreeMap<u64, Reach>,
    /// Syncs of files that the test leaves out: a mutation.
    deaf: Option<fn(&Path) -> bool>,
}

#[derive(Debug)]
enum Reach {
    Edits(usize, Vec<u64>),
    Names(Vec<usize>),
}

impl Files {
    pub fn without_syncs_of(deaf: fn(&Path) -> bool) -> Self {
        Self { deaf: Some(deaf), ..Self::default() }
    }

    fn file(&mut self, path: &Path) -> usize {
        if let Some(file) = self.live.get(path) {
            return *file;
        }
        self.create(path)
    }

    fn create(&mut self, path: &Path) -> usize {
        self.files.push(File::default());
        let file = self.files.len() - 1;
        let naming = Naming::Create(path.to_owned(), file);
        naming.happen(&mut self.live);
        self.namings.push((false, naming));
        file
    }

    fn name(&mut self, naming: Naming) {
        naming.happen(&mut self.live);
        self.namings.push((false, naming));
    }

    pub fn happen(&mut self, call: &Call) {
        match call {
            Call::Create(path) => match self.live.get(path).copied() {
                Some(file) => self.edit(file, 0, Edit::SetLen(0)),
                None => {
                    self.create(path);
                }
            },
            Call::Rename(from, to) => self.name(Naming::Rename(from.clone(), to.clone())),
            Call::Remove(path) => self.name(Naming::Remove(path.clone())),
            Call::SetLen(path, len) => {
                let file = self.file(path);
                self.edit(file, 0, Edit::SetLen(*len));
            }
            Call::Write(name, path, offset, bytes) => {
                let file = self.file(path);
                self.edit(file, *name, Edit::Write(*offset, bytes.clone()));
            }
            Call::WriteEnded(name) => {
                for file in &mut self.files {
                    if file.edits.iter().any(|(edit, ..)| edit == name) {
                        file.ended.insert(*name);
                    }
                }
            }
            Call::Sync(name, path) => self.begin_sync(*name, path),
            Call::SyncEnded(name) => match self.syncs.remove(name) {
                Some(Reach::Edits(file, reached)) => {
                    for (edit, durable, _) in &mut self.files[file].edits {
                        *durable |= reached.contains(edit);
                    }
                }
                Some(Reach::Names(reached)) => {
                    reached.into_iter().for_each(|at| self.namings[at].0 = true);
                }
                None => {}
            },
        }
    }

    /// Lengths have the name 0 and no end of their own.
    fn edit(&mut self, file: usize, name: u64, edit: Edit) {
        self.files[file].ended.insert(0);
        self.files[file].edits.push((name, false, edit));
    }

    fn begin_sync(&mut self, name: u64, path: &Path) {
        if self.deaf.is_some_and(|deaf| deaf(path)) {
            return;
        }
        let reach = match self.live.get(path) {
            Some(file) => Reach::Edits(*file, self.files[*file].ended.iter().copied().collect()),
            None => {
                let touched = self.namings.iter().enumerate();
                let touched = touched.filter(|(_, (_, naming))| naming.touches(path));
                Reach::Names(touched.map(|(at, _)| at).collect())
            }
        };
        self.syncs.insert(name, reach);
    }

    /// The files that are there after a power cut, with their bytes.
    pub fn after_power_cut(&self, fate: Fate) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut rng = Rng(match fate {
            Fate::Seeded(seed) => seed,
            _ => 0,
        });
        let durable = self.namings.iter().rposition(|(durable, _)| *durable).map_or(0, |at| at + 1);
        let loose = self.namings.len() - durable;
        let survive = match fate {
            Fate::Dropped => 0,
            Fate::Kept => loose,
            Fate::Seeded(_) => rng.below(loose + 1),
        };
        let mut names = BTreeMap::new();
        for (_, naming) in &self.namings[..durable + survive] {
            naming.happen(&mut names);
        }
        names.into_iter().map(|(path, file)| (path, self.bytes(file, fate, &mut rng))).collect()
    }

    fn bytes(&self, file: usize, fate: Fate, rng: &mut Rng) -> Vec<u8> {
        let mut bytes: Vec<u8> = Vec::new();
        for (_, durable, edit) in &self.files[file].edits {
            let chance = match fate {
                _ if *durable => 0,
                Fate::Kept => 0,
                Fate::Dropped => 2,
                Fate::Seeded(_) => rng.below(3),
            };
            match edit {
                _ if chance == 2 => {}
                Edit::SetLen(len) => bytes.resize(*len as usize, 0),
                Edit::Write(offset, new) => {
                    let end = *offset as usize + new.len();
                    bytes.resize(bytes.len().max(end), 0);
                    let mut at = *offset as usize;
                    while at < end {
                        // Up to the end of this sector.
                        let stop = end.min((at / SECTOR + 1) * SECTOR);
                        if chance == 0 || rng.chance(50) {
                            let from = at - *offset as usize;
                            bytes[at..stop].copy_from_slice(&new[from..from + stop - at]);
                        }
                        at = stop;
                    }
                }
            }
        }
        bytes
    }
}

/// Puts the files of an image into a folder.
pub fn put(image: &BTreeMap<PathBuf, Vec<u8>>, folder: &Path) {
    for (path, bytes) in image {
        let path = folder.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
}
