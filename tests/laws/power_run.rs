//! A run's storage without its arithmetic: the real hierarchy over the real store, on a recorded
//! disk. Steps read, change and evict experts' blocks as a clipped training step does, spill
//! gradients, commit, and keep and drop named checkpoints.
//!
//! It notes what was promised when, so that whatever a power cut leaves can be held against it.

use crate::tiers_world::Rng;
use semoe::base::{BlockId, Part, Step, checksum};
use semoe::storage::disk::Extent;
use semoe::storage::hierarchy::{Access, Event, Hierarchy, Move, Outcome, SlotClass, SlotId, Want};
use semoe::storage::policy::{PolicyConfig, PolicyKind};
use semoe::storage::store::{ClassSpec, Store, StoreSpec};
use semoe::storage::twin::{Image, Omission, Recorder};
use std::collections::{BTreeMap, VecDeque};

const LAYERS: usize = 2;
const EXPERTS: usize = 4;
/// Commits that may be kept at a time.
const KEEP: u32 = 2;
const DENSE: BlockId = BlockId { layer: 0, expert: 0, part: Part::Dense };

fn bytes_of(part: Part) -> u64 {
    if part == Part::State { 8192 } else { 4096 }
}

pub fn spec() -> StoreSpec {
    let blocks = (LAYERS * EXPERTS) as u64;
    let class = |part, blocks| ClassSpec { part, block_bytes: bytes_of(part), blocks };
    StoreSpec {
        classes: vec![
            class(Part::Weights, blocks),
            class(Part::State, blocks),
            class(Part::Dense, 1),
            class(Part::Grad, blocks),
        ],
        keep: KEEP,
        identity: serde_json::json!({}),
    }
}

/// The bytes that a block holds when it has this value: no two sectors are alike.
pub fn content(block: BlockId, value: u64) -> Vec<u8> {
    let len = bytes_of(block.part) as usize;
    let mut rng = Rng(value ^ u64::from(block.layer) << 40 ^ u64::from(block.expert) << 50);
    (0..len / 8).flat_map(|_| rng.draw().to_le_bytes()).collect()
}

pub type Blocks = BTreeMap<BlockId, u64>;

/// What a store must show.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct State {
    pub committed: Option<Step>,
    pub kept: BTreeMap<String, Step>,
}

#[derive(Debug, Clone)]
enum Deed {
    Commit(Step),
    Keep(String, Step),
    Drop(String),
}

impl State {
    fn after(&self, deed: &Deed) -> Self {
        let mut state = self.clone();
        match deed {
            Deed::Commit(step) => state.committed = Some(*step),
            Deed::Keep(name, step) => {
                state.kept.insert(name.clone(), *step);
            }
            Deed::Drop(name) => {
                state.kept.remove(name);
            }
        }
        state
    }
}

/// What a run promised: from which effect on a deed was under way, and from which it was done.
#[derive(Debug, Clone, Default)]
pub struct History {
    first: State,
    deeds: Vec<(usize, usize, Deed)>,
    /// Every block's value as of each committed step.
    pub contents: BTreeMap<Step, Blocks>,
}

impl History {
    /// What may be found after so many effects: what was done, or that with the deed under way.
    pub fn allowed(&self, effects: usize) -> Vec<State> {
        let mut state = self.first.clone();
        for (begun, done, deed) in &self.deeds {
            if *done <= effects {
                state = state.after(deed);
            } else if *begun <= effects {
                return vec![state.clone(), state.after(deed)];
            }
        }
        vec![state]
    }
}

enum Node {
    Read(BlockId),
    Grad(usize, usize),
    Update(usize, usize),
}

/// Where the blocks of a granted ticket are.
type Slots = Vec<(BlockId, SlotId)>;

enum Transfer {
    Load(BlockId, SlotId),
    Write { block: BlockId, version: Step, number: u64, bytes: Vec<u8> },
}

/// The recorded data files of a store.
pub trait DataFiles {
    /// A write is under way; returns its name.
    fn begin_write(&self, extent: Extent, bytes: &[u8]) -> u64;
    fn end_write(&self, name: u64);
    /// Effects so far, those of the index too.
    fn effects(&self) -> usize;
}

impl DataFiles for Recorder {
    fn begin_write(&self, extent: Extent, bytes: &[u8]) -> u64 {
        Self::begin_write(self, extent, bytes)
    }

    fn end_write(&self, name: u64) {
        Self::end_write(self, name);
    }

    fn effects(&self) -> usize {
        self.len()
    }
}

/// See the module.
pub struct Run<F> {
    pub files: F,
    pub history: History,
    store: Store,
    rng: Rng,
    hierarchy: Hierarchy,
    memory: BTreeMap<SlotId, Vec<u8>>,
    /// What the disk holds of a block now.
    disk: BTreeMap<BlockId, Vec<u8>>,
    truth: Blocks,
    changed: BTreeMap<BlockId, Step>,
    /// Where each block was written last.
    placed: BTreeMap<BlockId, Extent>,
    transfers: Vec<Transfer>,
    open: BTreeMap<u64, (Node, Option<Slots>)>,
    waiting: VecDeque<Node>,
    tickets: u64,
    step: Step,
    flushed: bool,
    dense_written: bool,
    /// How often a block was written, and an uncommitted version of one overwritten in place.
    pub writes: usize,
    pub rewrites: usize,
    pub spills: usize,
}

impl Run<Recorder> {
    /// Goes on from what lies on a twin of a disk, with one call left out if `omit` names one.
    pub fn over(
        image: Image,
        contents: BTreeMap<Step, Blocks>,
        omit: Option<Omission>,
        seed: u64,
    ) -> Self {
        let recorder = Recorder::over(image, omit);
        let store = Store::over(Box::new(recorder.clone()), &spec()).unwrap();
        Self::new(store, recorder, contents, seed)
    }
}

impl<F: DataFiles> Run<F> {
    /// Goes on with a store: from the beginning, if nothing was committed. `contents` is what is
    /// known of its commits.
    pub fn new(store: Store, files: F, contents: BTreeMap<Step, Blocks>, seed: u64) -> Self {
        let class = |part, slots| SlotClass { part, slot_bytes: bytes_of(part), slots };
        let slots = [class(Part::Weights, 3), class(Part::State, 2), class(Part::Grad, 2)];
        let kind = PolicyKind::ALL[seed as usize % PolicyKind::ALL.len()];
        let hierarchy = Hierarchy::new(&slots, &PolicyConfig::of(kind)).unwrap();
        let committed = store.committed();
        let truth = committed.map(|step| contents[&step].clone()).unwrap_or_default();
        let disk = truth.iter().map(|(block, value)| (*block, content(*block, *value))).collect();
        let kept = store.checkpoints().into_iter().collect();
        let first = State { committed, kept };
        let mut run = Self {
            files,
            history: History { first, deeds: Vec::new(), contents },
            store,
            rng: Rng(seed),
            hierarchy,
            memory: BTreeMap::new(),
            disk,
            truth,
            changed: BTreeMap::new(),
            placed: BTreeMap::new(),
            transfers: Vec::new(),
            open: BTreeMap::new(),
            waiting: VecDeque::new(),
            tickets: 0,
            step: committed.unwrap_or_default(),
            flushed: false,
            dense_written: false,
            writes: 0,
            rewrites: 0,
            spills: 0,
        };
        if committed.is_none() {
            run.create();
        }
        run
    }

    /// The initial blocks, committed as step 0.
    fn create(&mut self) {
        for (layer, expert) in Self::experts() {
            for block in [BlockId::weights(layer, expert), BlockId::state(layer, expert)] {
                let value = self.rng.draw();
                self.truth.insert(block, value);
                self.write(block, 0, content(block, value));
            }
        }
        while !self.transfers.is_empty() {
            self.end_transfer();
        }
        self.write_dense();
        while !self.transfers.is_empty() {
            self.end_transfer();
        }
        self.commit_store();
    }

    fn experts() -> impl Iterator<Item = (usize, usize)> {
        (0..LAYERS).flat_map(|layer| (0..EXPERTS).map(move |expert| (layer, expert)))
    }

    /// A training step: all gradients wait for their norm, then the updates run.
    pub fn train(&mut self) {
        self.step += 1;
        let chosen: Vec<_> = Self::experts().filter(|_| self.rng.chance(70)).collect();
        for (layer, expert) in Self::experts() {
            self.waiting.push_back(Node::Read(BlockId::weights(layer, expert)));
        }
        self.waiting.extend(chosen.iter().rev().map(|(l, e)| Node::Grad(*l, *e)));
        self.settle();
        self.waiting.extend(chosen.iter().map(|(l, e)| Node::Update(*l, *e)));
        self.settle();
    }

    /// Commits the step while the next one begins to read.
    pub fn commit(&mut self) {
        self.write_dense();
        self.flushed = false;
        self.on(Event::Flush);
        for (layer, expert) in Self::experts() {
            self.waiting.push_back(Node::Read(BlockId::weights(layer, expert)));
        }
        self.settle();
        while !(self.flushed && self.dense_written) {
            self.end_transfer();
        }
        self.commit_store();
    }

    fn commit_store(&mut self) {
        let step = self.step;
        self.history.contents.insert(step, self.durable_truth());
        self.deed(Deed::Commit(step), |store| {
            store.commit(step, meta_of(step).as_bytes()).unwrap();
        });
    }

    fn durable_truth(&self) -> Blocks {
        self.truth.iter().filter(|(b, _)| b.part.is_durable()).map(|(b, v)| (*b, *v)).collect()
    }

    /// Keeps the last commit under a name; the oldest name makes room for it.
    pub fn keep(&mut self) {
        let step = self.step;
        let mut kept: Vec<_> =
            self.store.checkpoints().into_iter().map(|(name, step)| (step, name)).collect();
        kept.sort();
        if kept.len() as u32 == KEEP {
            let (_, oldest) = kept.remove(0);
            self.deed(Deed::Drop(oldest.clone()), |store| store.drop_checkpoint(&oldest).unwrap());
        }
        let name = format!("step-{step}");
        self.deed(Deed::Keep(name.clone(), step), |store| store.keep(&name, step).unwrap());
    }

    fn deed(&mut self, deed: Deed, act: impl FnOnce(&Store)) {
        let begun = self.files.effects();
        act(&self.store);
        self.history.deeds.push((begun, self.files.effects(), deed));
    }

    fn write_dense(&mut self) {
        let value = self.rng.draw();
        self.truth.insert(DENSE, value);
        self.dense_written = false;
        self.write(DENSE, self.step, content(DENSE, value));
    }

    /// Lets everything happen in an order of chance until no node is left. The last transfers may
    /// still be under way then.
    fn settle(&mut self) {
        while !self.waiting.is_empty() || !self.open.is_empty() {
            match self.rng.below(4) {
                0 if self.open.len() < 3 => self.ask(),
                1 => self.release(),
                _ => self.end_transfer(),
            }
        }
    }

    fn ask(&mut self) {
        let Some(node) = self.waiting.pop_front() else { return };
        let wants: Vec<(BlockId, Access)> = match &node {
            Node::Read(block) => vec![(*block, Access::Read)],
            Node::Grad(l, e) => {
                vec![
                    (BlockId::weights(*l, *e), Access::Read),
                    (BlockId::grad(*l, *e), Access::Create),
                ]
            }
            Node::Update(l, e) => vec![
                (BlockId::weights(*l, *e), Access::Update),
                (BlockId::state(*l, *e), Access::Update),
                (BlockId::grad(*l, *e), Access::Read),
            ],
        };
        self.tickets += 1;
        let ticket = self.tickets;
        self.open.insert(ticket, (node, None));
        let want = |(block, access): (BlockId, Access)| Want {
            block,
            access,
            next_use: ticket + 5 + u64::from(block.expert),
        };
        let wants = wants.into_iter().map(want).collect();
        self.on(Event::Acquire { ticket, priority: ticket, wants });
    }

    fn release(&mut self) {
        let granted: Vec<u64> =
            self.open.iter().filter(|(_, (_, slots))| slots.is_some()).map(|(t, _)| *t).collect();
        if granted.is_empty() {
            return;
        }
        let ticket = granted[self.rng.below(granted.len())];
        let (node, slots) = self.open.remove(&ticket).unwrap();
        let mut outcomes = Vec::new();
        for (block, slot) in slots.unwrap() {
            let outcome = match (&node, block.part) {
                (Node::Grad(..), Part::Grad) => Outcome::Dirty,
                (Node::Update(..), Part::Grad) => Outcome::Discard,
                (Node::Update(..), _) => Outcome::Dirty,
                _ => Outcome::Clean,
            };
            match outcome {
                Outcome::Dirty => {
                    let value = self.rng.draw();
                    self.truth.insert(block, value);
                    self.memory.insert(slot, content(block, value));
                    self.changed.insert(block, self.step);
                }
                Outcome::Discard => {
                    self.truth.remove(&block);
                }
                Outcome::Clean => {
                    assert_eq!(self.memory[&slot], content(block, self.truth[&block]))
                }
            }
            outcomes.push((block, outcome));
        }
        self.on(Event::Release { ticket, outcomes });
    }

    fn on(&mut self, event: Event) {
        let mut moves = Vec::new();
        self.hierarchy.on(event, &mut moves).unwrap();
        for step in moves {
            match step {
                Move::Load { block, slot, .. } => self.transfers.push(Transfer::Load(block, slot)),
                Move::Write { block, slot, .. } => {
                    let bytes = self.memory[&slot].clone();
                    self.spills += usize::from(!block.part.is_durable());
                    self.write(block, self.changed[&block], bytes);
                }
                Move::Drop { block } => self.store.drop_scratch(block).unwrap(),
                Move::Grant { ticket, slots } => {
                    self.open.get_mut(&ticket).unwrap().1 = Some(slots)
                }
                Move::Flushed { .. } => self.flushed = true,
                Move::Promote { .. } => {}
                other => panic!("nothing fails here: {other:?}"),
            }
        }
    }

    fn write(&mut self, block: BlockId, version: Step, bytes: Vec<u8>) {
        let extent = self.store.place(block, version).unwrap();
        let before = self.placed.insert(block, extent);
        self.rewrites += usize::from(block.part.is_durable() && before == Some(extent));
        let number = self.files.begin_write(extent, &bytes);
        self.writes += 1;
        self.transfers.push(Transfer::Write { block, version, number, bytes });
    }

    fn end_transfer(&mut self) {
        if self.transfers.is_empty() {
            return;
        }
        let at = self.rng.below(self.transfers.len());
        match self.transfers.swap_remove(at) {
            Transfer::Load(block, slot) => {
                self.memory.insert(slot, self.disk[&block].clone());
                self.on(Event::Loaded { block });
            }
            Transfer::Write { block, version, number, bytes } => {
                self.files.end_write(number);
                let crc = checksum::crc32c(&bytes);
                self.store.written(block, version, crc, version).unwrap();
                self.disk.insert(block, bytes);
                if block.part == Part::Dense {
                    self.dense_written = true;
                } else if self.step > 0 {
                    self.on(Event::Written { block });
                }
            }
        }
    }
}

/// What is committed beside the blocks of a step.
pub fn meta_of(step: Step) -> String {
    format!("the facts of step {step}")
}
