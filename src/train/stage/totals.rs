//! Sums of one rank's forward pass, and their sum over ranks in rank order.

use crate::base::{Error, Result};
use crate::model::gate::RouterStats;
use tch::Tensor;

/// See the module.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Totals {
    /// Σ -log p over the targets.
    pub nll: f64,
    pub targets: u64,
    /// (token, choice) pairs over the capacity.
    pub dropped: u64,
    /// Choices of each expert, `[layer][expert]`.
    pub load: Vec<Vec<u64>>,
    pub stats: RouterStats,
}

impl Totals {
    pub fn sum(parts: &[Self]) -> Self {
        let mut sum = Self::default();
        for part in parts {
            sum.nll += part.nll;
            sum.targets += part.targets;
            sum.dropped += part.dropped;
            sum.stats.add(&part.stats);
            if sum.load.is_empty() {
                sum.load.clone_from(&part.load);
                continue;
            }
            for (sum, part) in sum.load.iter_mut().flatten().zip(part.load.iter().flatten()) {
                *sum += part;
            }
        }
        sum
    }

    /// As one f64 tensor; counts are exact up to 2^53.
    pub fn to_tensor(&self) -> Result<Tensor> {
        let stats = &self.stats;
        let mut flat = vec![
            self.nll,
            self.targets as f64,
            self.dropped as f64,
            stats.rows as f64,
            stats.squared_lse,
        ];
        flat.extend(stats.chosen_e.iter().map(|&n| n as f64));
        flat.extend(&stats.probability_e);
        flat.extend(self.load.iter().flatten().map(|&n| n as f64));
        Ok(Tensor::f_from_slice(&flat)?)
    }

    pub fn from_tensor(tensor: &Tensor, layers: usize, experts: usize) -> Result<Self> {
        let flat = Vec::<f64>::try_from(tensor)?;
        if flat.len() != 5 + experts * (2 + layers) {
            return Err(
                Error::bug("totals of a rank have the wrong length").with("got", flat.len())
            );
        }
        let (head, rest) = flat.split_at(5);
        let (chosen, rest) = rest.split_at(experts);
        let (probability, load) = rest.split_at(experts);
        let counts = |values: &[f64]| values.iter().map(|&n| n as u64).collect::<Vec<u64>>();
        Ok(Self {
            nll: head[0],
            targets: head[1] as u64,
            dropped: head[2] as u64,
            load: load.chunks(experts).map(counts).collect(),
            stats: RouterStats {
                rows: head[3] as u64,
                chosen_e: counts(chosen),
                probability_e: probability.to_vec(),
                squared_lse: head[4],
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_survive_the_journey() {
        let stats = RouterStats {
            rows: 6,
            chosen_e: vec![4, 8],
            probability_e: vec![2.5, 3.5],
            squared_lse: 0.25,
        };
        let totals =
            Totals { nll: 1.5, targets: 7, dropped: 2, load: vec![vec![1, 2], vec![3, 6]], stats };
        let back = Totals::from_tensor(&totals.to_tensor().unwrap(), 2, 2).unwrap();
        assert_eq!(back, totals);
        let twice = Totals::sum(&[back, totals]);
        assert_eq!((twice.targets, twice.load[1][1], twice.stats.rows), (14, 12, 12));
    }
}
