//! Counter-based random numbers: a draw is a function of what it is for, not of when it is made.

use super::GateContext;

/// A uniform number in [0, 1) for (seed, step, layer, global token, lane).
pub fn uniform(ctx: &GateContext, token: u64, lane: u64) -> f32 {
    let words = [ctx.step, ctx.layer as u64, ctx.first_token + token, lane];
    let bits = words.iter().fold(mix(ctx.seed), |state, word| mix(state ^ mix(*word)));
    (bits >> 40) as f32 / (1u64 << 24) as f32
}

/// The finaliser of SplitMix64 (Steele, Lea and Flood, 2014) after one step of its counter.
fn mix(x: u64) -> u64 {
    let mut z = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
