//! Which experts a row goes to, and with what weights.

use super::attention::sized;
use super::tensors::Weights;
use crate::base::{Error, ErrorKind, Result};
use crate::model::config::{ModelConfig, Scoring};
use crate::model::family::Slot;
use crate::model::kernels::float::{exp, sigmoid};
use crate::model::kernels::linear::{OwnedMatrix, Work, linear};
use crate::model::kernels::rows::add;

/// Chosen experts of some rows, best first, and their weights; kept from call to call.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Routes {
    /// K: experts a row.
    pub top_k: usize,
    /// `[T,K]`.
    pub experts: Vec<u16>,
    /// `[T,K]`.
    pub weights: Vec<f32>,
}

impl Routes {
    /// T: rows that were routed; 0 after a layer without experts.
    pub fn rows(&self) -> usize {
        self.experts.len() / self.top_k.max(1)
    }

    /// Experts and weights of row `row`.
    pub fn row(&self, row: usize) -> (&[u16], &[f32]) {
        let range = row * self.top_k..(row + 1) * self.top_k;
        (&self.experts[range.clone()], &self.weights[range])
    }

    /// The chosen experts, each once with the sum of its weights, the heaviest first.
    pub fn by_weight(&self, into: &mut Vec<(f32, usize)>) {
        into.clear();
        into.extend(self.weights.iter().zip(&self.experts).map(|(w, e)| (*w, usize::from(*e))));
        into.sort_unstable_by_key(|(_, expert)| *expert);
        into.dedup_by(|next, kept| {
            let same = next.1 == kept.1;
            kept.0 += if same { next.0 } else { 0.0 };
            same
        });
        into.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    }

    pub(super) fn clear(&mut self, top_k: usize) {
        self.top_k = top_k;
        self.experts.clear();
        self.weights.clear();
    }
}

/// Buffers of a call, kept from one to the next.
#[derive(Debug, Default)]
pub(super) struct Buffers {
    logits: Vec<f32>,
    scores: Vec<f32>,
    best: Vec<(f32, u16)>,
}

#[cfg(test)]
impl Buffers {
    pub(super) fn bytes(&self) -> usize {
        4 * (self.logits.capacity() + self.scores.capacity())
    }
}

/// The router of one layer; computes in f32 whatever its encoding.
#[derive(Debug)]
pub(super) struct Router {
    layer: usize,
    weight: OwnedMatrix,
    /// A bias on the logits, or a correction of the scores.
    bias: Option<Vec<f32>>,
    scoring: Scoring,
    top_k: usize,
    normalise: bool,
}

impl Router {
    pub(super) fn load(config: &ModelConfig, weights: &Weights<'_>, layer: usize) -> Result<Self> {
        let weight = weights.exact(Some(layer), Slot::Router)?;
        Ok(Self {
            layer,
            weight: weight.ok_or_else(|| Error::bug("a layer with experts has no router"))?,
            bias: weights.floats(Some(layer), Slot::RouterBias)?,
            scoring: config.scoring,
            top_k: config.top_k,
            normalise: config.norm_topk,
        })
    }

    /// Routes every row of `y_th` `[T,H]`.
    pub(super) fn apply(
        &self,
        y_th: &[f32],
        routes: &mut Routes,
        buffers: &mut Buffers,
        work: &mut Work,
    ) -> Result<()> {
        let experts = self.weight.rows;
        let rows = y_th.len() / self.weight.cols;
        let Buffers { logits, scores, best } = buffers;
        let logits = sized(logits, rows * experts);
        linear(&self.weight.view(), y_th, logits, false, work)?;
        routes.clear(self.top_k);
        for logits in logits.chunks_mut(experts) {
            match self.scoring {
                Scoring::Softmax => self.softmax(logits, best, routes),
                Scoring::SoftmaxOfChosen => self.softmax_of_chosen(logits, best, routes),
                Scoring::Sigmoid { groups, top_groups, scale } => {
                    let scores = sized(scores, experts);
                    self.sigmoid(logits, scores, (groups, top_groups, scale), best, routes);
                }
            }
        }
        if routes.experts.len() == rows * self.top_k {
            return Ok(());
        }
        let text = "router logits are not finite: the weights are damaged, or the model overflows";
        Err(Error::new(ErrorKind::NonFinite, text).with("layer", self.layer))
    }

    fn softmax(&self, logits: &mut [f32], best: &mut Vec<(f32, u16)>, routes: &mut Routes) {
        let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        logits.iter_mut().for_each(|logit| *logit = exp(*logit - most));
        let sum: f32 = logits.iter().sum();
        largest(logits, self.top_k, best);
        let chosen: f32 = best.iter().map(|(p, _)| p / sum).sum();
        let divisor = if self.normalise { chosen } else { 1.0 };
        take(best, routes, |p| p / sum / divisor);
    }

    fn softmax_of_chosen(
        &self,
        logits: &mut [f32],
        best: &mut Vec<(f32, u16)>,
        routes: &mut Routes,
    ) {
        if let Some(bias) = &self.bias {
            add(logits, bias);
        }
        largest(logits, self.top_k, best);
        let most = best.first().map_or(0.0, |(logit, _)| *logit);
        let sum: f32 = best.iter().map(|(logit, _)| exp(logit - most)).sum();
        take(best, routes, |logit| exp(logit - most) / sum);
    }

    fn sigmoid(
        &self,
        logits: &mut [f32],
        scores: &mut [f32],
        (groups, top_groups, scale): (usize, usize, f64),
        best: &mut Vec<(f32, u16)>,
        routes: &mut Routes,
    ) {
        for (score, logit) in scores.iter_mut().zip(logits.iter()) {
            *score = sigmoid(*logit);
        }
        // From here on `logits` holds what experts are chosen by.
        logits.copy_from_slice(scores);
        if let Some(correction) = &self.bias {
            add(logits, correction);
        }
        if top_groups < groups {
            close_groups(logits, groups, top_groups, best);
        }
        largest(logits, self.top_k, best);
        best.iter_mut().for_each(|(score, expert)| *score = scores[usize::from(*expert)]);
        let sum: f32 = best.iter().map(|(score, _)| score).sum();
        let divisor = if self.normalise { sum + 1e-20 } else { 1.0 };
        take(best, routes, |score| score / divisor * scale as f32);
    }
}

fn take(best: &[(f32, u16)], routes: &mut Routes, weight: impl Fn(f32) -> f32) {
    routes.experts.extend(best.iter().map(|(_, expert)| *expert));
    routes.weights.extend(best.iter().map(|(score, _)| weight(*score)));
}

/// The `k` largest scores, largest first, the lower index first among equals. Scores that are
/// not numbers, or are closed with -∞, are never among them.
fn largest(scores: &[f32], k: usize, best: &mut Vec<(f32, u16)>) {
    best.clear();
    for (index, score) in scores.iter().enumerate() {
        let full = best.len() == k;
        let lost = full && best.last().is_some_and(|(last, _)| *score <= *last);
        if lost || score.is_nan() || *score == f32::NEG_INFINITY {
            continue;
        }
        if full {
            best.pop();
        }
        let place = best.partition_point(|(other, _)| other >= score);
        best.insert(place, (*score, index as u16));
    }
}

/// Closes the experts of all but the best groups; a group is worth the sum of its two best.
fn close_groups(scores: &mut [f32], groups: usize, keep: usize, best: &mut Vec<(f32, u16)>) {
    let size = scores.len() / groups;
    let worth = |group: &[f32]| {
        let (mut first, mut second) = (f32::NEG_INFINITY, f32::NEG_INFINITY);
        for score in group {
            if *score > first {
                (first, second) = (*score, first);
            } else if *score > second {
                second = *score;
            }
        }
        first + second
    };
    best.clear();
    for (index, group) in scores.chunks(size).enumerate() {
        let worth = worth(group);
        let place = best.partition_point(|(other, _)| *other >= worth);
        best.insert(place, (worth, index as u16));
    }
    for (_, group) in &best[keep..] {
        scores[usize::from(*group) * size..][..size].fill(f32::NEG_INFINITY);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::kernels::linear::Activations;

    #[test]
    fn experts_are_ranked_by_what_all_rows_give_them() {
        let routes =
            Routes { top_k: 2, experts: vec![3, 1, 2, 3], weights: vec![0.4, 0.6, 0.7, 0.4] };
        let mut ranked = Vec::new();
        routes.by_weight(&mut ranked);
        assert_eq!(ranked, [(0.8, 3), (0.7, 2), (0.6, 1)]);
    }

    #[test]
    fn the_largest_come_first_and_ties_keep_their_order() {
        let mut best = Vec::new();
        largest(&[1.0, 3.0, f32::NAN, 3.0, f32::NEG_INFINITY, 2.0], 3, &mut best);
        assert_eq!(best, [(3.0, 1), (3.0, 3), (2.0, 5)]);
        largest(&[f32::NAN, 1.0], 2, &mut best);
        assert_eq!(best, [(1.0, 1)]);
    }

    #[test]
    fn only_the_best_groups_stay_open() {
        let mut scores = [0.9, 0.0, 0.5, 0.5, 0.1, 0.1, 0.6, 0.2];
        close_groups(&mut scores, 4, 2, &mut Vec::new());
        let open: Vec<bool> = scores.iter().map(|s| s.is_finite()).collect();
        assert_eq!(open, [true, true, true, true, false, false, false, false]);
    }

    #[test]
    fn damaged_weights_are_an_error_and_no_route() {
        let router = Router {
            layer: 3,
            weight: OwnedMatrix::from_f32(4, 2, &[f32::NAN; 8]).unwrap(),
            bias: None,
            scoring: Scoring::Softmax,
            top_k: 2,
            normalise: true,
        };
        let mut work = Work::new(1, Activations::F32).unwrap();
        let mut routes = Routes::default();
        let error =
            router.apply(&[1.0, 2.0], &mut routes, &mut Buffers::default(), &mut work).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NonFinite);
        assert!(error.to_string().contains("layer=3"), "{error}");
    }
}
