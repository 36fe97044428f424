//! Gates: parity with transformers' formulas, capacity, counters, and independence of chunks.

use super::*;
use tch::{Device, Kind, Tensor};

fn ctx(first_token: u64) -> GateContext {
    GateContext { layer: 1, step: 3, seed: 9, train: true, first_token }
}

fn logits(tokens: i64, experts: i64) -> Tensor {
    tch::manual_seed(11);
    Tensor::randn([tokens, experts], (Kind::Float, Device::Cpu))
}

fn spec(kind: GateKind, top_k: usize) -> GateSpec {
    GateSpec {
        kind,
        layers: 2,
        experts: 8,
        top_k,
        renormalise: true,
        capacity_factor: 1.0,
        jitter: 0.1,
        bias_rate: 0.5,
    }
}

fn all_gates() -> Vec<Box<dyn Gate>> {
    let kinds = [GateKind::TopK, GateKind::Switch, GateKind::GShard, GateKind::BiasCorrected];
    kinds.into_iter().zip([3, 1, 2, 2]).map(|(kind, k)| spec(kind, k).build().unwrap()).collect()
}

fn close(a: &Tensor, b: &Tensor, tolerance: f64) {
    let error = (a - b).abs().max().double_value(&[]);
    assert!(error < tolerance, "off by {error}");
}

#[test]
fn topk_is_softmax_then_topk() {
    let logits_te = logits(50, 8);
    for renormalise in [false, true] {
        let mut gate = TopK { top_k: 3, renormalise, capacity_factor: None };
        let selection = gate.select(&ctx(0), &logits_te).unwrap();
        let (mut want, experts) = logits_te.softmax(-1, Kind::Float).topk(3, -1, true, true);
        if renormalise {
            want = &want / want.sum_dim_intlist([-1i64].as_slice(), true, Kind::Float);
        }
        assert!(selection.experts_tk.equal(&experts));
        close(&gate.weights(&logits_te, &selection).unwrap(), &want, 1e-6);
    }
}

#[test]
fn ties_go_to_the_lower_index_and_nan_comes_last() {
    let scores = Tensor::from_slice(&[1.0f32, 2.0, 2.0, f32::NAN, 2.0, 0.0]).view([1, 6]);
    let chosen = Vec::<i64>::try_from(top_choices(&scores, 6).unwrap().view(-1)).unwrap();
    assert_eq!(chosen[..5], [1, 2, 4, 0, 5]);
    assert!(top_choices(&scores, 7).is_err());
}

#[test]
fn choices_do_not_depend_on_chunks() {
    let logits_te = logits(40, 8);
    for mut gate in all_gates() {
        let whole = gate.select(&ctx(100), &logits_te).unwrap();
        let whole_weights = gate.weights(&logits_te, &whole).unwrap();
        for (start, len) in [(0i64, 13i64), (13, 27)] {
            let part_te = logits_te.narrow(0, start, len);
            let part = gate.select(&ctx(100 + start as u64), &part_te).unwrap();
            assert!(
                part.experts_tk.equal(&whole.experts_tk.narrow(0, start, len)),
                "{}",
                gate.name()
            );
            let weights = gate.weights(&part_te, &part).unwrap();
            assert!(weights.equal(&whole_weights.narrow(0, start, len)), "{}", gate.name());
        }
        let again = gate.select(&GateContext { train: false, ..ctx(0) }, &logits_te).unwrap();
        assert!(again.keep_tk.is_none() && again.noise_te.is_none());
    }
}

#[test]
fn gshard_dispatches_the_second_expert_by_its_weight() {
    let logits_te = Tensor::zeros([4000, 8], (Kind::Float, Device::Cpu));
    let skewed = &logits_te + Tensor::from_slice(&[3.0f32, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
    let mut gate = GShard { capacity_factor: None };
    let kept = |gate: &mut GShard, logits: &Tensor| {
        let selection = gate.select(&ctx(0), logits).unwrap();
        selection.keep_tk.unwrap().narrow(1, 1, 1).mean(Kind::Float).double_value(&[])
    };
    assert_eq!(kept(&mut gate, &logits_te), 1.0, "twice 0.5 always exceeds the draw");
    let second = 1f64.exp() / (1f64.exp() + 3f64.exp());
    assert!((kept(&mut gate, &skewed) - 2.0 * second).abs() < 0.03);
}

#[test]
fn capacity_counts_over_the_whole_step() {
    let logits_te = logits(64, 8);
    let mut gate = TopK { top_k: 2, renormalise: false, capacity_factor: Some(1.0) };
    let limit = capacity(1.0, 2, 64, 8);
    assert_eq!(limit, 16);
    let mut whole = gate.select(&ctx(0), &logits_te).unwrap();
    let counts = choice_counts(&whole, 8).unwrap();
    assert_eq!(counts.iter().sum::<u64>(), 128);
    let before = earlier_counts(std::slice::from_ref(&counts), 8);
    let dropped = apply_capacity(&mut whole, &before[0], limit).unwrap();
    let over: u64 = (0..8).map(|e| (counts[e] + counts[8 + e]).saturating_sub(limit)).sum();
    assert_eq!(dropped, over);
    assert!(dropped > 0, "the case must drop something");

    let mut parts: Vec<Selection> = [(0i64, 24i64), (24, 40)]
        .iter()
        .map(|(start, len)| {
            gate.select(&ctx(*start as u64), &logits_te.narrow(0, *start, *len)).unwrap()
        })
        .collect();
    let counts: Vec<_> = parts.iter().map(|p| choice_counts(p, 8).unwrap()).collect();
    let mut sum = 0;
    for (part, before) in parts.iter_mut().zip(earlier_counts(&counts, 8)) {
        sum += apply_capacity(part, &before, limit).unwrap();
    }
    assert_eq!(sum, dropped);
    let keep =
        Tensor::cat(&[parts[0].keep_tk.as_ref().unwrap(), parts[1].keep_tk.as_ref().unwrap()], 0);
    assert!(keep.equal(whole.keep_tk.as_ref().unwrap()));
    let weights = gate.weights(&logits_te, &whole).unwrap();
    assert!(weights.eq(0.0).logical_and(&keep.eq(1.0)).any().int64_value(&[]) == 0);
}

#[test]
fn assignments_hold_each_dispatched_pair_once() {
    let logits_te = logits(64, 8);
    let mut gate = GShard { capacity_factor: Some(1.0) };
    let mut selection = gate.select(&ctx(0), &logits_te).unwrap();
    let counts = choice_counts(&selection, 8).unwrap();
    let before = earlier_counts(&[counts], 8);
    apply_capacity(&mut selection, &before[0], 10).unwrap();
    let rows = Assignments::new(&selection, 8).unwrap();
    let chosen = Vec::<i64>::try_from(selection.experts_tk.view(-1)).unwrap();
    let keep = Vec::<f32>::try_from(selection.keep_tk.as_ref().unwrap().view(-1)).unwrap();
    let mut seen = vec![0; chosen.len()];
    for e in rows.experts() {
        assert!(rows.rows(e).len() <= 10);
        for r in rows.rows(e) {
            let slot = rows.slots[r] as usize;
            assert_eq!((chosen[slot], rows.tokens[r]), (e as i64, slot as i64 / 2));
            seen[slot] += 1;
        }
    }
    assert!(seen.iter().zip(&keep).all(|(seen, keep)| f64::from(*seen) == f64::from(*keep)));
}

/// transformers' load_balancing_loss_func, written with tensors.
fn load_balancing_loss(logits: &[Tensor], top_k: i64) -> Tensor {
    let all = Tensor::cat(logits, 0);
    let probs = all.softmax(-1, Kind::Float);
    let (_, chosen) = probs.topk(top_k, -1, true, true);
    let mask = chosen.one_hot(all.size()[1]).to_kind(Kind::Float);
    let tokens = mask.mean_dim([0i64].as_slice(), false, Kind::Float);
    let mean = probs.mean_dim([0i64].as_slice(), false, Kind::Float);
    (tokens * mean.unsqueeze(0)).sum(Kind::Float) * all.size()[1] as f64
}

#[test]
fn losses_and_their_gradients_match_autograd() {
    let layers: Vec<Tensor> = [31, 32].iter().map(|t| logits(*t, 8) * 2.0).collect();
    let gate = &mut TopK { top_k: 2, renormalise: true, capacity_factor: None };
    let (mut stats, mut selections) = (Vec::new(), Vec::new());
    for logits_te in &layers {
        let selection = gate.select(&ctx(0), logits_te).unwrap();
        stats.push(RouterStats::of(gate, logits_te, &selection).unwrap());
        selections.push(selection);
    }
    for scope in [AuxScope::Model, AuxScope::Layer] {
        losses_match(gate, &layers, (&stats, scope), &selections);
    }
}

fn losses_match(
    gate: &TopK,
    layers: &[Tensor],
    (stats, scope): (&[RouterStats], AuxScope),
    selections: &[Selection],
) {
    let leaves: Vec<Tensor> = layers.iter().map(|l| l.copy().set_requires_grad(true)).collect();
    let aux = match scope {
        AuxScope::Model => load_balancing_loss(&leaves, 2),
        AuxScope::Layer => {
            let of = |layer| load_balancing_loss(std::slice::from_ref(layer), 2);
            leaves.iter().map(of).sum::<Tensor>() / leaves.len() as f64
        }
    };
    let sum = RouterStats::sum(stats);
    let z = Tensor::cat(&leaves, 0).logsumexp([-1i64].as_slice(), false).square().mean(Kind::Float);
    assert!((scope.loss(stats) - aux.double_value(&[])).abs() < 1e-5);
    assert!((sum.z_loss() - z.double_value(&[])).abs() < 1e-4);

    let dweights: Vec<Tensor> =
        selections.iter().map(|s| Tensor::randn_like(&s.experts_tk.to_kind(Kind::Float))).collect();
    let mut loss = aux * 0.01 + z * 0.003;
    for ((leaf, selection), dw) in leaves.iter().zip(selections).zip(&dweights) {
        loss += (gate.weights(leaf, selection).unwrap() * dw).sum(Kind::Float);
    }
    let want = Tensor::run_backward(&[loss], &leaves, false, false);
    let aux_le = scope.gradients(stats, 0.01).unwrap();
    for i in 0..layers.len() {
        let got = tch::no_grad(|| {
            let (aux, z) = (Some(&aux_le[i]), sum.z_scale(0.003));
            gate_backward(gate, &layers[i], &selections[i], &dweights[i], aux, z)
        });
        close(&got.unwrap(), &want[i], 1e-6);
    }
}

#[test]
fn bias_moves_against_the_load_and_comes_back() {
    let mut gate = BiasCorrected::new(2, 4, 1, false, 0.25);
    gate.after_step(&[vec![8, 0, 4, 4], vec![1, 1, 1, 1]]).unwrap();
    assert_eq!(gate.biases(), [vec![-0.25, 0.25, 0.0, 0.0], vec![0.0; 4]]);
    let flat = Tensor::zeros([3, 4], (Kind::Float, Device::Cpu));
    let chosen = |gate: &mut BiasCorrected, layer| {
        let selection = gate.select(&GateContext { layer, ..ctx(0) }, &flat).unwrap();
        selection.experts_tk.int64_value(&[0, 0])
    };
    assert_eq!((chosen(&mut gate, 0), chosen(&mut gate, 1)), (1, 0));
    let selection = gate.select(&GateContext { layer: 0, ..ctx(0) }, &flat).unwrap();
    let weights = gate.weights(&flat, &selection).unwrap();
    assert_eq!(weights.double_value(&[0, 0]), 0.5, "the bias is not in the weight");

    let mut other = BiasCorrected::new(2, 4, 1, false, 0.25);
    other.restore(&gate.state()).unwrap();
    assert_eq!(other, gate);
    assert!(other.restore(&serde_json::json!({"bias_bits": [[1]]})).is_err());
    assert!(other.after_step(&[vec![1]]).is_err());
    let mut plain = TopK { top_k: 1, renormalise: false, capacity_factor: None };
    plain.restore(&plain.state()).unwrap();
    assert!(plain.restore(&gate.state()).is_err());
}

#[test]
fn specs_that_do_not_fit_are_refused() {
    assert!(spec(GateKind::Switch, 2).build().is_err());
    assert!(spec(GateKind::TopK, 9).build().is_err());
    assert!(GateSpec { capacity_factor: f64::NAN, ..spec(GateKind::TopK, 2) }.build().is_err());
}
