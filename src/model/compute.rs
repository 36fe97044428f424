//! What products this machine computes in: the same for every call of a run (law 4), and said when
//! a run begins.
//!
//! Configuration names the type in which products are computed. A processor without instructions
//! for bf16 products has to widen every operand, and libtorch does that one element at a time
//! there, so the dense part then computes in f32 from the masters themselves: more exact, several
//! times faster, and without compute copies. Experts keep their bf16 weights (they are what is
//! stored and moved) and have kernels of our own.

use super::expert::{ExpertShape, Kernels, Precision};
use super::kernels::dispatch::{Isa, isa};

/// Whether the processor multiplies pairs of bf16, in vectors or in tiles.
pub fn has_bf16_products() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        is_x86_feature_detected!("avx512bf16")
    }
    #[cfg(target_arch = "aarch64")]
    {
        std::arch::is_aarch64_feature_detected!("bf16")
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    {
        false
    }
}

/// The type in which the dense part of a run in `precision` computes on this machine.
pub fn dense(precision: Precision) -> Precision {
    if has_bf16_products() { precision } else { Precision::F32 }
}

/// What is in effect, in words: experts, attention, then the rest of the dense part.
pub fn in_effect(shape: &ExpertShape) -> String {
    let vectors = match isa() {
        Isa::Avx512 => "AVX-512",
        Isa::Avx2 => "AVX2",
        Isa::Portable => "portable",
    };
    let asked = shape.precision.name();
    let experts = match Kernels::best(shape) {
        Kernels::Amx => format!("own tile kernels (AMX), {asked}"),
        Kernels::Pairs => format!("own tile kernels (AVX-512 BF16), {asked}"),
        Kernels::Vector => format!("own vector kernels ({vectors}), {asked} summed in f32"),
        Kernels::Libtorch => format!("libtorch, {asked}"),
    };
    let dense = dense(shape.precision);
    let why = if dense == shape.precision { "" } else { ": this processor has no bf16 products" };
    format!(
        "experts: {experts} · attention: own vector kernels ({vectors}) · dense products: libtorch, {}{why}",
        dense.name()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_effect_is_named() {
        for precision in [Precision::F32, Precision::Bf16] {
            let shape = ExpertShape::new(64, 32, precision);
            let text = in_effect(&shape);
            assert!(text.contains(precision.name()), "{text}");
            assert_eq!(text.contains("no bf16"), dense(precision) != precision, "{text}");
        }
    }
}
