//! Virtual time of a training run: the order in which work is due.
//!
//! One step passes the layers forward, then backward. An update of step t runs right behind the
//! backward pass of its layer or, carried over, just ahead of the forward pass of step t+1. The
//! same numbers order nodes on a lane, loads on the disk, and what the cache evicts.

use crate::base::Step;

/// The clock face of one model.
#[derive(Debug, Clone, Copy)]
pub struct Timetable {
    layers: u64,
}

impl Timetable {
    pub fn new(layers: usize) -> Self {
        Self { layers: layers as u64 }
    }

    fn step_length(&self) -> u64 {
        4 * self.layers + 8
    }

    pub fn start(&self, step: Step) -> u64 {
        step * self.step_length()
    }

    /// When the forward pass is at `layer` (`layers` = the head).
    pub fn forward(&self, step: Step, layer: usize) -> u64 {
        self.start(step) + 2 * layer as u64 + 3
    }

    /// When the backward pass is at `layer`.
    pub fn backward(&self, step: Step, layer: usize) -> u64 {
        self.start(step) + 2 * (2 * self.layers - layer as u64) + 3
    }

    /// When the update that belongs to `step` is due for `layer`.
    pub fn update(&self, step: Step, layer: usize, carried: bool) -> u64 {
        if carried { self.forward(step + 1, layer) - 1 } else { self.backward(step, layer) + 1 }
    }

    /// When the dense update of `step` is due: the boundary of the step.
    pub fn boundary(&self, step: Step) -> u64 {
        self.start(step + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hours_of_a_step_are_in_order() {
        let t = Timetable::new(3);
        let mut hours = vec![t.start(1)];
        hours.extend((0..=3).map(|l| t.forward(1, l)));
        hours.extend((0..3).rev().map(|l| t.backward(1, l)));
        hours.push(t.boundary(1));
        hours.extend((0..3).map(|l| t.forward(2, l)));
        assert!(hours.is_sorted_by(|a, b| a < b), "{hours:?}");
        assert!(t.update(1, 0, true) > t.boundary(1) && t.update(1, 0, true) < t.forward(2, 0));
        assert!(t.update(1, 0, false) < t.boundary(1) && t.update(1, 1, false) < t.backward(1, 0));
    }
}
