//! The expert against autograd on a reference, in both precisions.

use super::*;
use crate::model::kernels::parallel::set_threads;
use crate::model::kernels::view::bytes_of;
use tch::no_grad;

struct Case {
    shape: ExpertShape,
    weights: Vec<f32>,
    state: Vec<f32>,
    x_nh: Tensor,
    g_nh: Tensor,
    w_n: Tensor,
}

fn case(hidden: usize, width: usize, rows: i64, precision: Precision) -> Case {
    tch::manual_seed(3);
    let shape = ExpertShape::new(hidden, width, precision);
    let f32s = |bytes: u64| vec![0f32; bytes.div_ceil(4) as usize];
    let (mut weights, mut state) = (f32s(shape.weights_bytes()), f32s(shape.state_bytes()));
    let mut master = vec![0f32; shape.elements()];
    let draw = Tensor::randn([shape.elements() as i64], (Kind::Float, Device::Cpu)) * 0.3;
    draw.f_copy_data(&mut master, shape.elements()).unwrap();
    let bytes = |x: &mut Vec<f32>| {
        let len = x.len() * 4;
        // SAFETY: the tests' slots are f32 vectors, so any byte pattern is a value of theirs, and
        // the slice covers exactly the vector.
        unsafe { std::slice::from_raw_parts_mut(x.as_mut_ptr().cast::<u8>(), len) }
    };
    shape.write_master(&master, bytes(&mut weights), bytes(&mut state)).unwrap();
    let options = (Kind::Float, Device::Cpu);
    let input = |_| Tensor::randn([rows, hidden as i64], options).to_kind(precision.kind());
    let (x_nh, g_nh) = (input(0), input(1));
    Case { shape, weights, state, x_nh, g_nh, w_n: Tensor::rand([rows], options) }
}

/// The same mathematics in f64 autograd: (o, dx, dw, dgate_up, ddown).
fn reference(c: &Case) -> [Tensor; 5] {
    let mut flat = vec![0f32; c.shape.elements()];
    c.shape.read_master(bytes_of(&c.weights), bytes_of(&c.state), &mut flat).unwrap();
    if c.shape.precision == Precision::Bf16 {
        flat.iter_mut().for_each(|x| *x = half::bf16::from_f32(*x).to_f32());
    }
    let (h, f) = (c.shape.hidden as i64, c.shape.width as i64);
    let leaf = |x: Tensor| x.to_kind(Kind::Double).set_requires_grad(true);
    let gate_up = leaf(Tensor::from_slice(&flat[c.shape.gate_up()]).view([2 * f, h]));
    let down = leaf(Tensor::from_slice(&flat[c.shape.down()]).view([h, f]));
    let (x, w) = (leaf(c.x_nh.copy()), leaf(c.w_n.copy()));
    let n2f = x.matmul(&gate_up.tr());
    let act = n2f.narrow(1, 0, f).silu() * n2f.narrow(1, f, f);
    let o = act.matmul(&down.tr());
    let loss = (&o * w.unsqueeze(1) * c.g_nh.to_kind(Kind::Double)).sum(Kind::Double);
    let grads = Tensor::run_backward(&[loss], &[&x, &w, &gate_up, &down], false, false);
    let [dx, dw, dgu, dd]: [Tensor; 4] = grads.try_into().unwrap();
    [o.detach(), dx, dw, dgu, dd]
}

fn worst(got: &Tensor, want: &Tensor) -> f64 {
    let error = (got.to_kind(Kind::Double).view_as(want) - want).abs().max().double_value(&[]);
    error / want.abs().max().double_value(&[])
}

/// Those that this machine has for the shape.
fn all_kernels(shape: &ExpertShape) -> Vec<Kernels> {
    let all = [Kernels::Libtorch, Kernels::Vector, Kernels::Amx, Kernels::Pairs];
    all.into_iter().filter(|kernels| kernels.fit(shape)).collect()
}

fn agrees(c: &Case, keep: bool, tolerance: f64) {
    for kernels in all_kernels(&c.shape) {
        agrees_on(c, kernels, keep, tolerance);
    }
}

fn agrees_on(c: &Case, kernels: Kernels, keep: bool, tolerance: f64) {
    let want = reference(c);
    let view = ExpertView::with_kernels(c.shape, bytes_of(&c.weights), kernels).unwrap();
    no_grad(|| {
        let (o, kept) = forward(&view, &c.x_nh, keep).unwrap();
        assert_eq!(kept.is_some(), keep);
        let mut grad = vec![f32::NAN; c.shape.elements()];
        let got = backward(&view, &c.x_nh, kept, &c.g_nh, &c.w_n, &mut grad, true).unwrap();
        let dgu = Tensor::from_slice(&grad[c.shape.gate_up()]);
        let dd = Tensor::from_slice(&grad[c.shape.down()]);
        for (got, want) in [&o, &got.dx_nh, &got.dw_n, &dgu, &dd].into_iter().zip(&want) {
            let error = worst(got, want);
            assert!(error < tolerance, "{kernels:?} {:?}: off by {error}", want.size());
        }
        let squares = want[3].square().sum(Kind::Double) + want[4].square().sum(Kind::Double);
        let error = got.sum_squares(&grad).unwrap() / squares.double_value(&[]) - 1.0;
        assert!(error.abs() < 2.0 * tolerance, "{kernels:?} sum of squares: off by {error}");
        assert!(grad.iter().all(|x| x.is_finite()), "padding is set");
        // A second micro-batch adds.
        let once = grad.clone();
        backward(&view, &c.x_nh, None, &c.g_nh, &c.w_n, &mut grad, false).unwrap();
        let twice: Vec<f32> = once.iter().map(|x| 2.0 * x).collect();
        let error =
            worst(&Tensor::from_slice(&grad), &Tensor::from_slice(&twice).to_kind(Kind::Double));
        assert!(error < 1e-6, "second micro-batch: off by {error}");
    });
}

#[test]
fn f32_agrees_with_autograd() {
    for (hidden, width, rows) in [(16, 24, 5), (32, 48, 17), (10, 6, 1), (64, 32, 40)] {
        agrees(&case(hidden, width, rows, Precision::F32), true, 2e-6);
        agrees(&case(hidden, width, rows, Precision::F32), false, 2e-6);
    }
}

#[test]
fn bf16_agrees_with_autograd_within_its_rounding() {
    for (hidden, width, rows) in [(64, 96, 5), (64, 128, 17), (96, 64, 1), (64, 64, 70), (10, 6, 3)]
    {
        agrees(&case(hidden, width, rows, Precision::Bf16), true, 2e-2);
        agrees(&case(hidden, width, rows, Precision::Bf16), false, 2e-2);
    }
}

/// Everything that a forward and a backward pass give, as bits.
fn all_bits(c: &Case, kernels: Kernels, keep: bool, threads: usize) -> Vec<u32> {
    set_threads(threads).unwrap();
    let view = ExpertView::with_kernels(c.shape, bytes_of(&c.weights), kernels).unwrap();
    let (o, kept) = forward(&view, &c.x_nh, keep).unwrap();
    let mut grad = vec![0f32; c.shape.elements()];
    let got = backward(&view, &c.x_nh, kept, &c.g_nh, &c.w_n, &mut grad, true).unwrap();
    backward(&view, &c.x_nh, None, &c.g_nh, &c.w_n, &mut grad, false).unwrap();
    set_threads(2).unwrap();
    let flat = |t: &Tensor| Vec::<f32>::try_from(t.to_kind(Kind::Float).view(-1)).unwrap();
    let squares = got.sum_squares(&grad).unwrap() as f32;
    let all = [flat(&o), flat(&got.dx_nh), flat(&got.dw_n), grad, vec![squares]];
    all.concat().iter().map(|x| x.to_bits()).collect()
}

/// Sizes that no block of the kernels divides, and every number of rows up to several tiles. Sums of
/// a few numbers may nearly cancel, hence the tolerance; an edge that is wrong is off by far more.
#[test]
fn vectors_agree_at_every_edge() {
    for (hidden, width) in [(1, 1), (7, 19), (33, 17), (48, 96), (300, 40), (40, 530)] {
        for rows in [1, 2, 3, 4, 5, 6, 7, 12, 17, 31, 70] {
            let c = case(hidden, width, rows, Precision::F32);
            agrees_on(&c, Kernels::Vector, rows % 2 == 0, 1e-4);
        }
    }
    for rows in 1..=70 {
        agrees_on(&case(18, 35, rows, Precision::Bf16), Kernels::Vector, rows % 2 == 0, 2e-2);
    }
}

/// Every number of rows up to several tiles, where part of a tile, of a column of tiles or of the
/// depth counts.
#[test]
fn tiles_agree_with_every_number_of_rows() {
    for rows in 1..=70 {
        let c = case(96, 64, rows, Precision::Bf16);
        for kernels in [Kernels::Amx, Kernels::Pairs] {
            if kernels.fit(&c.shape) {
                agrees_on(&c, kernels, rows % 2 == 0, 2e-2);
            }
        }
    }
    // Deeper than what the kernels take at once.
    let c = case(608, 320, 41, Precision::Bf16);
    agrees(&c, true, 2e-2);
}

#[test]
fn recomputing_gives_the_bits_of_keeping() {
    for precision in [Precision::F32, Precision::Bf16] {
        let c = case(64, 96, 37, precision);
        for kernels in all_kernels(&c.shape) {
            assert_eq!(all_bits(&c, kernels, true, 2), all_bits(&c, kernels, false, 2));
        }
    }
}

#[test]
fn our_own_kernels_do_not_depend_on_the_number_of_threads() {
    for (precision, hidden) in [(Precision::F32, 90), (Precision::Bf16, 96)] {
        let c = case(hidden, 160, 70, precision);
        for kernels in all_kernels(&c.shape) {
            if kernels == Kernels::Libtorch {
                continue;
            }
            let one = all_bits(&c, kernels, true, 1);
            assert_eq!(one, all_bits(&c, kernels, true, 2), "{kernels:?}");
            assert_eq!(one, all_bits(&c, kernels, true, 3), "{kernels:?}");
            assert_eq!(one, all_bits(&c, kernels, true, 2), "{kernels:?}, and come again");
        }
    }
}

/// What the vector kernels give a row depends on that row alone.
#[test]
fn a_row_of_the_vectors_does_not_depend_on_the_others() {
    for precision in [Precision::F32, Precision::Bf16] {
        let c = case(50, 70, 23, precision);
        let view =
            ExpertView::with_kernels(c.shape, bytes_of(&c.weights), Kernels::Vector).unwrap();
        let run = |start: i64, rows: i64| {
            let part = |x: &Tensor| x.narrow(0, start, rows).contiguous();
            let (x, g, w) = (part(&c.x_nh), part(&c.g_nh), part(&c.w_n));
            let (o, kept) = forward(&view, &x, true).unwrap();
            let mut grad = vec![0f32; c.shape.elements()];
            let got = backward(&view, &x, kept, &g, &w, &mut grad, true).unwrap();
            (o, got.dx_nh, got.dw_n)
        };
        let (o, dx, dw) = run(0, 23);
        for (start, rows) in [(0, 1), (5, 9), (22, 1), (3, 13)] {
            let (part_o, part_dx, part_dw) = run(start, rows);
            assert_eq!(part_o, o.narrow(0, start, rows));
            assert_eq!(part_dx, dx.narrow(0, start, rows));
            assert_eq!(part_dw, dw.narrow(0, start, rows));
        }
    }
}

#[test]
fn values_that_are_not_numbers_stay_in_their_row() {
    for precision in [Precision::F32, Precision::Bf16] {
        let c = case(34, 20, 15, precision);
        for kernels in all_kernels(&c.shape) {
            for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
                let x = c.x_nh.copy();
                let _ = x.narrow(0, 4, 1).narrow(1, 7, 1).fill_(bad);
                let view = ExpertView::with_kernels(c.shape, bytes_of(&c.weights), kernels);
                let (o, _) = forward(&view.unwrap(), &x, false).unwrap();
                let finite = o.isfinite().all_dim(1, false);
                for row in 0..15 {
                    let fine = finite.int64_value(&[row]) == 1;
                    assert_eq!(fine, row != 4, "{kernels:?}: row {row} with {bad}");
                }
            }
        }
    }
}

/// The smallest and largest values go through bf16 products as f32 carries them.
#[test]
fn extreme_values_come_through_the_vectors() {
    let shape = ExpertShape::new(3, 2, Precision::Bf16);
    let tiny = half::bf16::from_f32(1e-40);
    let mut weights = vec![0u16; shape.elements()];
    weights[shape.gate_up()].fill(half::bf16::from_f32(1.0).to_bits());
    weights[shape.down()].fill(half::bf16::from_f32(1.0).to_bits());
    let view = ExpertView::with_kernels(shape, bytes_of(&weights), Kernels::Vector).unwrap();
    let rows = [tiny.to_f32(), 1e19, -1e4].map(|x| [x, 0.0, 0.0]).concat();
    let x = Tensor::from_slice(&rows).view([3, 3]).to_kind(Kind::BFloat16);
    let (o, _) = forward(&view, &x, false).unwrap();
    let o = Vec::<f32>::try_from(o.to_kind(Kind::Float).view(-1)).unwrap();
    assert!(o[..3].iter().all(|x| x.abs() < 1e-37), "{o:?}");
    assert!(o[3..6].iter().all(|x| *x > 1e38), "{o:?}");
    assert!(o[6..].iter().all(|x| x.abs() < 1e-10), "{o:?}");
}

#[test]
fn an_expert_without_rows_has_a_zero_gradient() {
    for precision in [Precision::F32, Precision::Bf16] {
        let c = case(32, 32, 0, precision);
        for kernels in all_kernels(&c.shape) {
            let view = ExpertView::with_kernels(c.shape, bytes_of(&c.weights), kernels).unwrap();
            let (o, kept) = forward(&view, &c.x_nh, true).unwrap();
            assert_eq!(o.size(), [0, 32]);
            let mut grad = vec![f32::NAN; c.shape.elements()];
            let got = backward(&view, &c.x_nh, kept, &c.g_nh, &c.w_n, &mut grad, true).unwrap();
            assert_eq!((got.dx_nh.size(), got.sum_squares(&grad).unwrap()), (vec![0, 32], 0.0));
            assert!(grad.iter().all(|x| *x == 0.0));
        }
    }
}

#[test]
fn a_bad_value_shows_in_the_sum_of_squares() {
    for precision in [Precision::F32, Precision::Bf16] {
        let c = case(32, 32, 9, precision);
        let _ = c.g_nh.narrow(0, 4, 1).narrow(1, 7, 1).fill_(f64::NAN);
        for kernels in all_kernels(&c.shape) {
            let view = ExpertView::with_kernels(c.shape, bytes_of(&c.weights), kernels).unwrap();
            let mut grad = vec![0f32; c.shape.elements()];
            let got = backward(&view, &c.x_nh, None, &c.g_nh, &c.w_n, &mut grad, true).unwrap();
            assert!(!got.sum_squares(&grad).unwrap().is_finite());
        }
    }
}

#[test]
fn masters_come_back_from_their_blocks() {
    for precision in [Precision::F32, Precision::Bf16] {
        let c = case(10, 6, 1, precision);
        let mut flat = vec![0f32; c.shape.elements()];
        c.shape.read_master(bytes_of(&c.weights), bytes_of(&c.state), &mut flat).unwrap();
        tch::manual_seed(3);
        let draw = Tensor::randn([flat.len() as i64], (Kind::Float, Device::Cpu)) * 0.3;
        assert_eq!(Vec::<f32>::try_from(draw).unwrap(), flat);
    }
}

#[test]
fn layout_is_aligned_and_twelve_bytes_a_parameter() {
    for precision in [Precision::F32, Precision::Bf16] {
        let shape = ExpertShape::new(10, 6, precision);
        assert_eq!((shape.gate_up(), shape.down(), shape.elements()), (0..120, 128..188, 192));
        assert_eq!(shape.weights_bytes() + shape.state_bytes(), 12 * shape.elements() as u64);
        let state = shape.state();
        assert!([state.m.start, state.v.start].iter().all(|start| start % 64 == 0));
    }
}

#[test]
fn wrong_input_is_refused() {
    let c = case(16, 8, 3, Precision::F32);
    let view = ExpertView::new(c.shape, bytes_of(&c.weights)).unwrap();
    assert!(forward(&view, &c.x_nh.tr().contiguous(), false).is_err());
    assert!(forward(&view, &c.x_nh.to_kind(Kind::BFloat16), false).is_err());
    let mut short = vec![0f32; 3];
    assert!(backward(&view, &c.x_nh, None, &c.g_nh, &c.w_n, &mut short, true).is_err());
    assert!(ExpertView::new(c.shape, &bytes_of(&c.weights)[..64]).is_err());
}
