//! Scalar arithmetic that compilers turn into vector code: bf16 conversion, exp, sigmoid.

/// The f32 that a bf16 bit pattern stands for.
#[inline(always)]
pub fn from_bf16(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// Rounds to bf16, to nearest even as libtorch does; NaN stays NaN.
#[inline(always)]
pub fn to_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    if x.is_nan() { 0x7fc0 } else { rounded as u16 }
}

/// e^x for |x| <= 87, clamped outside; within 2 ulp (degree-6 polynomial after Cody and
/// Waite's reduction by powers of two).
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    const LOG2_E: f32 = std::f32::consts::LOG2_E;
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // Adding 1.5 * 2^23 leaves the nearest integer in the low bits of the significand.
    const SHIFT: f32 = 12_582_912.0;
    let x = x.clamp(-87.0, 87.0);
    let shifted = x * LOG2_E + SHIFT;
    let n = shifted - SHIFT;
    let r = (x - n * LN2_HIGH) - n * LN2_LOW;
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_199_9e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 0.5;
    let value = (p * r) * r + r + 1.0;
    let scale = f32::from_bits(shifted.to_bits().wrapping_add(127) << 23);
    value * scale
}

/// 1 / (1 + e^-x).
#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// A number that a kernel reads and writes: f32, or bf16 as its bits.
pub trait Number: Copy + Send + Sync + 'static {
    /// The tensor kind that holds it.
    const KIND: tch::Kind;
    fn load(self) -> f32;
    fn store(x: f32) -> Self;
}

impl Number for f32 {
    const KIND: tch::Kind = tch::Kind::Float;
    #[inline(always)]
    fn load(self) -> f32 {
        self
    }
    #[inline(always)]
    fn store(x: f32) -> Self {
        x
    }
}

/// bf16 bits.
impl Number for u16 {
    const KIND: tch::Kind = tch::Kind::BFloat16;
    #[inline(always)]
    fn load(self) -> f32 {
        from_bf16(self)
    }
    #[inline(always)]
    fn store(x: f32) -> Self {
        to_bf16(x)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_ulp() {
        let mut x = -80.0f32;
        while x < 80.0 {
            let want = f64::from(x).exp();
            let error = (f64::from(exp(x)) - want).abs() / want;
            assert!(error < 2.5e-7, "exp({x}) is off by {error}");
            x += 0.0137;
        }
        assert_eq!(exp(0.0), 1.0);
    }

    #[test]
    fn bf16_rounds_to_nearest_even() {
        for (x, want) in [(1.0, 0x3f80), (1.003_906_3, 0x3f80), (1.011_718_8, 0x3f82)] {
            assert_eq!(to_bf16(x), want, "{x}");
            assert_eq!(to_bf16(x), half::bf16::from_f32(x).to_bits());
        }
        assert!(from_bf16(to_bf16(f32::NAN)).is_nan());
        assert_eq!(from_bf16(to_bf16(f32::INFINITY)), f32::INFINITY);
    }
}
