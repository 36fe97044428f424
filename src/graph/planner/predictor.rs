//! Predictors: which experts a layer will likely use, before its gate has spoken.

use std::ops::Range;

/// Guesses the experts of a layer, and learns from what was used.
pub trait Predictor: Send {
    /// Experts of `local` that `layer` will likely use in the pass that has begun.
    fn likely(&mut self, layer: usize, local: Range<usize>) -> Vec<usize>;

    /// The experts that `layer` did use, in order.
    fn used(&mut self, layer: usize, experts: &[usize]);
}

/// Every expert: right whenever a step has many tokens.
#[derive(Debug, Clone, Copy, Default)]
pub struct AllExperts;

impl Predictor for AllExperts {
    fn likely(&mut self, _: usize, local: Range<usize>) -> Vec<usize> {
        local.collect()
    }

    fn used(&mut self, _: usize, _: &[usize]) {}
}

/// Those that the layer used the last time.
#[derive(Debug, Clone, Default)]
pub struct LastStep {
    used: Vec<Vec<usize>>,
}

impl Predictor for LastStep {
    fn likely(&mut self, layer: usize, _: Range<usize>) -> Vec<usize> {
        self.used.get(layer).cloned().unwrap_or_default()
    }

    fn used(&mut self, layer: usize, experts: &[usize]) {
        if self.used.len() <= layer {
            self.used.resize(layer + 1, Vec::new());
        }
        experts.clone_into(&mut self.used[layer]);
    }
}

/// None: every fetch waits for the gate.
#[derive(Debug, Clone, Copy, Default)]
pub struct OnDemand;

impl Predictor for OnDemand {
    fn likely(&mut self, _: usize, _: Range<usize>) -> Vec<usize> {
        Vec::new()
    }

    fn used(&mut self, _: usize, _: &[usize]) {}
}
