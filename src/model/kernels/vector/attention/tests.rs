//! Against libtorch's attention and its gradients, and across numbers of threads.

use super::*;
use crate::model::kernels::noise::noise;
use crate::model::kernels::parallel::same_on_threads;
use crate::model::kernels::vector::pack::Element;
use crate::model::kernels::view::{elements, elements_mut};
use tch::{Kind, Tensor};

struct Case {
    heads: Heads,
    /// q, k, v, gradient of the output.
    inputs: [Tensor; 4],
}

impl Case {
    fn new([sequences, tokens, query_heads, kv_heads, dim]: [usize; 5], kind: Kind) -> Self {
        let size = |of: usize| [sequences, tokens, of, dim].map(|n| n as i64);
        let input = |seed, of| noise(&size(of), seed, kind);
        Self {
            heads: Heads { sequences, tokens, query_heads, kv_heads, dim },
            inputs: [
                input(1, query_heads),
                input(2, kv_heads),
                input(3, kv_heads),
                input(4, query_heads),
            ],
        }
    }

    /// Output, then gradients of q, k and v.
    fn ours<T: Element>(&self) -> [Tensor; 4] {
        let heads = self.heads;
        let [q, k, v, d_out] = self.inputs.each_ref().map(|x| elements::<T>(x).unwrap());
        let mut outs = self.inputs.each_ref().map(Tensor::empty_like);
        let [dq, dk, dv, out] = &mut outs;
        let mut log_sums = vec![f32::NAN; heads.rows()];
        attention(heads, [q, k, v], elements_mut::<T>(out).unwrap(), &mut log_sums).unwrap();
        let out: &Tensor = out;
        let out = elements::<T>(out).unwrap();
        let tape = AttentionTape { heads, q, k, v, out, log_sums: &log_sums, d_out };
        let grads = [dq, dk, dv].map(|grad| elements_mut::<T>(grad).unwrap());
        attention_backward(tape, grads).unwrap();
        let [dq, dk, dv, out] = outs;
        [out, dq, dk, dv]
    }

    /// The same from libtorch, in f32.
    fn theirs(&self) -> [Tensor; 4] {
        let groups = (self.heads.query_heads / self.heads.kv_heads) as i64;
        let leaves = self.inputs.each_ref().map(|x| x.to_kind(Kind::Float).set_requires_grad(true));
        let [q, k, v] = [0, 1, 2].map(|i| leaves[i].transpose(1, 2));
        let [k, v] = [k, v].map(|x| x.repeat_interleave_self_int(groups, 1, None));
        let out = Tensor::scaled_dot_product_attention(
            &q,
            &k,
            &v,
            None::<&Tensor>,
            0.0,
            true,
            None,
            false,
        )
        .transpose(1, 2);
        let inputs = [&leaves[0], &leaves[1], &leaves[2]];
        let scaled = (&out * leaves[3].detach()).sum(Kind::Float);
        let mut grads = Tensor::run_backward(&[scaled], &inputs, false, false).into_iter();
        let mut next = || grads.next().unwrap();
        [out.detach(), next(), next(), next()]
    }
}

const CASES: [[usize; 5]; 7] = [
    [2, 21, 4, 2, 15],
    [1, 1, 1, 1, 8],
    [2, 37, 4, 4, 24],
    [1, 130, 6, 2, 64],
    [2, 48, 2, 1, 40],
    [1, 49, 3, 3, 128],
    [1, 300, 2, 2, 16],
];

fn agrees<T: Element>(bound: f64) {
    for shape in CASES {
        let case = Case::new(shape, T::KIND);
        for (name, (ours, theirs)) in
            ["out", "dq", "dk", "dv"].iter().zip(case.ours::<T>().iter().zip(case.theirs()))
        {
            let off = (ours.to_kind(Kind::Float) - &theirs).abs().max().double_value(&[]);
            let size = theirs.abs().max().double_value(&[]).max(1.0);
            assert!(off < bound * size, "{shape:?} {name}: off by {off} of {size}");
        }
    }
}

#[test]
fn outputs_and_gradients_are_those_of_libtorch() {
    agrees::<f32>(1e-5);
}

#[test]
fn bf16_is_off_by_the_rounding_of_its_results() {
    agrees::<u16>(1.0 / 128.0);
}

#[test]
fn threads_change_nothing() {
    let case = Case::new([2, 70, 4, 2, 32], Kind::Float);
    same_on_threads(|| case.ours::<f32>());
}

#[test]
fn a_wrong_size_is_refused() {
    let case = Case::new([1, 4, 2, 2, 8], Kind::Float);
    let [q, k, v, _] = case.inputs.each_ref().map(|x| elements::<f32>(x).unwrap());
    let mut out = vec![0.0; 64];
    let heads = Heads { query_heads: 3, ..case.heads };
    assert!(attention(heads, [q, k, v], &mut out, &mut [0.0; 8]).is_err());
    assert!(attention(case.heads, [q, k, v], &mut out, &mut [0.0; 7]).is_err());
}
