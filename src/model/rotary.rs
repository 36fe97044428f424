//! Rotary position embedding: the angles of positions, plain or by yarn.
//!
//! Computed in f32 throughout, as transformers does, so that angles agree far out.

use crate::model::config::{ModelConfig, Yarn};
use std::f64::consts::TAU;

/// Frequencies of a model's rotation.
#[derive(Debug)]
pub(in crate::model) struct Rotary {
    frequencies: Vec<f32>,
    /// Factor of cosines and sines.
    scale: f32,
}

/// Cosines and sines of the rows of a call, each `[T, D/2]`.
#[derive(Debug, Default)]
pub(in crate::model) struct Angles {
    positions: Vec<usize>,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Rotary {
    pub(in crate::model) fn new(config: &ModelConfig) -> Self {
        let dim = config.rope_dim();
        let theta = config.rope_theta as f32;
        let period = |i: usize| theta.powf((2 * i) as f32 / dim as f32);
        let Some(yarn) = &config.yarn else {
            let frequencies = (0..dim / 2).map(|i| 1.0 / period(i)).collect();
            return Self { frequencies, scale: 1.0 };
        };
        let (low, high) = ramp(yarn, config.rope_theta, dim);
        let frequency = |i: usize| {
            let slowed = ((i as f32 - low) / (high - low)).clamp(0.0, 1.0);
            let kept = 1.0 - slowed;
            let (fast, slow) = (1.0 / period(i), 1.0 / (yarn.factor as f32 * period(i)));
            slow * (1.0 - kept) + fast * kept
        };
        Self {
            frequencies: (0..dim / 2).map(frequency).collect(),
            scale: yarn.rotation_scale() as f32,
        }
    }

    /// Fills `angles` for the positions of a call's rows; all layers of the call use them.
    pub(in crate::model) fn at(
        &self,
        positions: impl Iterator<Item = usize> + Clone,
        angles: &mut Angles,
    ) {
        if angles.positions.iter().copied().eq(positions.clone()) {
            return;
        }
        angles.positions.clear();
        angles.positions.extend(positions);
        angles.cos.clear();
        angles.sin.clear();
        for position in &angles.positions {
            for frequency in &self.frequencies {
                let (sin, cos) = (*position as f32 * frequency).sin_cos();
                angles.cos.push(cos * self.scale);
                angles.sin.push(sin * self.scale);
            }
        }
    }
}

impl Angles {
    pub(in crate::model) fn rows(&self) -> usize {
        self.positions.len()
    }

    /// Cosines and sines of all rows.
    pub(in crate::model) fn all(&self) -> [&[f32]; 2] {
        [&self.cos, &self.sin]
    }

    /// Cosines and sines of row `row`.
    pub(in crate::model) fn row(&self, row: usize) -> (&[f32], &[f32]) {
        let half = self.cos.len() / self.positions.len().max(1);
        let range = row * half..(row + 1) * half;
        (&self.cos[range.clone()], &self.sin[range])
    }
}

/// Pairs between which yarn goes from keeping a frequency to interpolating it.
fn ramp(yarn: &Yarn, theta: f64, dim: usize) -> (f32, f32) {
    let pair = |rotations: f64| {
        let ratio = yarn.original as f64 / (rotations * TAU);
        dim as f64 * ratio.ln() / (2.0 * theta.ln())
    };
    let (mut low, mut high) = (pair(yarn.beta_fast), pair(yarn.beta_slow));
    if yarn.truncate {
        (low, high) = (low.floor(), high.ceil());
    }
    let (low, mut high) = (low.max(0.0), high.min((dim - 1) as f64));
    if low == high {
        high += 0.001;
    }
    (low as f32, high as f32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::family::Family;

    fn config() -> ModelConfig {
        ModelConfig { head_dim: 64, ..ModelConfig::of_family(Family::GptOss) }
    }

    #[test]
    fn plain_frequencies_fall_from_one() {
        let rotary = Rotary::new(&ModelConfig { rope_theta: 10_000.0, ..config() });
        assert_eq!(rotary.frequencies.len(), 32);
        assert_eq!(rotary.frequencies[0], 1.0);
        assert!((rotary.frequencies[16] - 0.01).abs() < 1e-7);
        let mut angles = Angles::default();
        rotary.at([3usize, 0].into_iter(), &mut angles);
        assert_eq!(angles.row(0).0[0], 3f32.cos());
        assert_eq!(angles.row(0).1[0], 3f32.sin());
        assert!(angles.row(1).0.iter().all(|cos| *cos == 1.0));
    }

    /// gpt-oss's own numbers, as transformers computes them.
    #[test]
    fn yarn_keeps_fast_rotations_and_slows_slow_ones() {
        let yarn = Yarn::new(32.0, 4096);
        let plain = Rotary::new(&config());
        let slowed = Rotary::new(&ModelConfig { yarn: Some(yarn), ..config() });
        assert_eq!(slowed.frequencies[..8], plain.frequencies[..8]);
        for i in 18..32 {
            let ratio = plain.frequencies[i] / slowed.frequencies[i];
            assert!((ratio - 32.0).abs() < 1e-4, "{i} {ratio}");
        }
        let (low, high) = ramp(&yarn, 150_000.0, 64);
        assert!((low - 8.0927).abs() < 1e-3 && (high - 17.3981).abs() < 1e-3, "{low} {high}");
        let ends = ramp(&Yarn { truncate: true, ..yarn }, 150_000.0, 64);
        assert_eq!(ends, (8.0, 18.0));
    }
}
