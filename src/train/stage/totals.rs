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
    /// Of each layer.
    pub stats: Vec<RouterStats>,
}

impl Totals {
    pub fn sum(parts: &[Self]) -> Self {
        let mut sum = Self::default();
        for part in parts {
            sum.nll += part.nll;
            sum.targets += part.targets;
            sum.dropped += part.dropped;
            sum.stats.resize(part.stats.len(), RouterStats::default());
            sum.stats.iter_mut().zip(&part.stats).for_each(|(sum, part)| sum.add(part));
        }
        sum
    }

    /// Choices of each expert, `[layer][expert]`.
    pub fn load(&self) -> Vec<Vec<u64>> {
        self.stats.iter().map(|stats| stats.chosen_e.clone()).collect()
    }

    /// As one f64 tensor; counts are exact up to 2^53.
    pub fn to_tensor(&self) -> Result<Tensor> {
        let mut flat = vec![self.nll, self.targets as f64, self.dropped as f64];
        for stats in &self.stats {
            flat.extend([stats.rows as f64, stats.squared_lse]);
            flat.extend(stats.chosen_e.iter().map(|&n| n as f64));
            flat.extend(&stats.probability_e);
        }
        Ok(Tensor::f_from_slice(&flat)?)
    }

    pub fn from_tensor(tensor: &Tensor, layers: usize, experts: usize) -> Result<Self> {
        let flat = Vec::<f64>::try_from(tensor)?;
        if flat.len() != 3 + layers * (2 + 2 * experts) {
            return Err(
                Error::bug("totals of a rank have the wrong length").with("got", flat.len())
            );
        }
        let (head, rest) = flat.split_at(3);
        let layer = |values: &[f64]| RouterStats {
            rows: values[0] as u64,
            squared_lse: values[1],
            chosen_e: values[2..2 + experts].iter().map(|&n| n as u64).collect(),
            probability_e: values[2 + experts..].to_vec(),
        };
        Ok(Self {
            nll: head[0],
            targets: head[1] as u64,
            dropped: head[2] as u64,
            stats: rest.chunks(2 + 2 * experts).map(layer).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_survive_the_journey() {
        let layer = |first: u64| RouterStats {
            rows: 3,
            chosen_e: vec![first, 6 - first],
            probability_e: vec![first as f64 / 4.0, 2.5],
            squared_lse: 0.25,
        };
        let totals = Totals { nll: 1.5, targets: 7, dropped: 2, stats: vec![layer(1), layer(3)] };
        assert_eq!(totals.load(), [[1, 5], [3, 3]]);
        let back = Totals::from_tensor(&totals.to_tensor().unwrap(), 2, 2).unwrap();
        assert_eq!(back, totals);
        let twice = Totals::sum(&[back, totals]);
        assert_eq!((twice.targets, twice.load()[1][1], twice.stats[0].rows), (14, 6, 6));
    }
}
