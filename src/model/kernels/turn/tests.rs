//! Against libtorch's autograd in f64, on every instruction set, and across numbers of threads.

use super::*;
use crate::model::kernels::dispatch::levels;
use crate::model::kernels::noise::noise;
use crate::model::kernels::parallel::same_on_threads;
use crate::model::kernels::view::{elements, elements_mut};
use tch::{Device, Kind, Tensor};

const EPS: f64 = 1e-5;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Norms {
    None,
    PerHead,
    Full,
}

#[derive(Debug, Clone, Copy)]
struct Shape {
    sequences: i64,
    tokens: i64,
    heads: i64,
    kv_heads: i64,
    dim: i64,
}

struct Case {
    shape: Shape,
    clip: Option<f64>,
    projection: Tensor,
    /// Gradients of q, k and v.
    grads: [Tensor; 3],
    norms: Option<[Tensor; 2]>,
    cos: Tensor,
    sin: Tensor,
}

impl Case {
    fn new(shape: Shape, norms: Norms, clip: Option<f64>, kind: Kind) -> Self {
        let rows = shape.sequences * shape.tokens;
        let [q, k] = [shape.heads, shape.kv_heads].map(|heads| heads * shape.dim);
        let of_rows = |seed, width| noise(&[rows, width], seed, kind);
        let norm = |seed, width| {
            let width = if norms == Norms::Full { width } else { shape.dim };
            noise(&[width], seed, Kind::Float)
        };
        let positions = Tensor::arange(shape.tokens, (Kind::Float, Device::Cpu)).unsqueeze(1);
        let turns = positions * noise(&[shape.dim / 2], 1, Kind::Float);
        Self {
            shape,
            clip,
            projection: of_rows(2, q + 2 * k),
            grads: [of_rows(3, q), of_rows(4, k), of_rows(5, k)],
            norms: (norms != Norms::None).then(|| [norm(6, q), norm(7, k)]),
            cos: turns.cos(),
            sin: turns.sin(),
        }
    }

    fn turn(&self) -> Turn<'_> {
        let slice = |x| elements::<f32>(x).unwrap();
        Turn {
            query_heads: self.shape.heads as usize,
            kv_heads: self.shape.kv_heads as usize,
            dim: self.shape.dim as usize,
            norms: self.norms.as_ref().map(|norms| norms.each_ref().map(slice)),
            eps: EPS as f32,
            clip: self.clip.map(|clip| clip as f32),
            angles: [slice(&self.cos), slice(&self.sin)],
        }
    }

    /// q, k, v, the projection's gradient, and the norms'.
    fn ours<T: Number>(&self) -> Vec<Tensor> {
        let (turn, qkv) = (self.turn(), elements::<T>(&self.projection).unwrap());
        let mut parts = self.grads.each_ref().map(Tensor::empty_like);
        let outs = parts.each_mut().map(|x| elements_mut::<T>(x).unwrap());
        forward(&turn, qkv, outs).unwrap();
        let grads = self.grads.each_ref().map(|x| elements::<T>(x).unwrap());
        let mut d_projection = self.projection.empty_like();
        let out = elements_mut::<T>(&mut d_projection).unwrap();
        let input = turn.reads_input().then_some(qkv);
        let d_norms = backward(&turn, input, grads, out).unwrap();
        let d_norms = d_norms.into_iter().filter(|grad| !grad.is_empty());
        let mut all: Vec<Tensor> = parts.into_iter().chain([d_projection]).collect();
        all.extend(d_norms.map(|grad| Tensor::from_slice(&grad)));
        all
    }

    fn theirs(&self) -> Vec<Tensor> {
        let Shape { sequences, tokens, heads, kv_heads, dim } = self.shape;
        let leaf = |x: &Tensor| x.to_kind(Kind::Double).set_requires_grad(true);
        let projection = leaf(&self.projection);
        let norms: Vec<Tensor> = self.norms.iter().flatten().map(leaf).collect();
        let [cos, sin] = [&self.cos, &self.sin].map(|x| x.to_kind(Kind::Double).unsqueeze(1));
        let clamp = |x: Tensor| self.clip.map_or(x.shallow_clone(), |clip| x.clamp(-clip, clip));
        let turned = |x: &Tensor, norm: Option<&Tensor>, heads: i64| {
            let size = [sequences, tokens, heads, dim];
            let mut x = x.shallow_clone();
            if let Some(norm) = norm {
                // Rows as long as the weight are normed.
                let rows = x.reshape([-1, norm.size()[0]]);
                let mean = rows.square().mean_dim([-1i64].as_slice(), true, Kind::Double);
                x = (&rows * (mean + EPS).rsqrt() * norm).view_as(&x);
            }
            let halves = clamp(x).reshape(size).chunk(2, -1);
            let (a, b) = (&halves[0], &halves[1]);
            let both = [a * &cos - b * &sin, b * &cos + a * &sin];
            Tensor::cat(&both, -1).reshape([sequences * tokens, heads * dim])
        };
        let widths = [heads * dim, kv_heads * dim, kv_heads * dim];
        let parts = projection.split_with_sizes(widths, -1);
        let outs = [
            turned(&parts[0], norms.first(), heads),
            turned(&parts[1], norms.get(1), kv_heads),
            clamp(parts[2].shallow_clone()),
        ];
        let loss = outs.iter().zip(&self.grads).map(|(out, grad)| (out * grad).sum(Kind::Double));
        let inputs: Vec<&Tensor> = [&projection].into_iter().chain(&norms).collect();
        let grads = Tensor::run_backward(&[loss.sum::<Tensor>()], &inputs, false, false);
        outs.iter().map(Tensor::detach).chain(grads).collect()
    }
}

const SHAPES: [Shape; 4] = [
    Shape { sequences: 1, tokens: 1, heads: 1, kv_heads: 1, dim: 2 },
    Shape { sequences: 2, tokens: 19, heads: 4, kv_heads: 2, dim: 10 },
    Shape { sequences: 3, tokens: 7, heads: 3, kv_heads: 3, dim: 32 },
    Shape { sequences: 2, tokens: 35, heads: 4, kv_heads: 1, dim: 64 },
];

fn agree_on_every_level<T: Number>() {
    let kinds = [Norms::None, Norms::PerHead, Norms::Full];
    for (shape, norms) in SHAPES.iter().flat_map(|shape| kinds.map(|norms| (*shape, norms))) {
        for clip in [None, Some(0.7)] {
            let case = Case::new(shape, norms, clip, T::KIND);
            let want = case.theirs();
            let all = levels::each(|| case.ours::<T>());
            for got in &all {
                assert_eq!(*got, all[0], "levels differ for {shape:?} {norms:?} {clip:?}");
                assert_eq!(got.len(), want.len());
                for (i, (got, want)) in got.iter().zip(&want).enumerate() {
                    let rounding = if got.kind() == Kind::BFloat16 { 1.0 / 256.0 } else { 0.0 };
                    let most = want.abs() * rounding + want.abs().max() * 4e-6;
                    let over = (got.to_kind(Kind::Double) - want).abs() - most;
                    let over = over.max().double_value(&[]);
                    assert!(over <= 0.0, "{shape:?} {norms:?} {clip:?}: {i} is over by {over}");
                }
            }
        }
    }
}

#[test]
fn parts_and_gradients_are_those_of_autograd() {
    agree_on_every_level::<f32>();
}

#[test]
fn bf16_is_off_by_one_rounding() {
    agree_on_every_level::<u16>();
}

#[test]
fn threads_change_nothing() {
    let shape = Shape { sequences: 2, tokens: 170, heads: 4, kv_heads: 2, dim: 24 };
    let case = Case::new(shape, Norms::PerHead, Some(0.7), Kind::Float);
    same_on_threads(|| case.ours::<f32>());
}

#[test]
fn slices_that_do_not_fit_are_refused() {
    let case = Case::new(SHAPES[1], Norms::Full, None, Kind::Float);
    let (turn, qkv) = (case.turn(), elements::<f32>(&case.projection).unwrap());
    let grads = case.grads.each_ref().map(|x| elements::<f32>(x).unwrap());
    let mut out = vec![0.0; qkv.len()];
    assert!(backward(&turn, Some(qkv), grads, &mut out).is_ok());
    assert!(backward(&turn, None, grads, &mut out).is_err());
    assert!(backward(&turn, Some(&qkv[1..]), grads, &mut out).is_err());
    assert!(backward(&turn, Some(qkv), [grads[0], grads[1], grads[0]], &mut out).is_err());
    let odd = Turn { dim: 5, ..turn };
    assert!(backward(&odd, Some(qkv), grads, &mut out).is_err());
}
