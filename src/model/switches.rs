//! What sets models apart beyond their sizes: how positions turn, what a router's scores mean,
//! how attention is compressed.

use serde::{Deserialize, Serialize};

/// YaRN: slow rotations are interpolated to reach past the original context, fast ones are kept
/// (Peng et al. 2023).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Yarn {
    /// How many times longer the context became.
    pub factor: f64,
    /// Positions that the model was first trained on.
    pub original: usize,
    /// Rotations over the original context above which a frequency is kept.
    pub beta_fast: f64,
    /// Rotations below which a frequency is interpolated in full.
    pub beta_slow: f64,
    /// Whether the bounds of the ramp between the two are whole numbers.
    pub truncate: bool,
    /// Factor of cosines and sines, where the config states it.
    pub attention_factor: Option<f64>,
    pub mscale: Option<f64>,
    pub mscale_all_dim: Option<f64>,
}

impl Yarn {
    /// Of a context that became `factor` times longer than `original` positions; the rest as YaRN's
    /// paper has it (Peng et al., 2023), with the ramp's bounds as they come.
    pub fn new(factor: f64, original: usize) -> Self {
        Self {
            factor,
            original,
            beta_fast: 32.0,
            beta_slow: 1.0,
            truncate: false,
            attention_factor: None,
            mscale: None,
            mscale_all_dim: None,
        }
    }

    /// Factor of cosines and sines.
    pub fn rotation_scale(&self) -> f64 {
        if let Some(stated) = self.attention_factor {
            return stated;
        }
        match (self.mscale, self.mscale_all_dim) {
            (Some(above), Some(below)) if above != 0.0 && below != 0.0 => {
                self.magnitude(above) / self.magnitude(below)
            }
            _ => self.magnitude(1.0),
        }
    }

    /// Factor of the attention scores beyond that of the rotation (DeepSeek).
    pub fn score_scale(&self) -> f64 {
        let all = self.mscale_all_dim.filter(|all| *all != 0.0);
        all.map_or(1.0, |all| self.magnitude(all).powi(2))
    }

    fn magnitude(&self, mscale: f64) -> f64 {
        if self.factor <= 1.0 { 1.0 } else { 0.1 * mscale * self.factor.ln() + 1.0 }
    }
}

/// Multi-head latent attention: keys and values of all heads are read out of one latent a token
/// (DeepSeek-V2, 2024).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Latent {
    /// Width of the queries' latent; None where queries are projected at once.
    pub q_rank: Option<usize>,
    /// Width of the latent that keys and values are read out of.
    pub kv_rank: usize,
    /// Elements of a query or key head without position.
    pub nope: usize,
    /// Elements of a query head, and of the one shared key, that turn with position.
    pub rope: usize,
    /// Elements of a value head.
    pub value: usize,
    /// Whether the latents' projections have biases.
    pub bias: bool,
}

/// How a router's logits become the weights of the chosen experts.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scoring {
    /// Softmax over all experts, the largest K chosen.
    Softmax,
    /// The largest K logits chosen, softmax over those (gpt-oss).
    SoftmaxOfChosen,
    /// Sigmoids; chosen by score plus a learnt correction, among the best groups, a group being
    /// worth the sum of its two best; weighted by the scores alone (DeepSeek-V3).
    Sigmoid {
        /// Groups that the experts are divided into.
        groups: usize,
        /// Groups that experts may be chosen from.
        top_groups: usize,
        /// Factor of the weights.
        scale: f64,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn yarn_scales_as_its_families_publish() {
        // gpt-oss: neither mscale is given, so cosines grow by 0.1 ln(32) + 1.
        let oss = Yarn::new(32.0, 4096);
        assert!((oss.rotation_scale() - 1.346_573_6).abs() < 1e-6);
        assert_eq!(oss.score_scale(), 1.0);
        // DeepSeek-V3: both are 1, so the rotation keeps its length and scores grow instead.
        let one = Some(1.0);
        let deepseek = Yarn { factor: 40.0, mscale: one, mscale_all_dim: one, ..oss };
        assert_eq!(deepseek.rotation_scale(), 1.0);
        assert!((deepseek.score_scale() - 1.368_888_f64.powi(2)).abs() < 1e-5);
        let stated = Yarn { attention_factor: Some(1.2), ..deepseek };
        assert_eq!(stated.rotation_scale(), 1.2);
        assert_eq!(Yarn { factor: 1.0, ..oss }.rotation_scale(), 1.0);
    }
}
