//! The local backend: ranks are threads of one process and exchange over crossbeam channels.
//!
//! What goes from one rank to one other is moved, never copied. Where several ranks must hold the
//! same content (all-gather, broadcast) each gets a copy of its own, so that no two ranks ever
//! share storage and each may write in place to what it got.

use super::collective::{Collective, Handle, Operation, Pending, copy_of};
use super::inbox::{Departures, Inbox, Message};
use crate::base::{Error, ErrorKind, Result};
use crossbeam_channel::{SendTimeoutError, Sender, bounded};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tch::Tensor;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LocalOptions {
    /// How long an operation waits for a silent rank.
    pub timeout: Duration,
    /// How many operations a rank may be ahead of another.
    pub ahead: usize,
}

impl Default for LocalOptions {
    fn default() -> Self {
        Self { timeout: Duration::from_secs(300), ahead: 64 }
    }
}

/// Makes a group of `size` ranks: one end for each, in rank order, to be given to as many threads.
///
/// # Errors
/// A group without ranks, or options under which no operation could complete.
pub fn group(size: usize, options: LocalOptions) -> Result<Vec<LocalCollective>> {
    if size == 0 || options.ahead == 0 || options.timeout.is_zero() {
        return Err(Error::config(
            "a group of ranks wants at least one rank, room for at least \
             one operation ahead, and a timeout above zero",
        ));
    }
    let departures = Arc::new(Departures::default());
    // senders[to] of each rank and receivers[from] of each rank.
    let mut senders: Vec<Vec<_>> = (0..size).map(|_| (0..size).map(|_| None).collect()).collect();
    let mut receivers: Vec<Vec<_>> = (0..size).map(|_| (0..size).map(|_| None).collect()).collect();
    for from in 0..size {
        for to in (0..size).filter(|to| *to != from) {
            let (sender, receiver) = bounded(options.ahead);
            senders[from][to] = Some(sender);
            receivers[to][from] = Some(receiver);
        }
    }
    let ends = senders.into_iter().zip(receivers).enumerate();
    Ok(ends
        .map(|(rank, (senders, receivers))| {
            let departures = Arc::clone(&departures);
            let inbox = Inbox::new(rank, receivers, Arc::clone(&departures), options.timeout);
            let inbox = Arc::new(Mutex::new(inbox));
            LocalCollective { rank, senders, inbox, departures, options }
        })
        .collect())
}

/// One rank's end of a local group.
pub struct LocalCollective {
    rank: usize,
    senders: Vec<Option<Sender<Message>>>,
    /// Shared with the handles of this rank only; what is locked is held while a handle waits, so
    /// handles of one rank are waited for one after another.
    inbox: Arc<Mutex<Inbox>>,
    departures: Arc<Departures>,
    options: LocalOptions,
}

impl LocalCollective {
    fn others(&self) -> Vec<usize> {
        (0..self.senders.len()).filter(|rank| *rank != self.rank).collect()
    }

    /// Enters an operation: what is to come is expected first, then `parts[r]` goes to rank r of
    /// `to`.
    fn start(
        &mut self,
        operation: Operation,
        from: Vec<usize>,
        own: Option<Tensor>,
        parts: Vec<(usize, Option<Tensor>)>,
    ) -> Result<Handle> {
        let mut inbox = lock(&self.inbox);
        inbox.check()?;
        let number = inbox.expect(operation, from, own)?;
        for (to, tensor) in parts {
            let Some(sender) = &self.senders[to] else { continue };
            let message = Message { number, operation, tensor };
            match sender.send_timeout(message, self.options.timeout) {
                Ok(()) => {}
                // A rank may leave once it has sent its last part; it wants none in return.
                Err(SendTimeoutError::Disconnected(_)) if self.departures.called(to, number) => {}
                Err(SendTimeoutError::Disconnected(_)) => return Err(inbox.gone(number, to)),
                Err(SendTimeoutError::Timeout(_)) => {
                    let text = format!(
                        "rank {to} is {} operations behind and takes none for {:.1} s, so \
                         {operation} (operation {number}) cannot start",
                        self.options.ahead,
                        self.options.timeout.as_secs_f64()
                    );
                    let error = Error::new(ErrorKind::Peer, text).with("rank", self.rank);
                    return Err(inbox.break_with(error));
                }
            }
        }
        drop(inbox);
        Ok(Handle::pending(LocalPending { inbox: Arc::clone(&self.inbox), number }))
    }

    /// A copy of a tensor for each other rank.
    fn copies(&self, tensor: &Tensor) -> Result<Vec<(usize, Option<Tensor>)>> {
        self.others().into_iter().map(|to| Ok((to, Some(copy_of(tensor)?)))).collect()
    }
}

impl Collective for LocalCollective {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.senders.len()
    }

    fn all_to_all_v(&mut self, parts: Vec<Tensor>) -> Result<Handle> {
        if parts.len() != self.size() {
            return Err(Error::bug("all_to_all_v wants one part a rank")
                .with("parts", parts.len())
                .with("ranks", self.size()));
        }
        let mut parts: Vec<_> = parts.into_iter().map(Some).enumerate().collect();
        let own = parts[self.rank].1.take();
        parts.remove(self.rank);
        self.start(Operation::AllToAllV, self.others(), own, parts)
    }

    fn all_gather(&mut self, tensor: Tensor) -> Result<Handle> {
        let copies = self.copies(&tensor)?;
        self.start(Operation::AllGather, self.others(), Some(tensor), copies)
    }

    fn broadcast(&mut self, tensor: Option<Tensor>, root: usize) -> Result<Handle> {
        let operation = Operation::Broadcast(root);
        match tensor {
            Some(tensor) if root == self.rank => {
                let copies = self.copies(&tensor)?;
                self.start(operation, Vec::new(), Some(tensor), copies)
            }
            None if root < self.size() && root != self.rank => {
                self.start(operation, vec![root], None, Vec::new())
            }
            _ => Err(Error::bug("a broadcast wants a tensor from its root, and only from it")
                .with("root", root)
                .with("rank", self.rank)
                .with("ranks", self.size())),
        }
    }

    fn barrier(&mut self) -> Result<Handle> {
        let others = self.others();
        let signals = others.iter().map(|to| (*to, None)).collect();
        self.start(Operation::Barrier, others, None, signals)
    }
}

impl Drop for LocalCollective {
    fn drop(&mut self) {
        // Before the channels close, so that whoever sees them closed also sees why.
        let called = lock(&self.inbox).called();
        self.departures.leave(self.rank, called);
    }
}

impl std::fmt::Debug for LocalCollective {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "LocalCollective(rank {} of {})", self.rank, self.size())
    }
}

struct LocalPending {
    inbox: Arc<Mutex<Inbox>>,
    number: u64,
}

impl Pending for LocalPending {
    fn test(&mut self) -> Result<bool> {
        lock(&self.inbox).test(self.number)
    }

    fn wait(self: Box<Self>) -> Result<Vec<Tensor>> {
        lock(&self.inbox).wait(self.number)
    }
}

impl Drop for LocalPending {
    fn drop(&mut self) {
        lock(&self.inbox).abandon(self.number);
    }
}

/// The inbox stays usable if a thread panicked while it held it: its state is a set of messages,
/// whole after every step.
fn lock(inbox: &Mutex<Inbox>) -> MutexGuard<'_, Inbox> {
    inbox.lock().unwrap_or_else(PoisonError::into_inner)
}
