//! One layer's gradients, of every parameter, against libtorch's autograd over the same layer in f64.

use super::tests::{FAMILIES, small};
use super::*;
use crate::model::kernels::noise::noise;
use std::collections::HashMap;
use tch::Device;

/// The parameters of a layer as leaves in f64, by slot.
type Leaves = HashMap<Slot, Tensor>;

/// The layer as a graph: residual stream, experts' input, router logits, all `[T, ..]`.
fn reference(config: &ModelConfig, p: &Leaves, x_bsh: &Tensor) -> [Tensor; 3] {
    let (b, s, h) = x_bsh.size3().unwrap();
    let d = config.head_dim as i64;
    let norm = |x: &Tensor, slot: Slot| {
        let rows = x.reshape([-1, p[&slot].size()[0]]);
        let mean = rows.square().mean_dim([-1i64].as_slice(), true, Kind::Double);
        (&rows * (mean + config.norm_eps).rsqrt() * &p[&slot]).view_as(x)
    };
    let linear = |x: &Tensor, slot: Slot, bias: Slot| x.linear(&p[&slot], p.get(&bias));
    let clamp = |x: Tensor| match config.clip_qkv {
        Some(clip) => x.clamp(-clip, clip),
        None => x,
    };
    let inv: Vec<f32> = (0..d / 2)
        .map(|i| 1.0 / (config.rope_theta as f32).powf((2 * i) as f32 / d as f32))
        .collect();
    let positions = Tensor::arange(s, (Kind::Float, Device::Cpu)).view([s, 1, 1]);
    let angles = (positions * Tensor::from_slice(&inv)).to_kind(Kind::Double);
    let (cos, sin) = (angles.cos(), angles.sin());
    let heads = |x: Tensor| x.reshape([b, s, -1, d]);
    let turned = |x: Tensor, slot: Slot| {
        let x = if p.contains_key(&slot) { norm(&x, slot) } else { x };
        let halves = heads(clamp(x)).chunk(2, -1);
        let (first, second) = (&halves[0], &halves[1]);
        Tensor::cat(&[first * &cos - second * &sin, second * &cos + first * &sin], -1)
    };

    let x = x_bsh.reshape([b * s, h]);
    let n = norm(&x, Slot::InputNorm);
    let q = turned(linear(&n, Slot::Q, Slot::QBias), Slot::QNorm);
    let k = turned(linear(&n, Slot::K, Slot::KBias), Slot::KNorm);
    let v = heads(clamp(linear(&n, Slot::V, Slot::VBias)));
    let groups = (config.heads / config.kv_heads) as i64;
    let shared = |x: Tensor| x.repeat_interleave_self_int(groups, 2, None).transpose(1, 2);
    let scores = q.transpose(1, 2).matmul(&shared(k).transpose(2, 3)) / (d as f64).sqrt();
    let later = Tensor::ones([s, s], (Kind::Bool, Device::Cpu)).triu(1);
    let weights = scores.masked_fill(&later, f64::NEG_INFINITY).softmax(-1, Kind::Double);
    let context = weights.matmul(&shared(v)).transpose(1, 2).reshape([b * s, -1]);
    let residual = x + linear(&context, Slot::O, Slot::OBias);
    let y = norm(&residual, Slot::PostNorm);
    let logits = linear(&y, Slot::Router, Slot::RouterBias);
    let plain = |x: &Tensor, slot: Slot| x.linear(&p[&slot], None::<&Tensor>);
    let residual = match p.contains_key(&Slot::SharedGate) {
        true => {
            let act = plain(&y, Slot::SharedGateProj).silu() * plain(&y, Slot::SharedUpProj);
            residual + plain(&y, Slot::SharedGate).sigmoid() * plain(&act, Slot::SharedDownProj)
        }
        false => residual,
    };
    [residual, y, logits]
}

/// Outputs and gradients by name, each with what autograd in f64 has for it.
fn compared(config: &ModelConfig, precision: Precision) -> Vec<(String, Tensor, Tensor)> {
    let mut params = DenseParams::init(config, precision, 3).unwrap();
    // So that norms are not one, nor biases zero, and scores not all alike.
    let more = Vec::<f32>::try_from(&noise(&[params.elements() as i64], 1, Kind::Float)).unwrap();
    for (value, more) in params.buffers().master.iter_mut().zip(more) {
        *value += 0.08 * more;
    }
    params.refresh().unwrap();
    let specs: Vec<_> = params.specs().iter().filter(|s| s.layer == Some(1)).cloned().collect();
    let size = |shape: &[usize]| shape.iter().map(|n| *n as i64).collect::<Vec<_>>();
    let mut leaves = Leaves::new();
    for spec in &specs {
        let master = &params.buffers().master[spec.offset..][..spec.elements()];
        let mut value = Tensor::from_slice(master).view(size(&spec.shape).as_slice());
        if spec.slot.in_compute_type() {
            value = value.to_kind(compute::dense(precision).kind());
        }
        leaves.insert(spec.slot, value.to_kind(Kind::Double).set_requires_grad(true));
    }
    let (b, s, h, e) = (2, 19, config.hidden as i64, config.experts as i64);
    let draw = |seed, size: &[i64]| noise(size, seed, Kind::Float);
    let (x, dh, dy) = (draw(2, &[b, s, h]), draw(3, &[b * s, h]), draw(4, &[b * s, h]));
    let dlogits = draw(5, &[b * s, e]);

    let leaf = x.to_kind(Kind::Double).set_requires_grad(true);
    let outs = reference(config, &leaves, &leaf);
    let grads = [&dh, &dy, &dlogits];
    let loss: Tensor =
        outs.iter().zip(grads).map(|(out, grad)| (out * grad).sum(Kind::Double)).sum();
    let inputs: Vec<&Tensor> =
        [&leaf].into_iter().chain(specs.iter().map(|spec| &leaves[&spec.slot])).collect();
    let mut want = Tensor::run_backward(&[loss], &inputs, false, false).into_iter();

    let mut model = DenseModel::new(config.clone(), precision, params).unwrap();
    let tape = model.layer_tape(1, &x).unwrap();
    let LayerOut { h_th, y_th, logits_te } = model.layer_out(&tape).unwrap();
    let dx = model.layer_backward(tape, &dh, dy.copy(), &dlogits).unwrap();
    let mut all = Vec::new();
    for ((name, got), want) in ["h", "y", "logits"].iter().zip([h_th, y_th, logits_te]).zip(&outs) {
        all.push(((*name).to_owned(), got, want.detach()));
    }
    all.push(("dx".to_owned(), dx, want.next().unwrap()));
    for (spec, want) in specs.iter().zip(want) {
        let grad = &model.params_mut().buffers().grad[spec.offset..][..spec.elements()];
        all.push((spec.name.clone(), Tensor::from_slice(grad).view_as(&want), want));
    }
    all
}

/// Distance over length, in the mean square.
fn agrees(config: &ModelConfig, precision: Precision, bound: f64) {
    for (name, got, want) in compared(config, precision) {
        let length = |x: &Tensor| x.square().sum(Kind::Double).double_value(&[]).sqrt();
        let off = length(&(got.to_kind(Kind::Double) - &want)) / length(&want);
        assert!(off < bound, "{} {precision:?} {name}: off by {off}", config.family);
    }
}

#[test]
fn every_gradient_of_a_layer_is_that_of_autograd() {
    for family in FAMILIES {
        agrees(&small(family), Precision::F32, 2e-5);
    }
}

#[test]
fn a_clamp_is_zero_behind_its_bound() {
    for family in ["olmoe", "mixtral"] {
        let config = ModelConfig { clip_qkv: Some(0.5), ..small(family) };
        agrees(&config, Precision::F32, 2e-5);
    }
}

#[test]
fn bf16_is_off_by_its_rounding() {
    for family in FAMILIES {
        agrees(&small(family), Precision::Bf16, 2e-2);
    }
}
