//! Commits of several ranks as one.
//!
//! Law 7 over ranks: the run's commit is the oldest of its ranks' commits. A rank keeps the
//! commit that all ranks had in common until every rank has made the next one durable, so
//! whichever moment the process is killed at, all ranks can go back to one step.

use super::recorded::Recorded;
use crate::actors::committing::Committing;
use crate::actors::rank::Commit;
use crate::base::{Error, ErrorKind, Result, Step};
use crate::model::kernels::allocator::trim_heap;
use crate::storage::store::{Store, StoreOptions};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

/// The name under which a rank keeps the commit that all ranks have in common.
const COMMON: &str = "common";

#[derive(Debug, Default)]
struct Meeting {
    waiting: usize,
    round: u64,
}

/// Where ranks wait for each other after a commit.
#[derive(Debug, Clone)]
pub struct Agreement {
    ranks: usize,
    timeout: Duration,
    meeting: Arc<(Mutex<Meeting>, Condvar)>,
}

impl Agreement {
    pub fn new(ranks: usize, timeout: Duration) -> Self {
        Self { ranks, timeout, meeting: Arc::default() }
    }

    /// Waits until every rank has come.
    ///
    /// # Errors
    /// Peer when one does not come in time.
    fn meet(&self) -> Result<()> {
        let (meeting, met) = &*self.meeting;
        let mut guard = meeting.lock().unwrap_or_else(PoisonError::into_inner);
        guard.waiting += 1;
        let round = guard.round;
        if guard.waiting == self.ranks {
            (guard.waiting, guard.round) = (0, round + 1);
            met.notify_all();
            return Ok(());
        }
        let waited = met.wait_timeout_while(guard, self.timeout, |m| m.round == round);
        let (guard, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if guard.round == round {
            return Err(Error::new(ErrorKind::Peer, "another rank did not commit in time"));
        }
        Ok(())
    }
}

/// Makes a rank's commits durable, together with those of the other ranks; each once the metrics
/// of its step are.
pub fn commit(store: Arc<Store>, agreement: Agreement, recorded: Option<Recorded>) -> Commit {
    Box::new(move |committing: &Committing| {
        let step = committing.step();
        if let Some(recorded) = &recorded {
            recorded.wait(step)?;
        }
        store.commit(step, committing.meta())?;
        trim_heap();
        if agreement.ranks > 1 {
            agreement.meet()?;
            keep_common(&store, step)?;
        }
        match committing.keep() {
            Some(name) => keep_named(&store, name, step),
            None => Ok(()),
        }
    })
}

/// Keeps a commit under a name; where the space for names is taken, the oldest numbered one goes.
pub fn keep_named(store: &Store, name: &str, step: Step) -> Result<()> {
    if store.checkpoints().iter().any(|(known, kept)| known == name && *kept == step) {
        return Ok(());
    }
    let numbered = |(name, step): (String, Step)| name.starts_with("step-").then_some((step, name));
    let mut old: Vec<(Step, String)> =
        store.checkpoints().into_iter().filter_map(numbered).collect();
    old.sort_unstable();
    let room = store.spec().keep as usize - usize::from(has_common(store));
    while old.len() >= room.max(1) {
        let (_, oldest) = old.remove(0);
        store.drop_checkpoint(&oldest)?;
    }
    store.keep(name, step)
}

fn has_common(store: &Store) -> bool {
    store.checkpoints().iter().any(|(name, _)| name == COMMON)
}

fn keep_common(store: &Store, step: Step) -> Result<()> {
    if has_common(store) {
        store.drop_checkpoint(COMMON)?;
    }
    store.keep(COMMON, step)
}

/// Marks the initial commit of every rank as the common one.
pub fn begin(stores: &[Arc<Store>]) -> Result<()> {
    stores.iter().try_for_each(|store| keep_common(store, 0))
}

/// Opens the stores of all ranks at the newest commit that they have in common; `None` when one
/// of them has not committed yet.
///
/// # Errors
/// Corrupt when a rank has no such commit, and whatever keeps a store from being opened.
pub fn open(dirs: &[PathBuf], options: &StoreOptions) -> Result<Option<Vec<Arc<Store>>>> {
    let open = |dir: &PathBuf| Store::open(dir, options);
    let stores = dirs.iter().map(open).collect::<Result<Vec<_>>>()?;
    // A rank without a commit comes before all others.
    let Some(common) = stores.iter().map(Store::committed).min().flatten() else {
        return Ok(None);
    };
    let mut aligned = Vec::with_capacity(stores.len());
    for (store, dir) in stores.into_iter().zip(dirs) {
        if store.committed() == Some(common) {
            aligned.push(Arc::new(store));
            continue;
        }
        if !keeps_common(&store, common) {
            return Err(Error::corrupt(format!(
                "the store in {} lacks the commit that the other ranks have: restore the stores \
                 of all ranks from one copy",
                dir.display()
            ))
            .with("step", common));
        }
        store.roll_back(COMMON)?;
        // What is newer is discarded when a store is opened; its lock must be free for that.
        drop(store);
        aligned.push(Arc::new(Store::open(dir, options)?));
    }
    // A cut may have come after the commit and before it was marked as the common one.
    let unmarked = aligned.iter().filter(|store| !keeps_common(store, common));
    if aligned.len() > 1 {
        unmarked.into_iter().try_for_each(|store| keep_common(store, common))?;
    }
    Ok(Some(aligned))
}

fn keeps_common(store: &Store, step: Step) -> bool {
    store.checkpoints().iter().any(|(name, kept)| name == COMMON && *kept == step)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{BlockId, Part};
    use crate::storage::store::{ClassSpec, StoreSpec};
    use std::path::Path;

    const BLOCK: BlockId = BlockId { layer: 0, expert: 0, part: Part::Weights };

    fn write_and_commit(store: &Store, step: Step) {
        store.place(BLOCK, step).unwrap();
        store.written(BLOCK, step, 0, step).unwrap();
        store.commit(step, b"").unwrap();
    }

    type Deed = Box<dyn Fn(&[Arc<Store>])>;

    /// What two ranks do for a commit; a stop may come between any two of these.
    fn deeds(step: Step) -> [Deed; 6] {
        [
            Box::new(move |stores| write_and_commit(&stores[0], step)),
            Box::new(move |stores| write_and_commit(&stores[1], step)),
            Box::new(|stores| stores[1].drop_checkpoint(COMMON).unwrap()),
            Box::new(move |stores| stores[1].keep(COMMON, step).unwrap()),
            Box::new(|stores| stores[0].drop_checkpoint(COMMON).unwrap()),
            Box::new(move |stores| stores[0].keep(COMMON, step).unwrap()),
        ]
    }

    #[test]
    fn wherever_two_stops_come_the_ranks_go_on_from_one_commit() {
        let options = StoreOptions::default();
        let class = ClassSpec { part: Part::Weights, block_bytes: 100, blocks: 1 };
        let spec = StoreSpec { classes: vec![class], keep: 1, identity: serde_json::Value::Null };
        for (first, second) in (0..=6).flat_map(|a| (0..=6).map(move |b| (a, b))) {
            // In memory where that is to be had: what is at stake is order, not durability.
            let memory = Path::new("/dev/shm");
            let dir = match memory.is_dir() {
                true => tempfile::tempdir_in(memory).unwrap(),
                false => tempfile::tempdir().unwrap(),
            };
            let dirs = [dir.path().join("rank0"), dir.path().join("rank1")];
            let create = |dir: &PathBuf| Arc::new(Store::create(dir, &spec, &options).unwrap());
            let mut stores: Vec<_> = dirs.iter().map(create).collect();
            drop(std::mem::take(&mut stores));
            assert!(open(&dirs, &options).unwrap().is_none(), "nothing is committed yet");
            stores.extend(dirs.iter().map(|dir| Arc::new(Store::open(dir, &options).unwrap())));
            write_and_commit(&stores[0], 0);
            drop(std::mem::take(&mut stores));
            assert!(open(&dirs, &options).unwrap().is_none(), "a rank has not committed yet");
            stores.extend(dirs.iter().map(|dir| Arc::new(Store::open(dir, &options).unwrap())));
            write_and_commit(&stores[1], 0);
            begin(&stores).unwrap();
            let mut committed = 0;
            for stop in [first, second] {
                let next = committed + 1;
                deeds(next).iter().take(stop).for_each(|deed| deed(&stores));
                drop(std::mem::take(&mut stores));
                stores = open(&dirs, &options).unwrap().unwrap();
                committed = if stop >= 2 { next } else { committed };
                let found: Vec<_> = stores.iter().map(|store| store.committed()).collect();
                assert_eq!(found, [Some(committed); 2], "stops after {first} and {second}");
            }
        }
    }
}
