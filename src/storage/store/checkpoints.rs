//! Named checkpoints of a store: commits that are kept, and going back to one.

use super::*;

impl Store {
    /// Keeps the last commit as a named checkpoint: from now on only what changes costs space.
    ///
    /// # Errors
    /// `Config` for a name that is taken or malformed, `Budget` if the store was not made for one
    /// more, `Bug` if `step` is not the last commit.
    pub fn keep(&self, name: &str, step: Step) -> Result<()> {
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if name.is_empty() || name.len() > 100 || !name.chars().all(fits) {
            return Err(Error::config("a checkpoint's name is 1 to 100 of A-Z a-z 0-9 - _ .")
                .with("name", name));
        }
        let _exclusive = self.exclusive();
        let record = {
            let table = self.table();
            if table.committed != Some(step) {
                return Err(Error::bug("only the last commit can be kept")
                    .with("step", step)
                    .with("committed", table.committed.unwrap_or_default()));
            }
            match table.kept.get(name) {
                Some(kept) if *kept == step => return Ok(()),
                Some(kept) => {
                    return Err(Error::config("a checkpoint of this name exists: drop it first")
                        .with("name", name)
                        .with("step", kept));
                }
                None => {}
            }
            let mut steps: Vec<Step> = table.kept.values().copied().collect();
            steps.push(step);
            steps.sort_unstable();
            steps.dedup();
            if steps.len() as u64 > u64::from(self.spec.keep) {
                return Err(Error::new(
                    ErrorKind::Budget,
                    format!(
                        "the store has space for {} named checkpoints, and they are taken: drop \
                         one, or create the store with room for {}",
                        self.spec.keep,
                        steps.len()
                    ),
                ));
            }
            drop(table);
            let meta = self.meta()?;
            summary(&self.table(), step, &meta)
        };
        commit::keep(self.medium.as_ref(), name, &record)?;
        self.table().kept.insert(name.to_owned(), step);
        Ok(())
    }

    /// The named checkpoints, by name.
    pub fn checkpoints(&self) -> Vec<(String, Step)> {
        self.table().kept.iter().map(|(name, step)| (name.clone(), *step)).collect()
    }

    /// Makes a named checkpoint the last commit again. What is newer is discarded when the store
    /// is opened the next time; until then nothing may be written.
    ///
    /// # Errors
    /// `Config` if there is none of that name, or a newer one that would lose its blocks.
    pub fn roll_back(&self, name: &str) -> Result<()> {
        let _exclusive = self.exclusive();
        let step = self.kept_step(name)?;
        let newer = |(_, kept): &(String, Step)| *kept > step;
        if let Some((newer, _)) = self.checkpoints().into_iter().find(newer) {
            return Err(Error::config("a newer checkpoint is kept: drop it before going back")
                .with("name", name)
                .with("newer", newer));
        }
        let meta = self.medium.get(&meta_key(step))?.unwrap_or_default();
        let record = summary(&self.table(), step, &meta);
        commit::roll_back(self.medium.as_ref(), &record)
    }

    /// Takes a checkpoint's name away and frees what only it held.
    ///
    /// # Errors
    /// `Config` if there is none of that name.
    pub fn drop_checkpoint(&self, name: &str) -> Result<()> {
        let _exclusive = self.exclusive();
        let step = self.kept_step(name)?;
        commit::unkeep(self.medium.as_ref(), name)?;
        let mut table = self.table();
        table.kept.remove(name);
        self.forget_meta(&table, step)?;
        self.release(&mut table)
    }

    pub(super) fn kept_step(&self, name: &str) -> Result<Step> {
        let table = self.table();
        table.kept.get(name).copied().ok_or_else(|| {
            let names: Vec<_> = table.kept.keys().cloned().collect();
            Error::config("there is no such checkpoint")
                .with("name", name)
                .with("there_are", names.join(" "))
        })
    }

    /// A named checkpoint, for reading.
    ///
    /// # Errors
    /// `Config` if there is none of that name.
    pub fn open_checkpoint(&self, name: &str) -> Result<Checkpoint> {
        let step = self.kept_step(name)?;
        let meta = self.medium.get(&meta_key(step))?.unwrap_or_default();
        Ok(Checkpoint { step, meta, blocks: self.table().as_of(step).collect() })
    }

    /// The last commit, for reading.
    ///
    /// # Errors
    /// `Input` before the first commit.
    pub fn last_commit(&self) -> Result<Checkpoint> {
        let Some(step) = self.committed() else {
            return Err(Error::input("the store holds no commit yet"));
        };
        let meta = self.medium.get(&meta_key(step))?.unwrap_or_default();
        Ok(Checkpoint { step, meta, blocks: self.table().as_of(step).collect() })
    }
}
