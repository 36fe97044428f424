//! A session: ranks that wait for passes, for everything that is not a training run: evaluation,
//! sampling, and checking a checkpoint against a reference.

use super::data::Batch as StepBatch;
use super::feed::Division;
use super::launch::{self, Ranks, Ready};
use super::pipeline::Pipeline;
use crate::actors::link::RankEvent;
use crate::actors::message::Directive;
use crate::actors::script::OnDemand;
use crate::actors::stage::{Batch, BatchSource, PassNumbers};
use crate::base::{Error, Result, Step};
use crate::graph::planner::Pass;
use crossbeam_channel::{Receiver, Sender, unbounded};
use std::time::Duration;

/// Ranks that run one pass at a time.
pub struct Session {
    ranks: Ranks,
    feeds: Vec<Sender<Batch>>,
    divisions: Vec<Division>,
    step: Step,
    passes: u32,
}

struct Waiting(Receiver<Batch>);

impl BatchSource for Waiting {
    fn batch(&mut self, _: Step, _: Pass) -> Result<Batch> {
        self.0.recv().map_err(|_| Error::bug("the session ended before its pass began"))
    }
}

impl Session {
    /// Starts the ranks on stores that are ready.
    pub fn start(pipeline: &Pipeline, ready: &Ready) -> Result<Self> {
        let load = &ready.load;
        let mut feeds = Vec::with_capacity(load.ranks);
        let ranks = launch::start(
            pipeline,
            ready,
            |_| Box::new(OnDemand),
            |_| {
                let (feed, inbox) = unbounded();
                feeds.push(feed);
                Ok(Box::new(Waiting(inbox)))
            },
        )?;
        let divisions = (0..load.ranks)
            .map(|rank| Division {
                rank,
                ranks: load.ranks,
                batch: load.batch,
                micro_batches: load.micro_batches,
                seq: load.seq,
            })
            .collect();
        Ok(Self { ranks, feeds, divisions, step: ready.meta.step, passes: 0 })
    }

    fn run(
        &mut self,
        pass: Pass,
        batch: &StepBatch,
        logits_of: &[Vec<Vec<i64>>],
    ) -> Result<Vec<PassNumbers>> {
        for ((feed, division), rows) in self.feeds.iter().zip(&self.divisions).zip(logits_of) {
            drop(feed.send(division.divide(batch, rows.clone())));
        }
        self.ranks.tell(&Directive::Pass { step: self.step, pass });
        let mut numbers: Vec<Option<PassNumbers>> = vec![None; self.feeds.len()];
        while numbers.iter().any(Option::is_none) {
            match self.ranks.next(Duration::from_secs(3600)) {
                Some((rank, RankEvent::Pass(report))) => numbers[rank] = Some(report.numbers),
                Some(_) => {}
                None => return Err(Error::bug("a session's ranks ended before their pass")),
            }
        }
        Ok(numbers.into_iter().flatten().collect())
    }

    /// One training step on `batch`.
    ///
    /// # Errors
    /// The cause, if a rank failed; then [`Session::finish`] tells it too.
    pub fn train(&mut self, batch: &StepBatch) -> Result<PassNumbers> {
        self.step += 1;
        let none = vec![Vec::new(); self.feeds.len()];
        Ok(self.run(Pass::Train, batch, &none)?.swap_remove(0))
    }

    /// Brings every idle expert up to date, as if it had been updated at every step.
    pub fn catch_up(&self) {
        self.ranks.tell(&Directive::CatchUp);
    }

    /// The loss of `batch`, without an update.
    pub fn evaluate(&mut self, batch: &StepBatch) -> Result<PassNumbers> {
        self.passes += 1;
        let none = vec![Vec::new(); self.feeds.len()];
        Ok(self.run(Pass::Forward(self.passes), batch, &none)?.swap_remove(0))
    }

    /// Logits `[V]` of the given tokens of `batch`, each `(sequence, position)`, in order.
    pub fn logits(&mut self, batch: &StepBatch, at: &[(usize, usize)]) -> Result<Vec<Vec<f32>>> {
        self.passes += 1;
        let division = self.divisions[0];
        let each = division.batch / (division.micro_batches * division.ranks);
        let mut rows = vec![vec![Vec::new(); division.micro_batches]; division.ranks];
        let mut places = Vec::with_capacity(at.len());
        for &(sequence, position) in at {
            let chunk = sequence / each;
            let (mb, rank) = (chunk / division.ranks, chunk % division.ranks);
            let row = ((sequence % each) * batch.seq + position) as i64;
            places.push((rank, mb, rows[rank][mb].len()));
            rows[rank][mb].push(row);
        }
        // A rank hands out its micro-batches' rows one after another.
        let start = |rank: usize, mb: usize| rows[rank][..mb].iter().map(Vec::len).sum::<usize>();
        let numbers = self.run(Pass::Forward(self.passes), batch, &rows)?;
        places
            .into_iter()
            .map(|(rank, mb, index)| {
                let all = &numbers[rank].logits;
                all.get(start(rank, mb) + index)
                    .cloned()
                    .ok_or_else(|| Error::bug("a pass gave fewer logits than were asked for"))
            })
            .collect()
    }

    /// Ends the ranks.
    ///
    /// # Errors
    /// The first cause, if a rank failed.
    pub fn finish(self) -> Result<()> {
        self.ranks.tell(&Directive::Finish);
        drop(self.feeds);
        self.ranks.join()
    }
}

/// Runs `body` in a session; its ranks' failure explains the body's.
pub fn with<T>(
    pipeline: &Pipeline,
    ready: &Ready,
    body: impl FnOnce(&mut Session) -> Result<T>,
) -> Result<T> {
    let mut session = Session::start(pipeline, ready)?;
    let result = body(&mut session);
    let finished = session.finish();
    match (result, finished) {
        (Ok(value), Ok(())) => Ok(value),
        (_, Err(error)) | (Err(error), Ok(())) => Err(error),
    }
}
