//! The learning rate of a step: warm-up, then constant or cosine. A pure function of the step.

use crate::base::Step;
use serde::{Deserialize, Serialize};

/// What follows the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Decay {
    /// Half a cosine from `lr` down to `min_lr` at the last step (Loshchilov and Hutter, 2017,
    /// without restarts).
    #[default]
    Cosine,
    Constant,
}

/// A learning-rate schedule over `steps` steps.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Schedule {
    pub decay: Decay,
    pub lr: f64,
    pub min_lr: f64,
    /// Steps over which the rate rises in equal parts; step `warmup` is the first at `lr`.
    pub warmup: Step,
    pub steps: Step,
}

impl Schedule {
    /// The rate of `step`, counted from 1. Beyond the last step it stays.
    pub fn lr(&self, step: Step) -> f64 {
        if step < self.warmup {
            return self.lr * step as f64 / self.warmup as f64;
        }
        if self.decay == Decay::Constant {
            return self.lr;
        }
        let start = self.warmup.max(1);
        let length = self.steps.saturating_sub(start);
        if length == 0 {
            return self.lr;
        }
        let done = (step.max(start) - start).min(length) as f64 / length as f64;
        let share = 0.5 * (1.0 + (std::f64::consts::PI * done).cos());
        self.min_lr + (self.lr - self.min_lr) * share
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COSINE: Schedule =
        Schedule { decay: Decay::Cosine, lr: 1.0, min_lr: 0.1, warmup: 10, steps: 110 };

    #[test]
    fn the_rate_rises_then_falls() {
        assert_eq!(COSINE.lr(1), 0.1);
        assert_eq!(COSINE.lr(10), 1.0);
        assert!((COSINE.lr(60) - 0.55).abs() < 1e-12);
        assert!((COSINE.lr(110) - 0.1).abs() < 1e-12);
        assert!((COSINE.lr(500) - 0.1).abs() < 1e-12);
        assert!((10..110).all(|s| COSINE.lr(s) > COSINE.lr(s + 1)));
    }

    #[test]
    fn edges_do_not_divide_by_zero() {
        let flat = Schedule { warmup: 0, steps: 1, ..COSINE };
        assert_eq!(flat.lr(1), 1.0);
        let all_warmup = Schedule { warmup: 5, steps: 5, ..COSINE };
        assert_eq!(all_warmup.lr(5), 1.0);
        let constant = Schedule { decay: Decay::Constant, ..COSINE };
        assert_eq!((constant.lr(5), constant.lr(1000)), (0.5, 1.0));
        let none = Schedule { warmup: 0, steps: 10, ..COSINE };
        assert_eq!(none.lr(1), 1.0);
        assert!((none.lr(10) - 0.1).abs() < 1e-12);
    }
}
