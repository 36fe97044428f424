//! The run folder: one run's configuration, metrics, curve, timeline, tokens and store.
//!
//! The law: one process at a time, one configuration a folder. What a resume changes is
//! recorded; what it may not change is refused before anything is written.

use crate::base::file::{sync_name, write_whole};
use crate::base::{Error, ErrorKind, Result, Step};
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The recorded block accesses, in a run folder.
pub const ACCESS_TRACE: &str = "access.trace";

/// The key that a change of the data itself goes by.
const DATA_KEY: &str = "data.files";

/// A run folder that this process holds.
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
    /// Held for the life of the value; the kernel drops the lock when the process ends, however
    /// it ends.
    _lock: File,
}

/// A key that a resume changed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Change {
    /// The step that the resume starts from.
    pub step: Step,
    /// Seconds since 1970.
    pub time: u64,
    pub key: String,
    /// None when the key was not there.
    pub from: Option<toml::Value>,
    pub to: Option<toml::Value>,
}

impl RunFolder {
    /// Makes the folder of a new run and writes its effective configuration.
    ///
    /// # Errors
    /// When the folder holds a run already, another process holds it, or it cannot be written.
    pub fn create(path: &Path, config: &toml::Table) -> Result<Self> {
        std::fs::create_dir_all(path)
            .and_then(|()| sync_name(path))
            .map_err(|e| Error::io(format!("creating run folder {}", path.display()), e))?;
        let folder = Self::lock(path)?;
        if folder.config_path().exists() {
            return Err(Error::config(format!(
                "run folder {} holds a run already: go on with --resume, or name another folder \
                 with --run",
                path.display()
            )));
        }
        folder.write_config(config)?;
        Ok(folder)
    }

    /// Opens the folder of an earlier run.
    ///
    /// # Errors
    /// When there is no run in it, or another process holds it.
    pub fn open(path: &Path) -> Result<Self> {
        if !path.join("config.toml").exists() {
            return Err(Error::config(format!(
                "{} is no run folder: it has no config.toml; start a run without --resume",
                path.display()
            )));
        }
        Self::lock(path)
    }

    /// Takes back a new folder whose run could not begin.
    pub fn discard(self) {
        // What cannot be removed is refused, with its name, at the next try.
        drop(std::fs::remove_dir_all(&self.path));
    }

    fn lock(path: &Path) -> Result<Self> {
        let file = path.join("lock");
        let locking = |e| Error::io(format!("locking {}", file.display()), e);
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&file)
            .map_err(locking)?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path: path.to_owned(), _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(Error::new(
                ErrorKind::Busy,
                format!(
                    "run folder {} is in use by another process: wait for it, or stop it",
                    path.display()
                ),
            )),
            Err(TryLockError::Error(e)) => Err(locking(e)),
        }
    }

    /// The configuration that the run was started with, as changed since.
    ///
    /// # Errors
    /// When `config.toml` cannot be read or is no TOML.
    pub fn config(&self) -> Result<toml::Table> {
        let path = self.config_path();
        let text = std::fs::read_to_string(&path)
            .map_err(|e| Error::io(format!("reading {}", path.display()), e))?;
        text.parse().map_err(|e: toml::de::Error| {
            Error::input(format!("{} is not TOML", path.display())).from_source(e)
        })
    }

    fn write_config(&self, config: &toml::Table) -> Result<()> {
        let text = toml::to_string_pretty(config)
            .map_err(|e| Error::bug("writing the configuration as TOML").from_source(e))?;
        write_whole(&self.config_path(), text.as_bytes())
    }

    /// Notes what the batches of a new run are made of ([`super::data::DataSource::identity`]).
    ///
    /// # Errors
    /// When the file that keeps it cannot be written.
    pub fn begin_data(&self, data: &serde_json::Value) -> Result<()> {
        write_whole(&self.data_identity_path(), format!("{data:#}\n").as_bytes())
    }

    /// What the run began with; `None` when it was stopped before that was noted.
    fn data(&self) -> Result<Option<serde_json::Value>> {
        let path = self.data_identity_path();
        let text = match std::fs::read_to_string(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            read => read.map_err(|e| Error::io(format!("reading {}", path.display()), e))?,
        };
        serde_json::from_str(&text).map(Some).map_err(|e| {
            Error::corrupt(format!("{} is damaged: restore it from a copy", path.display()))
                .from_source(e)
        })
    }

    /// Compares the run's configuration and data with those of a resume from `step`. Changed keys
    /// that `allowed` accepts are recorded in `changes.jsonl` and the new values are kept; with
    /// any other changed key nothing is written.
    ///
    /// # Errors
    /// When a key was changed that may not be, naming each with both values, or when the data was.
    pub fn resume(
        &self,
        config: &toml::Table,
        data: &serde_json::Value,
        step: Step,
        allowed: impl Fn(&str) -> bool,
    ) -> Result<Vec<Change>> {
        let time = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        let mut changes: Vec<Change> = differences(&self.config()?, config)
            .into_iter()
            .map(|(key, from, to)| Change { step, time, key, from, to })
            .collect();
        let refused: Vec<&Change> = changes.iter().filter(|c| !allowed(&c.key)).collect();
        if !refused.is_empty() {
            let show =
                |v: &Option<toml::Value>| v.as_ref().map_or("unset".into(), ToString::to_string);
            let list: Vec<String> = refused
                .iter()
                .map(|c| format!("{} was {} and is now {}", c.key, show(&c.from), show(&c.to)))
                .collect();
            let named: Vec<String> =
                refused.iter().map(|c| format!("--allow-change {}", c.key)).collect();
            return Err(Error::config(format!(
                "run folder {} is of another configuration: {}; restore it, name another folder \
                 with --run, or resume with {}",
                self.path.display(),
                list.join(", "),
                named.join(" ")
            )));
        }
        let before = self.data()?;
        if let Some(before) = before.as_ref().filter(|before| *before != data) {
            let key = DATA_KEY.to_owned();
            if !allowed(&key) {
                return Err(Error::config(format!(
                    "the data is not what run folder {} began with: {} changed; put it back, name \
                     another folder with --run, or resume with --allow-change {key}",
                    self.path.display(),
                    changed_files(before, data)
                )));
            }
            let text = |data: &serde_json::Value| Some(toml::Value::String(data.to_string()));
            changes.push(Change { step, time, key, from: text(before), to: text(data) });
        }
        if !changes.is_empty() {
            self.record(&changes)?;
            self.write_config(config)?;
        }
        if before.as_ref() != Some(data) {
            self.begin_data(data)?;
        }
        Ok(changes)
    }

    fn record(&self, changes: &[Change]) -> Result<()> {
        let path = self.changes_path();
        let mut text = String::new();
        for change in changes {
            text += &serde_json::to_string(change)
                .map_err(|e| Error::bug("writing a change as JSON").from_source(e))?;
            text.push('\n');
        }
        let recording = |e| Error::io(format!("recording changes in {}", path.display()), e);
        let mut file =
            OpenOptions::new().create(true).append(true).open(&path).map_err(recording)?;
        file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(recording)
    }

    /// When the run was started: what its chat template is told the date is.
    ///
    /// # Errors
    /// When the file that keeps it cannot be read or written.
    pub fn created(&self) -> Result<SystemTime> {
        let path = self.path.join("created");
        match std::fs::read_to_string(&path) {
            Ok(text) => {
                let seconds = text.trim().parse().map_err(|e: std::num::ParseIntError| {
                    Error::corrupt(format!("{} holds no time", path.display())).from_source(e)
                })?;
                Ok(UNIX_EPOCH + Duration::from_secs(seconds))
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
                write_whole(&path, format!("{now}\n").as_bytes())?;
                Ok(UNIX_EPOCH + Duration::from_secs(now))
            }
            Err(e) => Err(Error::io(format!("reading {}", path.display()), e)),
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The effective configuration.
    pub fn config_path(&self) -> PathBuf {
        self.path.join("config.toml")
    }

    /// What the batches are made of.
    fn data_identity_path(&self) -> PathBuf {
        self.path.join("data.json")
    }

    /// One JSON object for each key that a resume changed.
    pub fn changes_path(&self) -> PathBuf {
        self.path.join("changes.jsonl")
    }

    pub fn metrics_path(&self) -> PathBuf {
        self.path.join("metrics.jsonl")
    }

    pub fn loss_path(&self) -> PathBuf {
        self.path.join("loss.svg")
    }

    pub fn trace_path(&self) -> PathBuf {
        self.path.join("trace.json")
    }

    /// The last steps of the timeline as a picture.
    pub fn timeline_path(&self) -> PathBuf {
        self.path.join("timeline.svg")
    }

    /// The states of all actors, written when SIGUSR1 asks for them.
    pub fn actors_path(&self) -> PathBuf {
        self.path.join("actors.json")
    }

    /// The recorded block accesses, which `semoe cache replay` reads.
    pub fn access_path(&self) -> PathBuf {
        self.path.join(ACCESS_TRACE)
    }

    pub fn store_path(&self) -> PathBuf {
        self.path.join("store")
    }

    /// Token files.
    pub fn data_path(&self) -> PathBuf {
        self.path.join("data")
    }

    /// The tokenizer as the run uses it: `tokenizer.json`, `tokenizer_config.json`.
    pub fn tokenizer_path(&self) -> PathBuf {
        self.path.join("tokenizer")
    }

    pub fn export_path(&self) -> PathBuf {
        self.path.join("export")
    }
}

/// The names of the data files that differ; of another source than files, only that it does.
fn changed_files(before: &serde_json::Value, after: &serde_json::Value) -> String {
    let files = |data: &serde_json::Value| data["files"].as_array().cloned().unwrap_or_default();
    let (before, after) = (files(before), files(after));
    let gone = before.iter().filter(|file| !after.contains(file));
    let new = after.iter().filter(|file| !before.contains(file));
    let mut names: Vec<&str> = gone.chain(new).filter_map(|file| file["file"].as_str()).collect();
    names.sort_unstable();
    names.dedup();
    if names.is_empty() { "its source".to_owned() } else { names.join(", ") }
}

/// A dotted key with its two values.
type Difference = (String, Option<toml::Value>, Option<toml::Value>);

/// The dotted keys that differ between two configurations, with both values.
pub fn differences(old: &toml::Table, new: &toml::Table) -> Vec<Difference> {
    let mut all = Vec::new();
    compare("", old, new, &mut all);
    all
}

fn compare(prefix: &str, old: &toml::Table, new: &toml::Table, out: &mut Vec<Difference>) {
    let empty = toml::Table::new();
    let mut keys: Vec<&String> = old.keys().chain(new.keys()).collect();
    keys.sort_unstable();
    keys.dedup();
    for key in keys {
        let dotted = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
        match (old.get(key), new.get(key)) {
            (a, b) if a == b => {}
            (Some(toml::Value::Table(a)), Some(toml::Value::Table(b))) => {
                compare(&dotted, a, b, out);
            }
            (Some(toml::Value::Table(a)), None) => compare(&dotted, a, &empty, out),
            (None, Some(toml::Value::Table(b))) => compare(&dotted, &empty, b, out),
            (a, b) => out.push((dotted, a.cloned(), b.cloned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> toml::Table {
        text.parse().unwrap()
    }

    #[test]
    fn a_folder_belongs_to_one_process_and_one_run() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("runs/a");
        let e = RunFolder::open(&path).unwrap_err();
        assert!(e.to_string().contains("is no run folder"), "{e}");
        let folder = RunFolder::create(&path, &config("name = 'a'")).unwrap();
        let e = RunFolder::open(&path).unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Busy);
        let created = folder.created().unwrap();
        drop(folder);
        let e = RunFolder::create(&path, &config("name = 'b'")).unwrap_err();
        assert!(e.to_string().contains("holds a run already: go on with --resume"), "{e}");
        let folder = RunFolder::open(&path).unwrap();
        assert_eq!(folder.config().unwrap(), config("name = 'a'"));
        assert_eq!(folder.created().unwrap(), created);
    }

    #[test]
    fn a_resume_records_what_may_change_and_refuses_the_rest() {
        let dir = tempfile::tempdir().unwrap();
        let old = config("[train]\nsteps = 10\nseq = 128\n[storage]\nhost = '1GiB'\n");
        let folder = RunFolder::create(dir.path(), &old).unwrap();
        let allowed = |key: &str| key == "train.steps" || key.starts_with("storage.");
        let data = serde_json::json!({"files": [{"file": "a.txt", "crc": 1}]});
        folder.begin_data(&data).unwrap();
        let both = config("[train]\nsteps = 20\nseq = 64\n[storage]\nhost = '1GiB'\n");
        let e = folder.resume(&both, &data, 5, allowed).unwrap_err().to_string();
        assert!(e.contains("train.seq was 128 and is now 64"), "{e}");
        assert!(e.contains("--allow-change train.seq") && !e.contains("train.steps"), "{e}");
        assert_eq!(folder.config().unwrap(), old);
        assert!(!folder.changes_path().exists());

        let new = config("[train]\nsteps = 20\nseq = 128\n[storage]\nhost = '2GiB'\ndepth = 8\n");
        let changes = folder.resume(&new, &data, 5, allowed).unwrap();
        let keys: Vec<&str> = changes.iter().map(|c| c.key.as_str()).collect();
        assert_eq!(keys, ["storage.depth", "storage.host", "train.steps"]);
        assert_eq!(folder.config().unwrap(), new);
        let text = std::fs::read_to_string(folder.changes_path()).unwrap();
        let first: Change = serde_json::from_str(text.lines().next().unwrap()).unwrap();
        assert_eq!((first.step, first.from, first.to), (5, None, Some(toml::Value::Integer(8))));
        assert!(folder.resume(&new, &data, 7, |_| false).unwrap().is_empty());
        assert_eq!(std::fs::read_to_string(folder.changes_path()).unwrap(), text);

        let other = serde_json::json!({"files": [{"file": "a.txt", "crc": 2}]});
        let e = folder.resume(&new, &other, 7, allowed).unwrap_err().to_string();
        assert!(e.contains("a.txt changed") && e.contains("--allow-change data.files"), "{e}");
        assert_eq!(folder.data().unwrap(), Some(data));
        let changes = folder.resume(&new, &other, 7, |_| true).unwrap();
        assert_eq!(changes[0].key, "data.files");
        assert_eq!(folder.data().unwrap(), Some(other));
    }
}
