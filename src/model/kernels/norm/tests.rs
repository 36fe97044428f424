//! Against libtorch's autograd in f64, on every instruction set, and across numbers of threads.

use super::*;
use crate::model::kernels::dispatch::levels;
use crate::model::kernels::noise::noise;
use crate::model::kernels::parallel::same_on_threads;
use crate::model::kernels::view::{elements, elements_mut};
use tch::{Kind, Tensor};

const EPS: f64 = 1e-5;

/// Rows and elements of one: whole vectors, parts of one, more than a block.
const SIZES: [[i64; 2]; 5] = [[1, 1], [3, 16], [5, 37], [2, 512], [70, 100]];

struct Case {
    /// x, what is added to it, gradient of the norm, gradient past it.
    x: Tensor,
    more: Tensor,
    dy: Tensor,
    residual: Tensor,
    weight: Tensor,
}

impl Case {
    fn new([rows, h]: [i64; 2], kind: Kind) -> Self {
        Self {
            x: noise(&[rows, h], 1, Kind::Float) * 3.0,
            more: noise(&[rows, h], 2, kind),
            dy: noise(&[rows, h], 3, kind),
            residual: noise(&[rows, h], 4, Kind::Float),
            weight: noise(&[h], 5, Kind::Float),
        }
    }

    /// sum, norm of the sum, dx, weight's gradient; dx as of the norm of x alone.
    fn ours<T: Number>(&self) -> [Tensor; 4] {
        let [x, residual, weight] = [&self.x, &self.residual, &self.weight];
        let [x, residual, weight] = [x, residual, weight].map(|x| elements::<f32>(x).unwrap());
        let (more, dy) = (elements::<T>(&self.more).unwrap(), elements::<T>(&self.dy).unwrap());
        let [mut sum, mut dx] = [self.x.empty_like(), self.x.empty_like()];
        let mut out = self.more.empty_like();
        let eps = EPS as f32;
        let (sums, outs) = (elements_mut(&mut sum).unwrap(), elements_mut::<T>(&mut out).unwrap());
        add_forward(x, more, weight, eps, sums, outs).unwrap();
        let out_dx = elements_mut(&mut dx).unwrap();
        let d_weight = backward(x, weight, eps, dy, Some(residual), out_dx).unwrap();

        let mut alone = self.more.empty_like();
        forward(&*sums, weight, eps, elements_mut::<T>(&mut alone).unwrap()).unwrap();
        assert_eq!(alone, out);
        let mut without = vec![f32::NAN; x.len()];
        let same = backward(x, weight, eps, dy, None, &mut without).unwrap();
        assert_eq!(same, d_weight);
        let past = Tensor::from_slice(&without).view_as(&dx) + &self.residual;
        assert_eq!(past, dx);
        [sum, out, dx, Tensor::from_slice(&d_weight)]
    }

    fn theirs(&self) -> [Tensor; 4] {
        let double = |x: &Tensor| x.to_kind(Kind::Double);
        let weight = double(&self.weight).set_requires_grad(true);
        let norm = |x: &Tensor| {
            let mean = x.square().mean_dim([-1i64].as_slice(), true, Kind::Double);
            x * (mean + EPS).rsqrt() * &weight
        };
        let x = double(&self.x).set_requires_grad(true);
        let loss = norm(&x) * double(&self.dy) + &x * double(&self.residual);
        let grads = Tensor::run_backward(&[loss.sum(Kind::Double)], &[&x, &weight], false, false);
        let sum = (&self.x + self.more.to_kind(Kind::Float)).detach();
        let out = norm(&double(&sum)).detach();
        let [dx, d_weight]: [Tensor; 2] = grads.try_into().unwrap();
        [sum, out, dx, d_weight]
    }
}

/// Off by at most `bound` of the largest element, or half a unit of the last place of bf16.
fn agrees(name: &str, got: &Tensor, want: &Tensor, bound: f64) {
    let want = want.to_kind(Kind::Double);
    let rounding = if got.kind() == Kind::BFloat16 { 1.0 / 256.0 } else { 0.0 };
    let most = want.abs() * rounding + want.abs().max() * bound;
    let over = (got.to_kind(Kind::Double) - &want).abs() - most;
    let over = over.max().double_value(&[]);
    assert!(over <= 0.0, "{name} {:?}: over the bound by {over}", want.size());
}

fn agree_on_every_level<T: Number>() {
    for size in SIZES {
        let case = Case::new(size, T::KIND);
        let want = case.theirs();
        let all = levels::each(|| case.ours::<T>());
        for got in &all {
            assert_eq!(*got, all[0], "levels differ for {size:?}");
            for (i, name) in ["sum", "norm", "dx", "weight"].iter().enumerate() {
                agrees(name, &got[i], &want[i], 2e-6);
            }
        }
    }
}

#[test]
fn norms_and_their_gradients_are_those_of_autograd() {
    agree_on_every_level::<f32>();
}

#[test]
fn bf16_is_off_by_one_rounding() {
    agree_on_every_level::<u16>();
}

#[test]
fn threads_change_nothing() {
    let case = Case::new([333, 257], Kind::Float);
    same_on_threads(|| case.ours::<f32>());
}

#[test]
fn slices_that_do_not_fit_are_refused() {
    let (x, weight) = ([1.0; 12], [1.0; 4]);
    let mut out = [0.0f32; 12];
    assert!(forward(&x[..11], &weight, 0.0, &mut out[..11]).is_err());
    assert!(forward(&x, &weight, 0.0, &mut out[..8]).is_err());
    assert!(forward(&x, &[], 0.0, &mut out).is_err());
    assert!(backward(&x, &weight, 0.0, &x, Some(&x[..8]), &mut out).is_err());
    assert!(forward(&x[..0], &weight, 0.0, &mut out[..0]).is_ok());
}
