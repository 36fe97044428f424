//! Experts against f64, in every layout.

use super::*;
use crate::model::kernels::linear::{
    Activation, ExpertWeights, GateUp, Projection, Routed, Vector, can_group, expert, expert_at,
    experts_of_row, experts_of_rows, linear,
};

const CLAMPED: Activation = Activation::ClampedSwiGlu { limit: 7.0, alpha: 1.702 };

/// What a test's expert is made of: gate, up [F, H], down [H, F], and biases in bf16.
struct Parts {
    gate: OwnedMatrix,
    up: OwnedMatrix,
    down: OwnedMatrix,
    biases: [Vec<u8>; 3],
}

fn parts(encoding: Encoding, hidden: usize, width: usize, numbers: &mut Random) -> Parts {
    let bias = |n: usize, numbers: &mut Random| {
        let bias = encode(Encoding::Bf16, 1, n, &numbers.numbers(n)).unwrap().0;
        bias.data.to_vec()
    };
    Parts {
        gate: random(encoding, width, hidden, numbers),
        up: random(encoding, width, hidden, numbers),
        down: random(encoding, hidden, width, numbers),
        biases: [bias(width, numbers), bias(width, numbers), bias(hidden, numbers)],
    }
}

fn vector(data: &[u8]) -> Option<Vector<'_>> {
    Some(Vector { encoding: Encoding::Bf16, data })
}

fn apart(parts: &Parts, activation: Activation, biased: bool) -> ExpertWeights<'_> {
    let [gate, up, down] = [&parts.gate, &parts.up, &parts.down].map(OwnedMatrix::view);
    let bias = |i: usize| vector(&parts.biases[i]).filter(|_| biased);
    ExpertWeights {
        gate_up: GateUp::Apart {
            gate: Projection { matrix: gate, bias: bias(0) },
            up: Projection { matrix: up, bias: bias(1) },
        },
        down: Projection { matrix: down, bias: bias(2) },
        activation,
    }
}

fn floats_of(bias: &[u8]) -> Vec<f64> {
    let bits = bias.as_chunks::<2>().0.iter().map(|b| u16::from_le_bytes(*b));
    bits.map(|b| f64::from(f32::from_bits(u32::from(b) << 16))).collect()
}

fn activated(activation: Activation, gate: f64, up: f64) -> f64 {
    match activation {
        Activation::SwiGlu => gate / (1.0 + (-gate).exp()) * up,
        Activation::ClampedSwiGlu { limit, alpha } => {
            let (limit, alpha) = (f64::from(limit), f64::from(alpha));
            let (gate, up) = (gate.min(limit), up.clamp(-limit, limit));
            (up + 1.0) * gate / (1.0 + (-alpha * gate).exp())
        }
    }
}

/// The expert's outputs in f64; activations are rounded where the encoding says so.
fn in_f64(
    parts: &Parts,
    activation: Activation,
    biased: bool,
    level: Level,
    x: &[f32],
) -> Vec<f64> {
    let (hidden, width) = (parts.down.rows, parts.down.cols);
    let encoding = parts.gate.encoding;
    let x = seen(encoding, level, x, hidden);
    let add = |sums: Vec<f64>, bias: &[u8]| -> Vec<f64> {
        let bias = floats_of(bias);
        sums.iter()
            .enumerate()
            .map(|(i, s)| s + if biased { bias[i % bias.len()] } else { 0.0 })
            .collect()
    };
    let gate = add(product(&parts.gate.view(), &x).0, &parts.biases[0]);
    let up = add(product(&parts.up.view(), &x).0, &parts.biases[1]);
    let act: Vec<f32> =
        gate.iter().zip(&up).map(|(g, u)| activated(activation, *g, *u) as f32).collect();
    add(product(&parts.down.view(), &seen(encoding, level, &act, width)).0, &parts.biases[2])
}

fn run(e: &ExpertWeights<'_>, x: &[f32], weights: &[f32], work: &mut Work) -> Vec<f32> {
    let mut out = vec![0.5; x.len()];
    expert(e, x, weights, &mut out, work).unwrap();
    out
}

/// ‖got − want‖ / ‖want‖.
fn distance(got: &[f32], want: &[f64]) -> f64 {
    let error: f64 = got.iter().zip(want).map(|(g, w)| (f64::from(*g) - w).powi(2)).sum();
    (error / want.iter().map(|w| w * w).sum::<f64>()).sqrt()
}

#[test]
fn an_expert_is_its_formula_in_f64() {
    let mut numbers = Random::new(11);
    for level in levels() {
        let mut work = work(2, level);
        for encoding in Encoding::ALL {
            let (hidden, width) = (512, 256);
            let parts = parts(encoding, hidden, width, &mut numbers);
            for (activation, biased) in [(Activation::SwiGlu, false), (CLAMPED, true)] {
                for n in [1, 3, 11] {
                    let (x, weights) = (numbers.numbers(n * hidden), numbers.numbers(n));
                    let want = in_f64(&parts, activation, biased, level, &x);
                    let want: Vec<f64> = (want.iter().enumerate())
                        .map(|(i, y)| 0.5 + f64::from(weights[i / hidden]) * y)
                        .collect();
                    let got = run(&apart(&parts, activation, biased), &x, &weights, &mut work);
                    // An activation on the border of two rounded values may fall to either side.
                    let rounded = Form::of(encoding, hidden, level) != Form::Blocks;
                    let bound = if rounded { 2e-3 } else { 1e-5 };
                    let distance = distance(&got, &want);
                    assert!(distance < bound, "{level:?} {encoding:?} {n}: {distance}");
                }
            }
        }
    }
}

#[test]
fn experts_of_a_row_give_the_bits_of_each_alone() {
    let mut numbers = Random::new(15);
    let (hidden, width) = (512, 320);
    for level in levels() {
        let mut work = work(2, level);
        for encoding in Encoding::ALL.into_iter().filter(|e| width % e.block() == 0) {
            // The last has another encoding than the others, which then cannot be taken together.
            for mixed in [false, true] {
                let mut all: Vec<Parts> =
                    (0..9).map(|_| parts(encoding, hidden, width, &mut numbers)).collect();
                if mixed {
                    all.push(parts(Encoding::F16, hidden, width, &mut numbers));
                }
                let biased = |i: usize| i % 2 == 1;
                let experts: Vec<_> =
                    (0..all.len()).map(|i| apart(&all[i], CLAMPED, biased(i))).collect();
                let (x, weights) = (numbers.numbers(hidden), numbers.numbers(all.len() + 1));
                let places: Vec<usize> =
                    (0..all.len()).map(|i| (i * 7 + 3) % (all.len() + 1)).collect();
                let mut out = vec![f32::NAN; weights.len() * hidden];
                experts_of_row(&experts, &x, &weights, &places, &mut out, &mut work).unwrap();
                for (e, &place) in experts.iter().zip(&places) {
                    let mut want = vec![0.0; hidden];
                    expert(e, &x, &weights[place..=place], &mut want, &mut work).unwrap();
                    let got = &out[place * hidden..][..hidden];
                    assert_eq!(bits(got), bits(&want), "{level:?} {encoding:?} {mixed}");
                }
            }
        }
    }
    let (mut work, one) = (work(1, level()), parts(Encoding::F32, 8, 8, &mut numbers));
    let mut out = [0.0; 8];
    let e = [apart(&one, CLAMPED, false)];
    assert!(experts_of_row(&e, &[0.0; 8], &[1.0], &[1], &mut out, &mut work).is_err());
    let twice = [e[0], e[0]];
    assert!(experts_of_row(&twice, &[0.0; 8], &[1.0], &[0, 0], &mut out, &mut work).is_err());
}

#[test]
fn grouped_experts_give_the_bits_of_each_alone() {
    let (rows, top_k, hidden) = (40, 3, 200);
    let mut numbers = Random::new(17);
    let mut work = work(3, level());
    // Widths that end within a vector, and within a task.
    for width in [48, 72, 600] {
        let all: Vec<Parts> =
            (0..6).map(|_| parts(Encoding::Bf16, hidden, width, &mut numbers)).collect();
        let (x, weights) = (numbers.numbers(rows * hidden), numbers.numbers(rows * top_k));
        // Most of the rows choose the first three, one the last.
        let chosen = |place: u32| match (place / top_k as u32, place % top_k as u32) {
            (7, 0) => 5,
            (row, k) if row % 9 == 0 => 3 + k as usize % 2,
            (_, k) => k as usize,
        };
        let places = |e: usize| -> Vec<u32> {
            (0..(rows * top_k) as u32).filter(|place| chosen(*place) == e).collect()
        };
        let places: Vec<Vec<u32>> = (0..all.len()).map(places).collect();
        assert!(places[5].len() == 1 && places[3].len() == 10, "few rows, and more");
        // Gate and up of all together: stacked, and in turn.
        let join = |e: &Parts, pieces: [usize; 2]| {
            let join = |a: &[u8], b: &[u8], piece: usize| -> Vec<u8> {
                a.chunks(piece).zip(b.chunks(piece)).flat_map(|(a, b)| [a, b].concat()).collect()
            };
            let bias = join(&e.biases[0], &e.biases[1], pieces[1]);
            (join(&e.gate.data, &e.up.data, pieces[0]), bias)
        };
        let [stacked, in_turn] = [[2 * width * hidden, 2 * width], [2 * hidden, 2]]
            .map(|pieces| all.iter().map(|e| join(e, pieces)).collect::<Vec<_>>());
        let layouts = [None, Some((&stacked, false)), Some((&in_turn, true))];
        for (biased, layout) in [false, true].iter().flat_map(|b| layouts.map(|l| (*b, l))) {
            let expert_of = |i: usize| {
                let e = apart(&all[i], CLAMPED, biased);
                let Some((fused, in_turn)) = layout else { return e };
                let (data, bias) = &fused[i];
                let matrix = Matrix::new(Encoding::Bf16, 2 * width, hidden, data).unwrap();
                let p = Projection { matrix, bias: vector(bias).filter(|_| biased) };
                let gate_up = if in_turn { GateUp::Interleaved(p) } else { GateUp::Stacked(p) };
                ExpertWeights { gate_up, ..e }
            };
            let experts: Vec<_> = (0..all.len()).map(expert_of).collect();
            let routed: Vec<_> = (experts.iter().zip(&places))
                .map(|(weights, places)| Routed { weights: *weights, places })
                .collect();
            let mut out = vec![f32::NAN; rows * top_k * hidden];
            let pairs = Form::of(Encoding::Bf16, hidden, level()) == Form::Pairs;
            assert_eq!(can_group(&routed, &work), pairs);
            if !pairs {
                let done = experts_of_rows(&routed, &x, top_k, &weights, &mut out, &mut work);
                assert!(done.is_err());
                return;
            }
            experts_of_rows(&routed, &x, top_k, &weights, &mut out, &mut work).unwrap();
            let mut want = vec![f32::NAN; out.len()];
            for Routed { weights: e, places } in &routed {
                let x: Vec<f32> = (places.iter())
                    .flat_map(|place| &x[*place as usize / top_k * hidden..][..hidden])
                    .copied()
                    .collect();
                let weights: Vec<f32> =
                    places.iter().map(|place| weights[*place as usize]).collect();
                expert_at(e, &x, &weights, places, &mut want, &mut work).unwrap();
            }
            assert_eq!(bits(&out), bits(&want), "width {width}, biased {biased}");
            let twice = [routed[5], routed[5]];
            let error = experts_of_rows(&twice, &x, top_k, &weights, &mut out, &mut work);
            assert!(error.is_err(), "a place has one expert");
            let short = &x[hidden..];
            let error = experts_of_rows(&routed, short, top_k, &weights, &mut out, &mut work);
            assert!(error.is_err());
        }
    }
}

#[test]
fn outputs_past_the_caches_are_those_of_an_expert_in_their_places() {
    // So many that they are written past the caches, in rows that begin on a line and within one.
    let (rows, top_k, hidden, width) = (40, 3, 8744, 16);
    let mut numbers = Random::new(19);
    let mut work = work(3, level());
    let parts = parts(Encoding::Bf16, hidden, width, &mut numbers);
    let e = apart(&parts, CLAMPED, true);
    let (x, weights) = (numbers.numbers(rows * hidden), numbers.numbers(rows * top_k));
    let places: Vec<u32> = (0..rows as u32).map(|t| 3 * t + t % 3).collect();
    let weight_n: Vec<f32> = places.iter().map(|place| weights[*place as usize]).collect();
    let mut alone = vec![0.0; x.len()];
    expert(&e, &x, &weight_n, &mut alone, &mut work).unwrap();
    let mut want = vec![f32::NAN; rows * top_k * hidden];
    for (place, y) in places.iter().zip(alone.chunks(hidden)) {
        want[*place as usize * hidden..][..hidden].copy_from_slice(y);
    }
    let mut out = vec![f32::NAN; want.len()];
    expert_at(&e, &x, &weight_n, &places, &mut out, &mut work).unwrap();
    assert_eq!(bits(&out), bits(&want));
    let routed = [Routed { weights: e, places: &places }];
    if can_group(&routed, &work) {
        out.fill(f32::NAN);
        experts_of_rows(&routed, &x, top_k, &weights, &mut out, &mut work).unwrap();
        assert_eq!(bits(&out), bits(&want));
    }
}

#[test]
fn fused_layouts_give_the_bits_of_separate_matrices() {
    let mut numbers = Random::new(12);
    let mut work = work(2, level());
    for encoding in Encoding::ALL {
        let (hidden, width) = (256, 256);
        let parts = parts(encoding, hidden, width, &mut numbers);
        let row = parts.gate.data.len() / width;
        // FP8's tiles of scales join only where tiles end.
        let scale_row = if encoding == Encoding::Fp8 { width } else { 1 };
        let scale = parts.gate.scales.len() * scale_row / width;
        let join = |a: &[u8], b: &[u8], piece: usize| -> Vec<u8> {
            if piece == 0 {
                return Vec::new();
            }
            a.chunks(piece).zip(b.chunks(piece)).flat_map(|(a, b)| [a, b].concat()).collect()
        };
        for biased in [false, true] {
            let (x, weights) = (numbers.numbers(2 * hidden), numbers.numbers(2));
            let e = apart(&parts, CLAMPED, biased);
            let want = run(&e, &x, &weights, &mut work);
            for interleaved in [false, true] {
                if interleaved && encoding == Encoding::Fp8 {
                    continue;
                }
                let piece = |whole: usize, part: usize| if interleaved { part } else { whole };
                let data =
                    join(&parts.gate.data, &parts.up.data, piece(parts.gate.data.len(), row));
                let scales = join(
                    &parts.gate.scales,
                    &parts.up.scales,
                    piece(parts.gate.scales.len(), scale),
                );
                let bias = join(&parts.biases[0], &parts.biases[1], piece(2 * width, 2));
                let matrix =
                    Matrix::with_scales(encoding, 2 * width, hidden, &data, &scales).unwrap();
                let p = Projection { matrix, bias: vector(&bias).filter(|_| biased) };
                let gate_up = if interleaved { GateUp::Interleaved(p) } else { GateUp::Stacked(p) };
                let got = run(&ExpertWeights { gate_up, ..e }, &x, &weights, &mut work);
                assert_eq!(bits(&got), bits(&want), "{encoding:?} interleaved {interleaved}");
            }
        }
    }
}

#[test]
fn transposed_fused_experts_are_read_as_they_lie() {
    let mut numbers = Random::new(13);
    let mut work = work(2, level());
    let (hidden, width) = (96, 80);
    let gate_up = random(Encoding::Bf16, hidden, 2 * width, &mut numbers);
    let down = random(Encoding::Bf16, width, hidden, &mut numbers);
    let e = ExpertWeights {
        gate_up: GateUp::Interleaved(
            Matrix::transposed(Encoding::Bf16, 2 * width, hidden, &gate_up.data).unwrap().into(),
        ),
        down: Matrix::transposed(Encoding::Bf16, hidden, width, &down.data).unwrap().into(),
        activation: CLAMPED,
    };
    // The same elements, rows of gate and up taken out.
    let fused =
        decoded(&Matrix::transposed(Encoding::Bf16, 2 * width, hidden, &gate_up.data).unwrap());
    let pick = |odd: usize| -> Vec<f32> {
        fused.chunks(hidden).skip(odd).step_by(2).flatten().copied().collect()
    };
    let [gate, up] = [0, 1].map(|odd| OwnedMatrix::from_f32(width, hidden, &pick(odd)).unwrap());
    let down = decoded(&Matrix::transposed(Encoding::Bf16, hidden, width, &down.data).unwrap());
    let down = OwnedMatrix::from_f32(hidden, width, &down).unwrap();
    let parts = Parts { gate, up, down, biases: [vec![0, 0], vec![0, 0], vec![0, 0]] };
    for n in [1, 10] {
        let (x, weights) = (numbers.numbers(n * hidden), vec![1.0; n]);
        let want = in_f64(&parts, CLAMPED, false, level(), &x);
        let want: Vec<f64> = want.iter().map(|y| 0.5 + y).collect();
        let got = run(&e, &x, &weights, &mut work);
        assert!(distance(&got, &want) < 1e-5);
    }
}

#[test]
fn an_experts_row_does_not_depend_on_its_company() {
    let mut numbers = Random::new(14);
    for encoding in Encoding::ALL {
        let (hidden, width) = (512, 256);
        let parts = parts(encoding, hidden, width, &mut numbers);
        let e = apart(&parts, Activation::SwiGlu, true);
        let (x, weights) = (numbers.numbers(13 * hidden), numbers.numbers(13));
        let together = run(&e, &x, &weights, &mut work(3, level()));
        let mut alone = work(1, level());
        for n in 0..13 {
            let got = run(&e, &x[n * hidden..(n + 1) * hidden], &weights[n..=n], &mut alone);
            assert_eq!(bits(&got), bits(&together[n * hidden..(n + 1) * hidden]), "{encoding:?}");
        }
    }
}

#[test]
fn gate_and_up_may_be_encoded_differently() {
    let mut numbers = Random::new(15);
    let mut work = work(2, level());
    let mut parts = parts(Encoding::Q4K, 512, 256, &mut numbers);
    parts.up = random(Encoding::Bf16, 256, 512, &mut numbers);
    let e = apart(&parts, Activation::SwiGlu, false);
    let x = numbers.numbers(512);
    let (mut gate, mut up) = (vec![0.0; 256], vec![0.0; 256]);
    linear(&parts.gate.view(), &x, &mut gate, false, &mut work).unwrap();
    linear(&parts.up.view(), &x, &mut up, false, &mut work).unwrap();
    let act: Vec<f32> = gate.iter().zip(&up).map(|(g, u)| Activation::SwiGlu.of(*g, *u)).collect();
    let mut y = vec![0.0; 512];
    linear(&parts.down.view(), &act, &mut y, false, &mut work).unwrap();
    let want: Vec<f32> = y.iter().map(|y| 0.5 + 2.0 * y).collect();
    assert_eq!(bits(&run(&e, &x, &[2.0], &mut work)), bits(&want));
}

#[test]
fn matrices_that_do_not_fit_together_are_refused() {
    let mut numbers = Random::new(16);
    let parts = parts(Encoding::F32, 32, 16, &mut numbers);
    let mut work = work(1, level());
    let e = apart(&parts, Activation::SwiGlu, true);
    let mut out = vec![0.0; 32];
    assert!(expert(&e, &[0.0; 32], &[1.0], &mut out, &mut work).is_ok());
    assert!(expert(&e, &[0.0; 31], &[1.0], &mut out, &mut work).is_err());
    assert!(expert(&e, &[0.0; 32], &[1.0, 1.0], &mut out, &mut work).is_err());
    let GateUp::Apart { gate, up } = e.gate_up else { panic!("built apart") };
    let short = Projection { bias: vector(&parts.biases[0][2..]), ..gate };
    let e2 = ExpertWeights { gate_up: GateUp::Apart { gate: short, up }, ..e };
    assert!(expert(&e2, &[0.0; 32], &[1.0], &mut out, &mut work).is_err());
    let e3 = ExpertWeights { gate_up: GateUp::Stacked(gate), ..e };
    assert!(expert(&e3, &[0.0; 32], &[1.0], &mut out, &mut work).is_err());
}
