//! The optimizer of expert and dense parameters, behind a trait.
//!
//! Law 6: an expert that missed steps catches up by the same arithmetic, with a gradient of
//! zero and each step's own learning rate; the result is bit for bit that of never missing one.

pub use super::kernels::adamw::{AdamStep, adamw_f32, adamw_split};
use super::kernels::parallel::Threads;
pub use super::kernels::reduce::sum_squares;
pub use super::kernels::split::{join_master, split_master};
use crate::base::{Result, Step};
use serde::{Deserialize, Serialize};

/// Master weights, in one of their two layouts.
pub enum Master<'a> {
    F32(&'a mut [f32]),
    /// Upper half (the bf16 compute weight) and lower half.
    Split {
        hi: &'a mut [u16],
        lo: &'a mut [i16],
    },
}

/// Parameters of one block with their moments, all of one length.
pub struct Params<'a> {
    pub master: Master<'a>,
    pub m: &'a mut [f32],
    pub v: &'a mut [f32],
}

/// A step's number (from 1) and its learning rate.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct StepRate {
    pub step: Step,
    pub lr: f64,
}

/// One call of an optimizer.
#[derive(Debug, Clone, Copy)]
pub struct Update<'a> {
    /// Steps to apply, oldest first. All but the last have a zero gradient (missed steps).
    pub steps: &'a [StepRate],
    /// The last step's gradient; `None` is zeros.
    pub grad: Option<&'a [f32]>,
    /// The gradient is multiplied by it first (clipping by global norm).
    pub grad_scale: f64,
    /// Whether weight decay applies to these parameters.
    pub decay: bool,
    pub threads: Threads,
}

/// Changes parameters by their gradients. Must be elementwise, or at least not depend on how
/// often and when it is called for other blocks: blocks are updated in any order.
pub trait Optimizer: Send + Sync {
    /// The name in configuration and messages.
    fn name(&self) -> &'static str;

    /// Whether each parameter's update depends on its own gradient and moments alone. Then a block
    /// may be updated in pieces, by several threads at once, while each is in a processor's cache.
    fn is_elementwise(&self) -> bool {
        false
    }

    /// Applies the steps to the parameters.
    ///
    /// # Errors
    /// [`crate::base::ErrorKind::Bug`] when lengths differ.
    fn update(&self, update: &Update<'_>, params: Params<'_>) -> Result<()>;
}

/// AdamW with decoupled decay (Loshchilov and Hutter, 2019), PyTorch's arithmetic.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct AdamW {
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f64,
    pub weight_decay: f64,
}

impl AdamW {
    /// The step with this optimizer's constants.
    pub fn at(&self, rate: StepRate, grad_scale: f64, decay: bool) -> AdamStep {
        AdamStep {
            step: rate.step,
            lr: rate.lr,
            beta1: self.beta1,
            beta2: self.beta2,
            eps: self.eps,
            weight_decay: if decay { self.weight_decay } else { 0.0 },
            grad_scale,
        }
    }
}

impl Optimizer for AdamW {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn is_elementwise(&self) -> bool {
        true
    }

    fn update(&self, u: &Update<'_>, params: Params<'_>) -> Result<()> {
        let steps: Vec<AdamStep> =
            u.steps.iter().map(|rate| self.at(*rate, u.grad_scale, u.decay)).collect();
        match params.master {
            Master::F32(w) => adamw_f32(&steps, w, params.m, params.v, u.grad, u.threads),
            Master::Split { hi, lo } => {
                adamw_split(&steps, hi, lo, params.m, params.v, u.grad, u.threads)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Kind, Tensor};

    const ADAMW: AdamW = AdamW { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1 };

    fn noise(n: usize, salt: u32) -> Vec<f32> {
        let draw = |i: u32| (i.wrapping_mul(0x9e37_79b9) ^ salt).wrapping_mul(0x85eb_ca6b) >> 8;
        (0..n as u32).map(|i| draw(i) as f32 / (1 << 23) as f32 - 1.0).collect()
    }

    fn rates(steps: std::ops::RangeInclusive<u64>) -> Vec<StepRate> {
        steps.map(|step| StepRate { step, lr: 1e-2 / step as f64 }).collect()
    }

    /// torch.optim.AdamW written in f64 tensors.
    fn reference(
        w: &mut Tensor,
        m: &mut Tensor,
        v: &mut Tensor,
        g: &Tensor,
        r: StepRate,
        scale: f64,
    ) {
        let g = g * scale;
        let t = r.step as i32;
        *w = &*w * (1.0 - r.lr * 0.1);
        *m = &*m * 0.9 + &g * 0.1;
        *v = &*v * 0.95 + &g * &g * 0.05;
        let denom = v.sqrt() / (1.0 - 0.95f64.powi(t)).sqrt() + 1e-8;
        *w = &*w - &*m / denom * (r.lr / (1.0 - 0.9f64.powi(t)));
    }

    #[test]
    fn matches_the_formula() {
        let n = 20_003;
        let start = noise(n, 1);
        let (mut w, mut m, mut v) = (start.clone(), vec![0.0; n], vec![0.0; n]);
        let wide = |x: &[f32]| Tensor::from_slice(x).to_kind(Kind::Double);
        let (mut rw, mut rm, mut rv) = (wide(&w), wide(&m), wide(&v));
        for rate in rates(1..=4) {
            let g = noise(n, 10 + rate.step as u32);
            let update = Update {
                steps: &[rate],
                grad: Some(&g),
                grad_scale: 0.5,
                decay: true,
                threads: Threads::Pool,
            };
            ADAMW
                .update(&update, Params { master: Master::F32(&mut w), m: &mut m, v: &mut v })
                .unwrap();
            reference(&mut rw, &mut rm, &mut rv, &wide(&g), rate, 0.5);
        }
        let error = (wide(&w) - rw).abs().max().double_value(&[]);
        assert!(error < 2e-6, "{error}");
    }

    /// Weights with moments in both layouts; the f32 one is the truth.
    struct Both {
        w: Vec<f32>,
        hi: Vec<u16>,
        lo: Vec<i16>,
        moments: [Vec<f32>; 4],
    }

    impl Both {
        fn new(n: usize) -> Self {
            let w = noise(n, 7);
            let (mut hi, mut lo) = (vec![0; n], vec![0; n]);
            split_master(&w, &mut hi, &mut lo).unwrap();
            Self { w, hi, lo, moments: std::array::from_fn(|_| vec![0.0; n]) }
        }

        fn update(&mut self, steps: &[StepRate], grad: Option<&[f32]>, threads: Threads) {
            let u = Update { steps, grad, grad_scale: 0.7, decay: true, threads };
            let [m1, v1, m2, v2] = &mut self.moments;
            ADAMW.update(&u, Params { master: Master::F32(&mut self.w), m: m1, v: v1 }).unwrap();
            let master = Master::Split { hi: &mut self.hi, lo: &mut self.lo };
            ADAMW.update(&u, Params { master, m: m2, v: v2 }).unwrap();
        }

        fn bits(&self) -> Vec<u32> {
            let mut joined = vec![0.0; self.w.len()];
            join_master(&self.hi, &self.lo, &mut joined).unwrap();
            let all = self.w.iter().chain(&joined).chain(self.moments.iter().flatten());
            all.map(|x| x.to_bits()).collect()
        }
    }

    #[test]
    fn layouts_and_threads_agree_bit_for_bit() {
        let n = 50_001;
        let (mut a, mut b) = (Both::new(n), Both::new(n));
        for rate in rates(1..=3) {
            let g = noise(n, 90 + rate.step as u32);
            a.update(&[rate], Some(&g), Threads::Pool);
            b.update(&[rate], Some(&g), Threads::Calling);
        }
        assert_eq!(a.bits(), b.bits());
        let (mut joined, half) = (vec![0.0; n], n);
        join_master(&a.hi, &a.lo, &mut joined).unwrap();
        assert!((0..half).all(|i| joined[i].to_bits() == a.w[i].to_bits()));
    }

    #[test]
    fn missed_steps_replayed_equal_steps_with_zero_gradient() {
        let n = 40_001;
        let (mut every, mut lazy) = (Both::new(n), Both::new(n));
        let g = noise(n, 5);
        every.update(&rates(1..=1), Some(&g), Threads::Pool);
        lazy.update(&rates(1..=1), Some(&g), Threads::Pool);
        let zeros = vec![0.0; n];
        for rate in rates(2..=6) {
            every.update(&[rate], Some(&zeros), Threads::Pool);
        }
        every.update(&rates(7..=7), Some(&g), Threads::Pool);
        lazy.update(&rates(2..=7), Some(&g), Threads::Calling);
        assert_eq!(every.bits(), lazy.bits());
        every.update(&rates(8..=8), Some(&zeros), Threads::Pool);
        lazy.update(&rates(8..=8), None, Threads::Pool);
        assert_eq!(every.bits(), lazy.bits());
    }

    #[test]
    fn lengths_are_checked() {
        let (mut w, mut m, mut v) = (vec![0.0; 4], vec![0.0; 4], vec![0.0; 3]);
        let params = Params { master: Master::F32(&mut w), m: &mut m, v: &mut v };
        let steps = rates(1..=1);
        let u = Update {
            steps: &steps,
            grad: None,
            grad_scale: 1.0,
            decay: true,
            threads: Threads::Pool,
        };
        assert!(ADAMW.update(&u, params).is_err());
    }
}
