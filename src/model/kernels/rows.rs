//! Loops over one row of activations: norms and rotations, there and back, and sums.
//!
//! Law 4: sums run in a fixed number of lanes, whatever the instruction set.

use super::dispatch::dispatched;
use super::float::Number;

/// Accumulators of a sum: part of the definition of the result.
const LANES: usize = 16;

dispatched! {
    /// out = weight · x / sqrt(mean(x²) + eps) (Zhang and Sennrich 2019).
    pub fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) = rms_norm_body;
}

dispatched! {
    /// [`rms_norm`] of `x` onto itself.
    pub fn rms_norm_onto(x: &mut [f32], weight: &[f32], eps: f32) = rms_norm_onto_body;
}

dispatched! {
    /// Turns elements i and i + D/2 of `x` `[D]` by the angle whose cosine and sine are at i.
    pub fn rotate_halves(x: &mut [f32], cos: &[f32], sin: &[f32]) = rotate_halves_body;
}

dispatched! {
    /// Turns elements 2i and 2i + 1 of `x` `[D]`.
    pub fn rotate_pairs(x: &mut [f32], cos: &[f32], sin: &[f32]) = rotate_pairs_body;
}

dispatched! {
    /// x += y.
    pub fn add(x: &mut [f32], y: &[f32]) = add_body;
}

dispatched! {
    /// out = weight · x.
    pub fn weigh(weight: f32, x: &[f32], out: &mut [f32]) = weigh_body;
}

dispatched! {
    /// x `[H]` += Σ_k rows[k, :], summed in their order: rows [K, H].
    pub fn add_sum(x: &mut [f32], rows_kh: &[f32]) = add_sum_body;
}

#[inline(always)]
fn inverse_norm(x: &[f32], eps: f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane += x * x;
        }
    }
    for (lane, x) in lanes.iter_mut().zip(rest) {
        *lane += x * x;
    }
    1.0 / (lanes.iter().sum::<f32>() / x.len() as f32 + eps).sqrt()
}

#[inline(always)]
pub(super) fn rms_norm_body<T: Number>(x: &[f32], weight: &[f32], eps: f32, out: &mut [T]) {
    let scale = inverse_norm(x, eps);
    for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
        *out = T::store(weight * (x * scale));
    }
}

#[inline(always)]
fn weigh_body(weight: f32, x: &[f32], out: &mut [f32]) {
    // Whole groups of lanes as arrays: a part of a row is shorter than what a loop is unrolled to.
    let (to, to_rest) = out.as_chunks_mut::<LANES>();
    let (from, from_rest) = x.as_chunks::<LANES>();
    for (to, from) in to.iter_mut().zip(from) {
        for i in 0..LANES {
            to[i] = weight * from[i];
        }
    }
    to_rest.iter_mut().zip(from_rest).for_each(|(to, x)| *to = weight * x);
}

#[inline(always)]
pub(super) fn rms_norm_onto_body(x: &mut [f32], weight: &[f32], eps: f32) {
    let scale = inverse_norm(x, eps);
    for (x, weight) in x.iter_mut().zip(weight) {
        *x = weight * (*x * scale);
    }
}

/// Backward of [`rms_norm`] for one row: the gradient of its result becomes that of `x`, and the
/// weight's is added to `d_weight`. With n = x / rms(x) and g the gradient times the weight, that of
/// `x` is (g − n · mean(g n)) / rms(x).
#[inline(always)]
pub(super) fn rms_norm_back_body(
    x: &[f32],
    weight: &[f32],
    eps: f32,
    grad: &mut [f32],
    d_weight: &mut [f32],
) {
    let scale = inverse_norm(x, eps);
    let mut lanes = [0.0f32; LANES];
    // Whole groups of lanes as arrays, so that no index is checked in the loop.
    let whole = (grad.as_chunks_mut::<LANES>().0.iter_mut())
        .zip(x.as_chunks::<LANES>().0)
        .zip(weight.as_chunks::<LANES>().0)
        .zip(d_weight.as_chunks_mut::<LANES>().0);
    for (((grad, x), weight), d_weight) in whole {
        for i in 0..LANES {
            let normed = x[i] * scale;
            d_weight[i] += grad[i] * normed;
            grad[i] *= weight[i];
            lanes[i] += grad[i] * normed;
        }
    }
    for i in x.len() - x.len() % LANES..x.len() {
        let normed = x[i] * scale;
        d_weight[i] += grad[i] * normed;
        grad[i] *= weight[i];
        lanes[i % LANES] += grad[i] * normed;
    }
    let mean = lanes.iter().sum::<f32>() / x.len() as f32;
    for (grad, x) in grad.iter_mut().zip(x) {
        *grad = (*grad - x * scale * mean) * scale;
    }
}

/// [`rotate_halves`] by the negative angle.
#[inline(always)]
pub(super) fn rotate_halves_back_body(x: &mut [f32], cos: &[f32], sin: &[f32]) {
    let (first, second) = x.split_at_mut(cos.len());
    for ((a, b), (cos, sin)) in first.iter_mut().zip(second).zip(cos.iter().zip(sin)) {
        (*a, *b) = (*a * cos + *b * sin, *b * cos - *a * sin);
    }
}

#[inline(always)]
pub(super) fn rotate_halves_body(x: &mut [f32], cos: &[f32], sin: &[f32]) {
    let (first, second) = x.split_at_mut(cos.len());
    for ((a, b), (cos, sin)) in first.iter_mut().zip(second).zip(cos.iter().zip(sin)) {
        (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
    }
}

#[inline(always)]
fn rotate_pairs_body(x: &mut [f32], cos: &[f32], sin: &[f32]) {
    for ([a, b], (cos, sin)) in x.as_chunks_mut::<2>().0.iter_mut().zip(cos.iter().zip(sin)) {
        (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
    }
}

#[inline(always)]
pub(super) fn add_body(x: &mut [f32], y: &[f32]) {
    for (x, y) in x.iter_mut().zip(y) {
        *x += y;
    }
}

#[inline(always)]
fn add_sum_body(x: &mut [f32], rows_kh: &[f32]) {
    let hidden = x.len();
    for (i, x) in x.chunks_mut(LANES).enumerate() {
        let mut sum = [0.0; LANES];
        for row in rows_kh.chunks_exact(hidden) {
            add_body(&mut sum, &row[i * LANES..][..x.len()]);
        }
        add_body(x, &sum);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn norms_have_unit_mean_square() {
        let x: Vec<f32> = (0..37).map(|i| (i as f32 * 0.7).sin() * 3.0).collect();
        let weight = vec![2.0; 37];
        let mut out = vec![0.0; 37];
        rms_norm(&x, &weight, 0.0, &mut out);
        let mean = out.iter().map(|v| v * v).sum::<f32>() / 37.0;
        assert!((mean - 4.0).abs() < 1e-5, "{mean}");
        let mut onto = x;
        rms_norm_onto(&mut onto, &weight, 0.0);
        assert_eq!(onto, out);
    }

    #[test]
    fn rows_are_summed_in_their_order() {
        for hidden in [1, 15, 16, 37] {
            let rows: Vec<f32> = (0..5 * hidden).map(|i| (i as f32 * 0.3).sin() * 1e3).collect();
            let mut x = vec![0.5; hidden];
            add_sum(&mut x, &rows);
            for (i, x) in x.iter().enumerate() {
                let sum: f32 = (0..5).map(|k| rows[k * hidden + i]).sum();
                assert_eq!(*x, 0.5 + sum);
            }
        }
    }

    #[test]
    fn both_rotations_turn_the_same_angles() {
        let angles: Vec<f32> = (0..20).map(|i| i as f32 * 0.3).collect();
        let cos: Vec<f32> = angles.iter().map(|a| a.cos()).collect();
        let sin: Vec<f32> = angles.iter().map(|a| a.sin()).collect();
        let mut halves: Vec<f32> = (0..40).map(|i| i as f32 - 7.0).collect();
        let mut pairs: Vec<f32> = (0..40).map(|i| halves[i / 2 + (i % 2) * 20]).collect();
        rotate_halves(&mut halves, &cos, &sin);
        rotate_pairs(&mut pairs, &cos, &sin);
        for i in 0..20 {
            assert_eq!((pairs[2 * i], pairs[2 * i + 1]), (halves[i], halves[i + 20]));
        }
        // A quarter turn takes (1, 0) to (0, 1).
        let mut x = [1.0, 0.0];
        rotate_halves(&mut x, &[0.0], &[1.0]);
        assert_eq!(x, [0.0, 1.0]);
    }
}
