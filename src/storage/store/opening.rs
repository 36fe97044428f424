//! Making and opening a store: its space is reserved first, its index read whole.

use super::*;

impl Store {
    /// Bytes on disk that a store of this spec reserves, with room for its index.
    pub fn disk_required(spec: &StoreSpec) -> u64 {
        let mut data = 0;
        let mut entries = 0;
        for class in &spec.classes {
            let (slot_bytes, slots) = table::slots_of(spec, class);
            data += slot_bytes * slots;
            entries += slots;
        }
        // sled's log holds a few generations of the entries before it reuses its segments.
        data + (8 << 20) + entries * 1024
    }

    /// Bytes of memory that an open store holds, beside its index cache.
    pub fn memory_required(spec: &StoreSpec) -> u64 {
        let slots: u64 = spec.classes.iter().map(|class| table::slots_of(spec, class).1).sum();
        // sled's log buffers, its page table, and the pages of its log between two commits.
        slots * 160 + (8 << 20)
    }

    /// Makes a store in `dir` with all its space reserved, and opens it.
    ///
    /// # Errors
    /// `Input` if there is one already, `Busy` if another process is at it, `Budget` with the
    /// figure that would work if the disk is too small.
    pub fn create(dir: &Path, spec: &StoreSpec, options: &StoreOptions) -> Result<Self> {
        validate(spec)?;
        let cannot = |doing: &str, e| Error::io(format!("cannot {doing} {}", dir.display()), e);
        std::fs::create_dir_all(dir).map_err(|e| cannot("create", e))?;
        let lock = lock(dir)?;
        if dir.join(MANIFEST).exists() {
            return Err(Error::input(format!(
                "{} holds a store already: open it, or choose another folder",
                dir.display()
            )));
        }
        // Without a manifest, what lies here is an unfinished creation.
        let index_dir = dir.join(INDEX);
        if index_dir.exists() {
            std::fs::remove_dir_all(&index_dir).map_err(|e| cannot("clear", e))?;
        }
        let files = data_files(dir, spec);
        for file in files.iter().filter(|file| file.path.exists()) {
            std::fs::remove_file(&file.path).map_err(|e| cannot("clear", e))?;
        }
        let (needed, free) = (Self::disk_required(spec), free_space(dir)?);
        if needed > free {
            return Err(Error::new(
                ErrorKind::Budget,
                format!(
                    "the disk is too small for the store: it needs {} and {} are free; free some \
                     space, keep fewer checkpoints, or move the run",
                    Bytes(needed),
                    Bytes(free)
                ),
            )
            .with("path", dir.display()));
        }
        files.iter().try_for_each(create_reserved)?;
        let index = SledIndex::open(&index_dir, options.index_cache)?;
        index.flush()?;
        index.sync()?;
        drop(index);
        write_manifest(dir, spec)?;
        Self::open_locked(dir, options, lock)
    }

    /// Whether `dir` is the folder of a store.
    pub fn is_in(dir: &Path) -> bool {
        dir.join(MANIFEST).exists()
    }

    /// Opens the store in `dir` at its last commit; anything newer is discarded.
    ///
    /// # Errors
    /// `Busy` if it is open elsewhere, `Input` if there is none, `Corrupt` where files or index
    /// are damaged.
    pub fn open(dir: &Path, options: &StoreOptions) -> Result<Self> {
        if !Self::is_in(dir) {
            return Err(Error::input(format!(
                "{} holds no store: {MANIFEST} is missing",
                dir.display()
            )));
        }
        let lock = lock(dir)?;
        Self::open_locked(dir, options, lock)
    }

    pub(super) fn open_locked(dir: &Path, options: &StoreOptions, lock: File) -> Result<Self> {
        let spec = read_manifest(dir)?;
        let data = data_files(dir, &spec);
        let mut files = Vec::new();
        for file in &data {
            let path = file.path.display();
            let handle = OpenOptions::new()
                .read(true)
                .write(true)
                .open(&file.path)
                .map_err(|e| Error::io(format!("cannot open {path}"), e))?;
            let len = handle
                .metadata()
                .map_err(|e| Error::io(format!("cannot examine {path}"), e))?
                .len();
            if len < file.len {
                return Err(Error::corrupt(format!(
                    "{path} was truncated: it has {len} bytes of {}; restore it from a copy",
                    file.len
                )));
            }
            files.push((file.id, handle));
        }
        let index = SledIndex::open(&dir.join(INDEX), options.index_cache)?;
        let medium = Box::new(FileMedium { index, files });
        Self::assemble(data, spec, medium, Some(lock))
    }

    /// A store over a given medium: a recording twin, say. It has no data files of its own.
    ///
    /// # Errors
    /// As [`Store::open`] where the medium holds a damaged index.
    pub fn over(medium: Box<dyn Medium>, spec: &StoreSpec) -> Result<Self> {
        validate(spec)?;
        Self::assemble(data_files(Path::new(""), spec), spec.clone(), medium, None)
    }

    /// Reads the index, discards what no commit holds, and checks what one promises.
    pub(super) fn assemble(
        files: Vec<DataFile>,
        spec: StoreSpec,
        medium: Box<dyn Medium>,
        lock: Option<File>,
    ) -> Result<Self> {
        let mut table = Table::new(&spec);
        let mut records = Vec::new();
        let mut promised = Vec::new();
        for (key, value) in medium.scan()? {
            if BlockRecord::is_block_key(&key) {
                table.restore(&BlockRecord::parse(&key, &value)?)?;
            } else if key == COMMIT_KEY {
                let record = CommitRecord::parse(&value)?;
                table.committed = Some(record.step);
                promised.push(record);
            } else if let Some(name) = key.strip_prefix(keep_key("").as_slice()) {
                let record = CommitRecord::parse(&value)?;
                table.kept.insert(String::from_utf8_lossy(name).into_owned(), record.step);
                promised.push(record);
            } else {
                records.push(key);
            }
        }
        table.sort();
        let mut gone = table.uncommitted();
        gone.extend(table.superseded());
        for (block, version) in gone {
            table.forget(block, version);
            medium.remove(&BlockRecord::key(block, version))?;
        }
        table.settle()?;
        for record in &promised {
            let meta = medium.get(&meta_key(record.step))?.unwrap_or_default();
            let found = summary(&table, record.step, &meta);
            if found != *record {
                return Err(Error::corrupt(
                    "the index does not hold what its commit promises; restore the store from a copy",
                )
                .with("step", record.step)
                .with("blocks", found.blocks)
                .with("promised", record.blocks));
            }
        }
        let live: Vec<_> = promised.iter().map(|record| meta_key(record.step)).collect();
        for key in records.iter().filter(|key| !live.contains(key)) {
            medium.remove(key)?;
        }
        let table = Mutex::new(table);
        Ok(Self { files, spec, medium, table, committing: Mutex::new(()), _lock: lock })
    }

    pub(super) fn table(&self) -> MutexGuard<'_, Table> {
        // The table is changed in single assignments that do not panic half-way.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn exclusive(&self) -> MutexGuard<'_, ()> {
        self.committing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
