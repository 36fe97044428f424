//! From a data source's step batches to the micro-batches of a rank.
//!
//! Law 5: the step batch is the same whatever the number of ranks. Micro-batch m holds the
//! sequences `m * B/M ..`, and rank r the r-th part of each, so tokens keep their global index.

use super::data::{Batch as StepBatch, DataSource, IGNORED};
use crate::actors::stage::{Batch, BatchSource};
use crate::base::{Error, Result, Step};
use crate::graph::planner::Pass;

/// How a step batch is divided.
#[derive(Debug, Clone, Copy)]
pub struct Division {
    pub rank: usize,
    pub ranks: usize,
    /// Sequences of a step over all ranks.
    pub batch: usize,
    pub micro_batches: usize,
    pub seq: usize,
}

impl Division {
    /// This rank's part of a step batch. A batch with fewer sequences is filled up with ones that
    /// take no loss.
    pub fn divide(&self, step: &StepBatch, logits_of: Vec<Vec<i64>>) -> Batch {
        let sequences = self.batch / (self.micro_batches * self.ranks);
        let mut batch = Batch {
            ids: Vec::with_capacity(self.micro_batches),
            targets: Vec::with_capacity(self.micro_batches),
            sequences,
            length: step.seq,
            first_token: Vec::with_capacity(self.micro_batches),
            total_tokens: (self.batch * step.seq) as u64,
            total_targets: step.total_targets(),
            logits_of,
        };
        for mb in 0..self.micro_batches {
            let first = (mb * self.ranks + self.rank) * sequences;
            let fill = |values: &[i64], empty: i64| -> Vec<i64> {
                let from = (first * step.seq).min(values.len());
                let to = ((first + sequences) * step.seq).min(values.len());
                let mut rows = values[from..to].to_vec();
                rows.resize(sequences * step.seq, empty);
                rows
            };
            batch.ids.push(fill(&step.ids, 0));
            batch.targets.push(fill(&step.targets, IGNORED));
            batch.first_token.push((first * step.seq) as u64);
        }
        batch
    }
}

/// A rank's view of a data source.
pub struct Feed {
    pub data: Box<dyn DataSource>,
    pub division: Division,
}

impl BatchSource for Feed {
    fn batch(&mut self, step: Step, pass: Pass) -> Result<Batch> {
        let batch = match pass {
            Pass::Train => self.data.batch(step)?,
            Pass::Forward(index) => self.data.validation_batch(u64::from(index))?,
        };
        if pass == Pass::Train && batch.batch != self.division.batch {
            return Err(Error::input("the data source gave a batch of another size")
                .with("got", batch.batch)
                .with("expected", self.division.batch));
        }
        Ok(self.division.divide(&batch, Vec::new()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_and_micro_batches_cover_the_step_once() {
        let ids: Vec<i64> = (0..24).collect();
        let step = StepBatch { batch: 8, seq: 3, targets: ids.clone(), ids };
        let mut seen = Vec::new();
        for mb in 0..2 {
            for rank in 0..2 {
                let division = Division { rank, ranks: 2, batch: 8, micro_batches: 2, seq: 3 };
                let part = division.divide(&step, vec![]);
                assert_eq!(part.first_token[mb], part.ids[mb][0] as u64);
                seen.extend(part.ids[mb].clone());
            }
        }
        assert_eq!(seen, (0..24).collect::<Vec<i64>>());
    }

    #[test]
    fn a_short_batch_is_filled_without_loss() {
        let step = StepBatch { batch: 1, seq: 2, ids: vec![5, 6], targets: vec![6, 7] };
        let division = Division { rank: 0, ranks: 1, batch: 2, micro_batches: 1, seq: 2 };
        let part = division.divide(&step, vec![]);
        assert_eq!(part.targets[0], [6, 7, IGNORED, IGNORED]);
        assert_eq!((part.total_targets, part.total_tokens), (2, 4));
    }
}
