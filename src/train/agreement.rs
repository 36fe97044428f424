//! Commits of several ranks as one.
//!
//! Law 7 over ranks: the run's commit is the oldest of its ranks' commits. A rank keeps the
//! commit that all ranks had in common until every rank has made the next one durable, so
//! whichever moment the process is killed at, all ranks can go back to one step.

use crate::actors::committing::Committing;
use crate::actors::rank::Commit;
use crate::base::{Error, ErrorKind, Result, Step};
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

/// Makes a rank's commits durable, together with those of the other ranks.
pub fn commit(store: Arc<Store>, agreement: Agreement) -> Commit {
    Box::new(move |committing: &Committing| {
        let step = committing.step();
        store.commit(step, committing.meta())?;
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
fn keep_named(store: &Store, name: &str, step: Step) -> Result<()> {
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

/// Opens the stores of all ranks at the newest commit that they have in common.
///
/// # Errors
/// Corrupt when a rank has no such commit, and whatever keeps a store from being opened.
pub fn open(dirs: &[PathBuf], options: &StoreOptions) -> Result<Vec<Arc<Store>>> {
    let open = |dir: &PathBuf| Store::open(dir, options);
    let stores = dirs.iter().map(open).collect::<Result<Vec<_>>>()?;
    let common = stores.iter().filter_map(Store::committed).min();
    let mut aligned = Vec::with_capacity(stores.len());
    for (store, dir) in stores.into_iter().zip(dirs) {
        if store.committed() == common {
            aligned.push(Arc::new(store));
            continue;
        }
        let kept = store.checkpoints().into_iter().find(|(name, _)| name == COMMON);
        if kept.map(|(_, step)| step) != common {
            return Err(Error::corrupt(format!(
                "the store in {} lacks the commit that the other ranks have",
                dir.display()
            ))
            .with("step", common.unwrap_or_default()));
        }
        store.roll_back(COMMON)?;
        // What is newer is discarded when a store is opened; its lock must be free for that.
        drop(store);
        aligned.push(Arc::new(Store::open(dir, options)?));
    }
    Ok(aligned)
}
