//! Seeded initial weights. Every tensor's values depend on the seed, its name and the position
//! of the element only, so neither the order of drawing nor the number of ranks changes them.

use super::config::ModelConfig;
use super::family::{Slot, expert_tensors};
use super::hf::expert::ranges;
use crate::base::Result;

/// Fills a dense tensor: 1 for norms, 0 for biases, else normal(0, `std`).
pub(in crate::model) fn dense(seed: u64, std: f64, name: &str, slot: Slot, out: &mut [f32]) {
    match slot {
        Slot::InputNorm | Slot::PostNorm | Slot::FinalNorm | Slot::QNorm | Slot::KNorm => {
            out.fill(1.0);
        }
        Slot::QBias | Slot::KBias | Slot::VBias => out.fill(0.0),
        _ => normal(seed, name, std, out),
    }
}

/// Fills a routed expert's flat run (gate, up, padding, down, padding), as
/// [`super::expert::ExpertShape`] lays it out.
///
/// # Errors
/// Bug if `out` has another length.
pub fn expert(
    config: &ModelConfig,
    seed: u64,
    layer: usize,
    expert: usize,
    out: &mut [f32],
) -> Result<()> {
    let ranges = ranges(config, out.len())?;
    out.fill(0.0);
    for ((name, _), range) in expert_tensors(config, layer, expert)?.iter().zip(ranges) {
        normal(seed, name, config.init_std, &mut out[range]);
    }
    Ok(())
}

/// Fills `out` with normal(0, `std`) draws of the stream that `seed` and `name` choose.
pub fn normal(seed: u64, name: &str, std: f64, out: &mut [f32]) {
    let key = mix(seed ^ hash(name));
    for (pair, out) in out.chunks_mut(2).enumerate() {
        let (a, b) = normal_pair(mix(key.wrapping_add((pair as u64).wrapping_mul(GOLDEN))));
        out[0] = a * std as f32;
        if let Some(second) = out.get_mut(1) {
            *second = b * std as f32;
        }
    }
}

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// The finaliser of SplitMix64 (Steele, Lea, Flood 2014): each counter gives one draw.
fn mix(mut z: u64) -> u64 {
    z = z.wrapping_add(GOLDEN);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// FNV-1a, 64 bits.
fn hash(name: &str) -> u64 {
    name.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |h, byte| (h ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Box-Muller: two independent standard normals from 64 random bits.
fn normal_pair(bits: u64) -> (f32, f32) {
    // 24 bits each: exactly representable, and never 0 for the logarithm.
    let u = ((bits >> 40) as f32 + 0.5) / (1 << 24) as f32;
    let angle = ((bits & 0xff_ffff) as f32 / (1 << 24) as f32) * std::f32::consts::TAU;
    let radius = (-2.0 * u.ln()).sqrt();
    let (sin, cos) = angle.sin_cos();
    (radius * cos, radius * sin)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_are_normal_and_belong_to_their_name() {
        let mut a = vec![0.0; 100_001];
        normal(7, "x", 0.02, &mut a);
        let mean = a.iter().map(|x| f64::from(*x)).sum::<f64>() / a.len() as f64;
        let var = a.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / a.len() as f64;
        assert!(mean.abs() < 3e-4, "mean {mean}");
        assert!((var.sqrt() / 0.02 - 1.0).abs() < 0.01, "std {}", var.sqrt());
        let mut b = vec![0.0; 10];
        normal(7, "x", 0.02, &mut b);
        assert_eq!(a[..10], b, "a prefix is the same whatever the length");
        normal(7, "y", 0.02, &mut b);
        assert_ne!(a[..10], b);
        normal(8, "x", 0.02, &mut b);
        assert_ne!(a[..10], b);
    }
}
