//! The engine: events in, commands out.
//!
//! A node passes through these phases; each arrow is one event or the room that one left:
//!
//! ```text
//! Waiting ──last dep done──▶ Queued ──its turn──▶ Acquiring ──Granted──▶ Ready ──credit──▶ Issued ──▶ done
//!                           (comm: sequence;        (only if it             (heap of its lane,
//!                            sequential: one         acquires)               most urgent first)
//!                            node at a time)
//! ```

use super::lane::Lane;
use super::live::{Live, Slot};
use super::node::{Cause, NodeId, NodeSpec};
use super::protocol::{Command, EngineConfig, EngineState, Event, Schedule};
use crate::base::clock::Nanos;
use crate::base::{Error, Result};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

/// Where a node is on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Waiting,
    Queued,
    Acquiring,
    Ready,
    Issued,
}

#[derive(Debug)]
struct Node<K> {
    id: NodeId,
    kind: Option<K>,
    lane: Lane,
    acquire: bool,
    priority: u64,
    sequence: Option<u64>,
    phase: Phase,
    /// Dependencies that are not done.
    pending: u32,
    dependents: Vec<Slot>,
    cause: Cause,
}

/// Most urgent first, then oldest. On the comm lane urgency is the sequence number.
type Queue = BinaryHeap<Reverse<(u64, NodeId, Slot)>>;

/// The pure scheduler. An error from [`Engine::on`] means that an event broke the protocol (a
/// bug of the caller); the engine must not be used after it.
#[derive(Debug)]
pub struct Engine<K> {
    config: EngineConfig,
    live: Live<Node<K>>,
    ready: [Queue; Lane::COUNT],
    outstanding: [u32; Lane::COUNT],
    acquiring: usize,
    /// Sequenced nodes that are not past their turn.
    sequenced: BTreeMap<u64, Slot>,
    /// The sequence number whose turn it is.
    turn: u64,
    /// Sequential schedule: nodes that could run, and the one that does.
    eligible: Queue,
    current: Option<NodeId>,
    done: u64,
    last_done: Option<(NodeId, Lane, Nanos)>,
    stopped: bool,
    drained: bool,
    /// Emptied dependents lists, kept so that adding a node seldom allocates.
    spare: Vec<Vec<Slot>>,
}

impl<K> Engine<K> {
    /// An engine with no nodes.
    ///
    /// # Errors
    /// A lane without credits could never run a node.
    pub fn new(config: EngineConfig) -> Result<Self> {
        if let Some(lane) = Lane::ALL.into_iter().find(|lane| config.credits.of(*lane) == 0) {
            return Err(Error::config(format!(
                "the {lane} lane has no credits, so none of its nodes could ever run: give it 1 or more"
            )));
        }
        Ok(Self {
            config,
            live: Live::new(),
            ready: Default::default(),
            outstanding: [0; Lane::COUNT],
            acquiring: 0,
            sequenced: BTreeMap::new(),
            turn: 0,
            eligible: Queue::new(),
            current: None,
            done: 0,
            last_done: None,
            stopped: false,
            drained: false,
            spare: Vec::new(),
        })
    }

    /// Takes in one event that happened at `now` and appends what is to be done to `out`.
    ///
    /// # Errors
    /// The event broke the protocol: an id out of order, a grant that was not asked for, the end
    /// of a node that was not issued, a sequence number used twice. These are bugs.
    pub fn on(&mut self, now: Nanos, event: Event<K>, out: &mut Vec<Command<K>>) -> Result<()> {
        match event {
            Event::Add(specs) => {
                for spec in specs {
                    self.add(now, spec, out)?;
                }
            }
            Event::Granted(id) => self.granted(now, id, out)?,
            Event::Done(id) => self.finished(now, id, out)?,
            Event::Failed(id) => self.failed(id)?,
            Event::Stop => self.stopped = true,
        }
        self.pump(now, out)
    }

    /// The id that the next added node must have.
    pub fn next_id(&self) -> NodeId {
        self.live.next_id()
    }

    /// The sequence number whose turn it is on the comm lane.
    pub fn next_sequence(&self) -> u64 {
        self.turn
    }

    /// Whether a node ended. False for live nodes and for ids that were not added yet.
    pub fn is_done(&self, id: NodeId) -> bool {
        id < self.next_id() && self.live.find(id).is_none()
    }

    /// Every id below this one is done.
    pub fn low_water(&self) -> NodeId {
        self.live.low()
    }

    /// Whether every node that was added is done.
    pub fn is_idle(&self) -> bool {
        self.live.len() == 0
    }

    /// The work of a node that was not issued yet, for whoever gets its blocks.
    pub fn kind(&self, id: NodeId) -> Option<&K> {
        self.live.find(id).and_then(|slot| self.live.get(slot).kind.as_ref())
    }

    /// The priority of a live node.
    pub fn priority(&self, id: NodeId) -> Option<u64> {
        self.live.find(id).map(|slot| self.live.get(slot).priority)
    }

    /// Counts, for observers.
    pub fn state(&self) -> EngineState {
        let in_phase = |phase| self.live.iter().filter(|(_, node)| node.phase == phase).count();
        EngineState {
            schedule: self.config.schedule,
            added: self.next_id(),
            done: self.done,
            waiting: in_phase(Phase::Waiting),
            queued: in_phase(Phase::Queued),
            acquiring: self.acquiring,
            ready: std::array::from_fn(|lane| self.ready[lane].len()),
            outstanding: self.outstanding,
            next_sequence: self.turn,
            stopped: self.stopped,
        }
    }

    /// Says why nothing can ever happen again unless nodes are added: live nodes, none of them
    /// outstanding or acquiring. None while something is under way, or after a stop. With the
    /// rules above only a gap in the sequence numbers leads here.
    pub fn stuck(&self) -> Option<Error> {
        let under_way = self.acquiring > 0 || self.outstanding.iter().any(|count| *count > 0);
        if self.stopped || under_way {
            return None;
        }
        let (id, node) = self.live.iter().find(|(_, node)| node.phase == Phase::Queued)?;
        let error = Error::bug(format!(
            "nothing can run: node {id} holds comm sequence {:?} and number {} was never added",
            node.sequence.unwrap_or_default(),
            self.turn,
        ));
        Some(error.with("live", self.live.len()))
    }

    fn add(&mut self, now: Nanos, spec: NodeSpec<K>, out: &mut Vec<Command<K>>) -> Result<()> {
        let NodeSpec { id, kind, lane, deps, acquire, priority, sequence } = spec;
        if id != self.next_id() {
            return Err(Error::bug("a node was added out of order")
                .with("node", id)
                .with("expected", self.next_id()));
        }
        if let Some(dep) = deps.iter().find(|dep| **dep >= id) {
            return Err(Error::bug("a node may depend only on older nodes")
                .with("node", id)
                .with("dependency", dep));
        }
        if sequence.is_some() != (lane == Lane::Comm) {
            let message = "a node of the comm lane, and no other, has a sequence number";
            return Err(Error::bug(message).with("node", id).with("lane", lane));
        }
        if let Some(sequence) = sequence
            && (sequence < self.turn || self.sequenced.contains_key(&sequence))
        {
            return Err(Error::bug("a comm sequence number was used twice")
                .with("node", id)
                .with("sequence", sequence));
        }

        let mut cause = Cause::new();
        if let Some((by, lane, at)) = self.last_done {
            cause.by = Some((by, lane));
            cause.by_ended = at;
        }
        let slot = self.live.insert(Node {
            id,
            kind: Some(kind),
            lane,
            acquire,
            priority,
            sequence,
            phase: Phase::Waiting,
            pending: 0,
            dependents: self.spare.pop().unwrap_or_default(),
            cause,
        });
        let mut pending = 0;
        for dep in deps {
            if let Some(dep) = self.live.find(dep) {
                self.live.get_mut(dep).dependents.push(slot);
                pending += 1;
            }
        }
        if let Some(sequence) = sequence {
            self.sequenced.insert(sequence, slot);
        }
        self.live.get_mut(slot).pending = pending;
        if pending == 0 && !self.stopped {
            self.enable(now, slot, out);
        }
        Ok(())
    }

    fn granted(&mut self, now: Nanos, id: NodeId, out: &mut Vec<Command<K>>) -> Result<()> {
        let slot = self.live_slot(id, "blocks were granted to")?;
        if self.live.get(slot).phase != Phase::Acquiring {
            return Err(
                Error::bug("blocks were granted to a node that asked for none").with("node", id)
            );
        }
        self.acquiring -= 1;
        self.make_ready(now, slot);
        if !self.stopped {
            self.advance_turn(now, out);
        }
        Ok(())
    }

    fn finished(&mut self, now: Nanos, id: NodeId, out: &mut Vec<Command<K>>) -> Result<()> {
        let slot = self.live_slot(id, "an end was reported for")?;
        let node = self.live.get_mut(slot);
        if node.phase != Phase::Issued {
            return Err(
                Error::bug("an end was reported for a node that was not issued").with("node", id)
            );
        }
        let lane = node.lane;
        let mut dependents = std::mem::take(&mut node.dependents);
        self.outstanding[lane.index()] -= 1;
        self.live.remove(id);
        self.done += 1;
        self.last_done = Some((id, lane, now));
        if self.current == Some(id) {
            self.current = None;
        }
        if self.stopped {
            return Ok(());
        }
        for dependent in dependents.drain(..) {
            let node = self.live.get_mut(dependent);
            node.pending -= 1;
            if node.pending == 0 {
                node.cause.by = Some((id, lane));
                node.cause.by_ended = now;
                self.enable(now, dependent, out);
            }
        }
        self.spare.push(dependents);
        Ok(())
    }

    /// Ends a node without enabling what depends on it.
    fn failed(&mut self, id: NodeId) -> Result<()> {
        let slot = self.live_slot(id, "a failure was reported for")?;
        self.stopped = true;
        // The node stays live in name (its dependents never run), but is no longer outstanding.
        let node = self.live.get_mut(slot);
        match node.phase {
            Phase::Issued => self.outstanding[node.lane.index()] -= 1,
            Phase::Acquiring => self.acquiring -= 1,
            Phase::Waiting | Phase::Queued | Phase::Ready => {}
        }
        node.phase = Phase::Waiting;
        Ok(())
    }

    fn live_slot(&self, id: NodeId, what: &str) -> Result<Slot> {
        self.live.find(id).ok_or_else(|| {
            Error::bug(format!("{what} a node that is not live"))
                .with("node", id)
                .with("next", self.next_id())
        })
    }

    /// All dependencies of a node are done.
    fn enable(&mut self, now: Nanos, slot: Slot, out: &mut Vec<Command<K>>) {
        let node = self.live.get_mut(slot);
        node.cause.enabled = now;
        node.phase = Phase::Queued;
        match (node.sequence, self.config.schedule) {
            (Some(_), _) => self.advance_turn(now, out),
            (None, Schedule::Overlapped) => self.acquire(now, slot, out),
            (None, Schedule::Sequential) => {
                let entry = (node.priority, node.id, slot);
                self.eligible.push(Reverse(entry));
            }
        }
    }

    /// Lets sequenced nodes past their turn. The turn moves on when its node is ready (all its
    /// dependencies done and its blocks pinned), so no later collective can hold a slot that
    /// this one, or anything before it, still needs.
    fn advance_turn(&mut self, now: Nanos, out: &mut Vec<Command<K>>) {
        while let Some(&slot) = self.sequenced.get(&self.turn) {
            let node = self.live.get(slot);
            if node.phase != Phase::Queued {
                return;
            }
            let entry = (node.priority, node.id, slot);
            match self.config.schedule {
                Schedule::Overlapped => self.acquire(now, slot, out),
                Schedule::Sequential => {
                    // It keeps the turn until it is issued: phase Ready here means "eligible".
                    self.live.get_mut(slot).phase = Phase::Ready;
                    self.eligible.push(Reverse(entry));
                }
            }
        }
    }

    /// Asks for a node's blocks, or goes on at once if it needs none.
    fn acquire(&mut self, now: Nanos, slot: Slot, out: &mut Vec<Command<K>>) {
        let node = self.live.get_mut(slot);
        node.cause.acquired = now;
        if !node.acquire {
            return self.make_ready(now, slot);
        }
        node.phase = Phase::Acquiring;
        self.acquiring += 1;
        out.push(Command::Acquire(node.id));
    }

    fn make_ready(&mut self, now: Nanos, slot: Slot) {
        let node = self.live.get_mut(slot);
        node.cause.granted = now;
        node.phase = Phase::Ready;
        let urgency = node.sequence.unwrap_or(node.priority);
        self.ready[node.lane.index()].push(Reverse((urgency, node.id, slot)));
        if let Some(sequence) = node.sequence {
            self.sequenced.remove(&sequence);
            self.turn = sequence + 1;
        }
    }

    /// Issues what there is room for.
    fn pump(&mut self, now: Nanos, out: &mut Vec<Command<K>>) -> Result<()> {
        if self.stopped {
            if !self.drained && self.outstanding.iter().all(|count| *count == 0) {
                self.drained = true;
                out.push(Command::Drained);
            }
            return Ok(());
        }
        self.choose_next(now, out);
        for lane in Lane::ALL {
            let credits = self.config.credits.of(lane);
            while self.outstanding[lane.index()] < credits
                && let Some(Reverse((_, _, slot))) = self.ready[lane.index()].pop()
            {
                self.issue(now, slot, out)?;
            }
        }
        Ok(())
    }

    /// Sequential schedule: starts the next node if none is under way.
    fn choose_next(&mut self, now: Nanos, out: &mut Vec<Command<K>>) {
        if self.current.is_some() {
            return;
        }
        let Some(Reverse((_, id, slot))) = self.eligible.pop() else { return };
        self.current = Some(id);
        let node = self.live.get_mut(slot);
        // It waited for the node that ran before, if that ended later than its dependencies.
        if let Some((by, lane, at)) = self.last_done
            && at >= node.cause.enabled
        {
            node.cause.by = Some((by, lane));
            node.cause.by_ended = at;
            node.cause.enabled = at;
        }
        self.acquire(now, slot, out);
        self.advance_turn(now, out);
    }

    fn issue(&mut self, now: Nanos, slot: Slot, out: &mut Vec<Command<K>>) -> Result<()> {
        let node = self.live.get_mut(slot);
        node.phase = Phase::Issued;
        node.cause.issued = now;
        let kind = node.kind.take();
        let kind =
            kind.ok_or_else(|| Error::bug("a node was issued twice").with("node", node.id))?;
        self.outstanding[node.lane.index()] += 1;
        out.push(Command::Issue(node.id, kind, node.lane, node.cause));
        Ok(())
    }
}
