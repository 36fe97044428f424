//! The executor's stage: it runs on through the layers while experts are resident, tells what is
//! missing the moment a gate has spoken, and computes what arrives.
//!
//! Law 1, here: an expert is computed on bytes that a lease pins. Law 4: nothing that the order of
//! arrival could change is summed before all of it is there (see [`super::mix`]).
//!
//! Legend: T rows of a pass, H hidden, V vocabulary. A seat is a sequence's place, with a cache
//! of keys and values of its own.

use super::foresight::{Foresight, PredictorKind, Tally};
use super::habits::Habits;
use super::mix::Mix;
use super::sampler::Sampler;
use super::session::{Inbox, Job, Reason, Said};
use crate::actors::cache::{Cache, Held};
use crate::actors::rank::Herald;
use crate::actors::stage::{Incoming, Outcome, PassNumbers, Stage};
use crate::base::{BlockId, Error, Result};
use crate::graph::planner::decode::{hour, next_use};
use crate::graph::planner::{Fact, Task, Work as Node};
use crate::model::checkpoint::Source;
use crate::model::forward::{Forward, KvCache, Routes, Row};
use crate::model::kernels::linear::{Activations, Work};
use crate::storage::in_place::InPlace;
use crate::storage::lease::Lease;
use crossbeam_channel::Sender;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// What the stage is made of.
pub struct Parts {
    pub forward: Forward,
    pub source: Arc<Source>,
    pub files: Arc<InPlace>,
    pub cache: Arc<Cache>,
    pub herald: Herald,
    pub threads: usize,
    pub activations: Activations,
    /// One a seat.
    pub caches: Vec<KvCache>,
    pub chunk: usize,
    pub predictor: PredictorKind,
    pub habits: Arc<Mutex<Habits>>,
    /// Where the predictor's tally is told.
    pub tally: Arc<Mutex<Tally>>,
    pub inbox: Arc<Inbox>,
    pub said: Sender<Said>,
}

/// A text under way.
#[derive(Debug)]
struct Sequence {
    job: Job,
    /// Prompt, then what was made.
    tokens: Vec<u32>,
    /// Tokens that the cache holds.
    fed: usize,
    reused: usize,
    made: usize,
    sampler: Sampler,
}

/// A seat: who sits there, and which tokens its cache holds.
#[derive(Debug, Default)]
struct Seat {
    sequence: Option<Sequence>,
    kept: Vec<u32>,
}

/// A row of which logits are wanted.
#[derive(Debug, Clone, Copy)]
struct Output {
    row: usize,
    seat: usize,
    position: usize,
}

/// The rows of the pass that runs.
#[derive(Debug, Default)]
struct Rows {
    rows: Vec<Row>,
    tokens: Vec<u32>,
    outputs: Vec<Output>,
    output_rows: Vec<usize>,
    x_th: Vec<f32>,
    y_th: Vec<f32>,
    logits: Vec<f32>,
    began: Option<Instant>,
}

/// See the module.
pub struct DecodeStage {
    parts: Parts,
    work: Work,
    seats: Vec<Seat>,
    pass: Rows,
    routes: Routes,
    mix: Mix,
    foresight: Foresight,
    chosen: Vec<usize>,
    blocks: Vec<BlockId>,
    lacking: Vec<BlockId>,
    held: Vec<Option<Held>>,
}

impl DecodeStage {
    /// # Errors
    /// As [`Work::new`].
    pub fn new(parts: Parts) -> Result<Self> {
        let seats = parts.caches.iter().map(|_| Seat::default()).collect();
        let top_k = parts.forward.config().top_k;
        let foresight = Foresight::new(parts.predictor, top_k, Arc::clone(&parts.habits));
        Ok(Self {
            work: Work::new(parts.threads, parts.activations)?,
            seats,
            pass: Rows::default(),
            routes: Routes::default(),
            mix: Mix::default(),
            foresight,
            chosen: Vec::new(),
            blocks: Vec::new(),
            lacking: Vec::new(),
            held: Vec::new(),
            parts,
        })
    }

    /// Runs from `from` on; see the module.
    fn advance(&mut self, task: Task, from: usize) -> Result<Outcome> {
        let layers = self.parts.forward.config().layers;
        if from == 0 {
            self.compose();
            if self.pass.rows.is_empty() {
                return Ok(self.ended());
            }
            self.parts.forward.embed(&self.pass.tokens, &mut self.pass.x_th)?;
        } else {
            self.mix.add_to(&mut self.pass.x_th, &mut self.work)?;
        }
        for layer in from..layers {
            let parts = &mut self.parts;
            let Rows { rows, output_rows, x_th, y_th, .. } = &mut self.pass;
            let (caches, work) = (&mut parts.caches, &mut self.work);
            if layer + 1 < layers || output_rows.len() == rows.len() {
                parts.forward.attention(layer, x_th, rows, caches, y_th, work)?;
            } else {
                // What else the last layer would compute nobody asks for.
                parts.forward.attention_of(layer, x_th, rows, output_rows, caches, y_th, work)?;
                let asked = output_rows.len() * parts.forward.config().hidden;
                x_th.truncate(asked);
                y_th.truncate(asked);
                if asked == 0 {
                    break;
                }
            }
            let routed = parts.forward.route(layer, y_th, &mut self.routes, &mut self.work)?;
            if !routed {
                parts.forward.shared(layer, y_th, x_th, &mut self.work)?;
                continue;
            }
            let missing = self.gather(task, layer);
            let Rows { x_th, y_th, .. } = &mut self.pass;
            self.parts.forward.shared(layer, y_th, x_th, &mut self.work)?;
            self.foresee(task, layer + 1, missing)?;
            self.compute_held(missing)?;
            if missing {
                return Ok(Outcome::fact(Fact::Done));
            }
            self.mix.add_to(&mut self.pass.x_th, &mut self.work)?;
        }
        self.speak()?;
        Ok(self.ended())
    }

    /// Pins the chosen experts that are resident and tells which are not; whether there are any.
    fn gather(&mut self, task: Task, layer: usize) -> bool {
        let config = self.parts.forward.config();
        self.mix.begin(&self.routes, config.hidden);
        self.chosen.clear();
        self.chosen.extend(self.mix.chosen());
        self.foresight.chose(layer, &self.chosen);
        self.blocks.clear();
        self.blocks.extend(self.chosen.iter().map(|expert| BlockId::weights(layer, *expert)));
        let now = hour(config.layers, task.step, layer);
        let choices = self.routes.experts.len();
        let next_use = next_use(config.layers, task.step, layer, choices, config.experts);
        self.parts.cache.hold_resident(now, next_use, &self.blocks, &mut self.held);
        let absent = self.blocks.iter().zip(&self.held).filter(|(_, held)| held.is_none());
        let experts: Vec<usize> = absent.map(|(block, _)| usize::from(block.expert)).collect();
        let missing = !experts.is_empty();
        if missing {
            self.parts.herald.tell(task, Fact::Missing { layer, experts, next_use });
        }
        missing
    }

    /// Guesses the experts of the next layer, and tells those that are worth reading ahead: behind those
    /// that this layer is `missing`, so that these are with the disk first.
    fn foresee(&mut self, task: Task, layer: usize, missing: bool) -> Result<()> {
        let mut experts = Vec::new();
        let none = self.parts.predictor == PredictorKind::None;
        if !none && layer < self.parts.forward.config().layers {
            let Rows { rows, output_rows, x_th, .. } = &self.pass;
            let forward = &self.parts.forward;
            let asked = (layer + 1 == forward.config().layers).then_some(&output_rows[..]);
            let work = &mut self.work;
            let guess = self.foresight.guess(forward, layer, rows.len(), asked, x_th, work)?;
            self.blocks.clear();
            self.blocks.extend(guess.iter().map(|expert| BlockId::weights(layer, *expert)));
            self.parts.cache.lacking(&self.blocks, &mut self.lacking);
            self.chosen.clear();
            self.chosen.extend(self.lacking.iter().map(|block| usize::from(block.expert)));
            experts.extend(self.foresight.lacks(&self.chosen));
        }
        if !experts.is_empty() {
            self.parts.herald.tell(task, Fact::Likely { layer, experts });
        } else if !missing {
            self.parts.cache.settle();
        }
        Ok(())
    }

    /// Computes the chosen experts that are resident: all together, but for those of many rows while others
    /// are `missing`, which wait for the slots.
    fn compute_held(&mut self, missing: bool) -> Result<()> {
        let mut held = std::mem::take(&mut self.held);
        if missing && self.routes.rows() > 1 {
            for held in held.drain(..).flatten() {
                self.compute(held.block(), held.bytes())?;
            }
        } else {
            let (mut pieces, mut weights) = (Vec::new(), Vec::with_capacity(held.len()));
            self.chosen.clear();
            for held in held.iter().flatten() {
                let block = held.block();
                let (layer, expert) = (usize::from(block.layer), usize::from(block.expert));
                self.parts.files.pieces(block, held.bytes(), &mut pieces)?;
                weights.push(self.parts.source.expert(layer, expert, &pieces)?);
                self.chosen.push(expert);
            }
            self.mix.run_all(&self.chosen, &weights, &self.pass.y_th, &mut self.work)?;
            drop(weights);
            held.clear();
        }
        self.held = held;
        Ok(())
    }

    fn compute(&mut self, block: BlockId, slot: &[u8]) -> Result<()> {
        let mut pieces = Vec::new();
        self.parts.files.pieces(block, slot, &mut pieces)?;
        let (layer, expert) = (usize::from(block.layer), usize::from(block.expert));
        let weights = self.parts.source.expert(layer, expert, &pieces)?;
        self.mix.run(expert, &weights, &self.pass.y_th, &mut self.work)
    }

    /// The rows of the next pass: a chunk of prompts if any is unread, else one row of each text.
    fn compose(&mut self) {
        self.pass.began = Some(Instant::now());
        self.stop_those_asked();
        self.seat_jobs();
        let Rows { rows, tokens, outputs, output_rows, x_th, y_th, .. } = &mut self.pass;
        rows.clear();
        tokens.clear();
        outputs.clear();
        let unread = |seat: &Seat| seat.sequence.as_ref().map_or(0, |s| s.tokens.len() - s.fed);
        let reading = self.seats.iter().any(|seat| unread(seat) > 1);
        let most = if reading { self.parts.chunk } else { usize::MAX };
        for (index, seat) in self.seats.iter_mut().enumerate() {
            let Some(sequence) = &mut seat.sequence else { continue };
            let left = sequence.tokens.len() - sequence.fed;
            let taken = left.min(most - rows.len().min(most));
            for position in sequence.fed..sequence.fed + taken {
                if position + 1 == sequence.tokens.len() || sequence.job.logits {
                    outputs.push(Output { row: rows.len(), seat: index, position });
                }
                rows.push(Row { sequence: index, position });
                tokens.push(sequence.tokens[position]);
            }
            sequence.fed += taken;
        }
        output_rows.clear();
        output_rows.extend(outputs.iter().map(|output| output.row));
        let hidden = self.parts.forward.config().hidden;
        x_th.resize(rows.len() * hidden, 0.0);
        y_th.resize(rows.len() * hidden, 0.0);
    }

    fn stop_those_asked(&mut self) {
        for index in 0..self.seats.len() {
            let stop = |sequence: &Sequence| sequence.job.stop.load(Ordering::Relaxed);
            if self.seats[index].sequence.as_ref().is_some_and(stop) {
                self.end(index, Reason::Stopped);
            }
        }
    }

    /// Gives free seats to waiting jobs: the one whose cache begins most like the prompt.
    fn seat_jobs(&mut self) {
        while self.seats.iter().any(|seat| seat.sequence.is_none()) {
            let Some(job) = self.parts.inbox.take() else { return };
            // The last token is read again in any case, for its logits.
            let usable = match job.logits {
                true => 0,
                false => job.prompt.len().saturating_sub(1),
            };
            let common = |seat: &Seat| {
                let pairs = seat.kept.iter().zip(&job.prompt[..usable]);
                pairs.take_while(|(kept, token)| kept == token).count()
            };
            let free = self.seats.iter().enumerate().filter(|(_, seat)| seat.sequence.is_none());
            // Of equals the emptiest: what others keep may serve them again.
            let best = free.max_by_key(|(_, seat)| (common(seat), usize::MAX - seat.kept.len()));
            let Some(index) = best.map(|(index, _)| index) else { return };
            let reused = common(&self.seats[index]);
            self.parts.caches[index].truncate(reused);
            let mut sampler = Sampler::new(job.sampling);
            job.prompt.iter().for_each(|token| sampler.note(*token));
            let tokens = job.prompt.clone();
            let seat = &mut self.seats[index];
            seat.kept.clear();
            seat.sequence = Some(Sequence { job, tokens, fed: reused, reused, made: 0, sampler });
        }
    }

    fn end(&mut self, index: usize, reason: Reason) {
        let seat = &mut self.seats[index];
        let Some(sequence) = seat.sequence.take() else { return };
        seat.kept = sequence.tokens;
        seat.kept.truncate(sequence.fed);
        let ended = Said::Ended { id: sequence.job.id, reason, reused: sequence.reused };
        // Whoever asked may have gone; the executor goes on for the others.
        drop(self.parts.said.send(ended));
        self.parts.inbox.ended();
    }

    /// Head and sampler for the rows that have an output.
    fn speak(&mut self) -> Result<()> {
        let Rows { x_th, outputs, logits, .. } = &mut self.pass;
        if outputs.is_empty() {
            return Ok(());
        }
        self.parts.forward.head(x_th, logits, &mut self.work)?;
        let vocab = self.parts.forward.config().vocab;
        let outputs = std::mem::take(outputs);
        for (nth, output) in outputs.iter().enumerate() {
            self.output(*output, nth * vocab..(nth + 1) * vocab)?;
        }
        self.pass.outputs = outputs;
        Ok(())
    }

    fn output(&mut self, output: Output, of: std::ops::Range<usize>) -> Result<()> {
        let Output { seat, position, .. } = output;
        let capacity = self.parts.caches[seat].capacity();
        let Some(sequence) = &mut self.seats[seat].sequence else { return Ok(()) };
        let logits = &self.pass.logits[of];
        let id = sequence.job.id;
        if sequence.job.logits {
            let said = Said::Logits { id, position, logits: logits.to_vec() };
            drop(self.parts.said.send(said));
        }
        if position + 1 < sequence.tokens.len() {
            return Ok(());
        }
        if sequence.made >= sequence.job.most {
            self.end(seat, Reason::Length);
            return Ok(());
        }
        let token = match sequence.job.given.get(sequence.made) {
            Some(token) => *token,
            None => sequence
                .sampler
                .choose(logits, position + 1)
                .map_err(|error| error.with("sequence", id).with("position", position))?,
        };
        sequence.sampler.note(token);
        sequence.tokens.push(token);
        sequence.made += 1;
        drop(self.parts.said.send(Said::Token { id, token }));
        let reason = if sequence.job.ends.contains(&token) {
            Reason::End
        } else if sequence.made >= sequence.job.most {
            Reason::Length
        } else if sequence.tokens.len() >= capacity {
            Reason::Context
        } else {
            return Ok(());
        };
        self.end(seat, reason);
        Ok(())
    }

    /// The pass is over.
    fn ended(&mut self) -> Outcome {
        *self.parts.tally.lock().unwrap_or_else(PoisonError::into_inner) = self.foresight.tally();
        let seconds = self.pass.began.map_or(0.0, |began| began.elapsed().as_secs_f64());
        let numbers = PassNumbers {
            tokens: self.pass.rows.len() as u64,
            targets: self.pass.outputs.len() as u64,
            seconds,
            ..PassNumbers::default()
        };
        Outcome { numbers: Some(Box::new(numbers)), ..Outcome::fact(Fact::Ended) }
    }
}

impl Stage for DecodeStage {
    fn run(&mut self, task: Task, lease: &mut Lease) -> Result<Outcome> {
        match task.work {
            Node::Advance { layer } => self.advance(task, layer),
            Node::Expert { layer, expert } => {
                let block = BlockId::weights(layer, expert);
                self.compute(block, lease.bytes(block)?)?;
                Ok(Outcome::fact(Fact::Done))
            }
            work => Err(Error::bug("a generator has no such work").with("work", work)),
        }
    }

    fn deliver(&mut self, _: Task, _: Incoming) -> Result<()> {
        Err(Error::bug("nothing is delivered to a generator"))
    }
}
