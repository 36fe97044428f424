//! What has come in at one rank: messages are put with the operation that they belong to,
//! whatever the order in which operations are waited for.
//!
//! A peer may be ahead (its messages are kept until this rank calls the operation) and a handle
//! may be dropped (its messages are discarded). A silent or absent peer ends the wait.

use super::collective::Operation;
use crate::base::{Error, ErrorKind, Result};
use crossbeam_channel::{Receiver, RecvTimeoutError, TryRecvError};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tch::Tensor;

/// How often a waiting rank looks whether another rank left: a bound on how late it notices, paid
/// only while it waits.
const LOOK_AROUND: Duration = Duration::from_millis(10);

/// One part of an operation on its way to a rank.
pub(super) struct Message {
    /// The number of the operation among all of its group, from 0.
    pub number: u64,
    pub operation: Operation,
    pub tensor: Option<Tensor>,
}

/// Ranks that left their group, in the order in which they left, each with the number of
/// operations that it had called: so the one that an operation misses can be told from those that
/// left because of it.
#[derive(Debug, Default)]
pub(super) struct Departures(Mutex<Vec<(usize, u64)>>);

impl Departures {
    pub fn leave(&self, rank: usize, operations: u64) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push((rank, operations));
    }

    /// Whether a rank left after it had called operation `number`.
    pub fn called(&self, rank: usize, number: u64) -> bool {
        let departures = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        departures.iter().any(|(gone, called)| *gone == rank && *called > number)
    }

    /// The first of `ranks` to leave without having called operation `number`.
    fn missing(&self, number: u64, ranks: impl Fn(usize) -> bool) -> Option<usize> {
        let departures = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let gone = departures.iter().find(|(rank, called)| *called <= number && ranks(*rank));
        gone.map(|(rank, _)| *rank)
    }
}

/// An operation that this rank called and has not taken the result of.
struct Expected {
    operation: Operation,
    /// What came, by rank; this rank's own part is put in when it calls.
    parts: Vec<Option<Tensor>>,
    /// Ranks whose message has not come.
    missing: Vec<usize>,
}

pub(super) struct Inbox {
    pub rank: usize,
    peers: Vec<Option<Receiver<Message>>>,
    departures: Arc<Departures>,
    timeout: Duration,
    expected: BTreeMap<u64, Expected>,
    /// Messages of operations that this rank has not called yet, with their senders.
    early: BTreeMap<u64, Vec<(usize, Message)>>,
    next: u64,
    /// Once an operation failed the group cannot be trusted to be in step.
    broken: Option<String>,
}

impl Inbox {
    pub fn new(
        rank: usize,
        peers: Vec<Option<Receiver<Message>>>,
        departures: Arc<Departures>,
        timeout: Duration,
    ) -> Self {
        let (expected, early) = (BTreeMap::new(), BTreeMap::new());
        Self { rank, peers, departures, timeout, expected, early, next: 0, broken: None }
    }

    /// How many operations this rank has called.
    pub fn called(&self) -> u64 {
        self.next
    }

    /// Fails if an earlier operation did.
    pub fn check(&self) -> Result<()> {
        match &self.broken {
            None => Ok(()),
            Some(first) => Err(Error::new(
                ErrorKind::Peer,
                format!("the group of ranks is broken since an earlier operation: {first}"),
            )),
        }
    }

    /// This rank calls an operation that brings a message from each rank of `from`; `own` is its
    /// own part. Gives the operation's number.
    pub fn expect(
        &mut self,
        operation: Operation,
        from: Vec<usize>,
        own: Option<Tensor>,
    ) -> Result<u64> {
        let number = self.next;
        self.next += 1;
        let mut parts: Vec<Option<Tensor>> = self.peers.iter().map(|_| None).collect();
        parts[self.rank] = own;
        self.expected.insert(number, Expected { operation, parts, missing: from });
        for (sender, message) in self.early.remove(&number).unwrap_or_default() {
            self.deliver(sender, message)?;
        }
        Ok(number)
    }

    /// The handle of an operation is gone: what it still brings is discarded.
    pub fn abandon(&mut self, number: u64) {
        self.expected.remove(&number);
    }

    /// Takes in what has come and tells whether an operation is complete.
    pub fn test(&mut self, number: u64) -> Result<bool> {
        self.check()?;
        let from = self.missing(number)?;
        for sender in from {
            self.take_in_waiting(sender)?;
        }
        let missing = self.missing(number)?;
        if missing.is_empty() {
            return Ok(true);
        }
        if let Some(gone) = self.departures.missing(number, |rank| missing.contains(&rank)) {
            // It may have sent its part just before it left.
            self.take_in_waiting(gone)?;
            if self.missing(number)?.contains(&gone) {
                return Err(self.gone(number, gone));
            }
        }
        Ok(self.missing(number)?.is_empty())
    }

    /// Blocks until an operation is complete and takes what it brought.
    pub fn wait(&mut self, number: u64) -> Result<Vec<Tensor>> {
        let deadline = Instant::now() + self.timeout;
        while !self.test(number)? {
            let Some(sender) = self.missing(number)?.first().copied() else { break };
            let Some(peer) = &self.peers[sender] else { break };
            match peer.recv_timeout(LOOK_AROUND.min(self.timeout)) {
                Ok(message) => self.deliver(sender, message)?,
                Err(RecvTimeoutError::Disconnected) => return Err(self.gone(number, sender)),
                Err(RecvTimeoutError::Timeout) if Instant::now() >= deadline => {
                    return Err(self.silent(number, sender));
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
        let expected = self.expected.remove(&number);
        Ok(expected.map(|e| e.parts.into_iter().flatten().collect()).unwrap_or_default())
    }

    fn missing(&self, number: u64) -> Result<Vec<usize>> {
        let expected = self.expected.get(&number);
        let expected = expected.ok_or_else(|| Error::bug("an operation was waited for twice"))?;
        Ok(expected.missing.clone())
    }

    /// Takes in every message of one rank that is there already.
    fn take_in_waiting(&mut self, sender: usize) -> Result<()> {
        loop {
            let Some(peer) = &self.peers[sender] else { return Ok(()) };
            match peer.try_recv() {
                Ok(message) => self.deliver(sender, message)?,
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => return Ok(()),
            }
        }
    }

    fn deliver(&mut self, sender: usize, message: Message) -> Result<()> {
        if message.number >= self.next {
            self.early.entry(message.number).or_default().push((sender, message));
            return Ok(());
        }
        let Some(expected) = self.expected.get_mut(&message.number) else { return Ok(()) };
        if expected.operation != message.operation {
            let text = format!(
                "ranks are out of step: as operation {} rank {} called {} and rank {sender} called {}",
                message.number, self.rank, expected.operation, message.operation
            );
            return Err(self.break_with(Error::bug(text)));
        }
        expected.missing.retain(|rank| *rank != sender);
        expected.parts[sender] = message.tensor;
        Ok(())
    }

    /// The error for a rank that left before it took part in an operation.
    pub fn gone(&mut self, number: u64, sender: usize) -> Error {
        // Of several ranks that left, the first is the cause.
        let first = self.departures.missing(number, |_| true).unwrap_or(sender);
        let operation = self.describe(number);
        let text = format!("rank {first} is gone, so {operation} cannot complete");
        self.break_with(Error::new(ErrorKind::Peer, text).with("rank", self.rank))
    }

    fn silent(&mut self, number: u64, sender: usize) -> Error {
        let text = format!(
            "rank {sender} sent nothing for {:.1} s, so {} cannot complete: see what it does, or \
             raise the timeout",
            self.timeout.as_secs_f64(),
            self.describe(number)
        );
        self.break_with(Error::new(ErrorKind::Peer, text).with("rank", self.rank))
    }

    fn describe(&self, number: u64) -> String {
        match self.expected.get(&number) {
            Some(expected) => format!("{} (operation {number})", expected.operation),
            None => format!("operation {number}"),
        }
    }

    pub fn break_with(&mut self, error: Error) -> Error {
        self.broken.get_or_insert_with(|| error.to_string());
        error
    }
}
