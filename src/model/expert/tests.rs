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

fn agrees(c: &Case, keep: bool, tolerance: f64) {
    agrees_on(c, Kernels::Libtorch, keep, tolerance);
    let best = Kernels::best(&c.shape);
    if best != Kernels::Libtorch {
        agrees_on(c, best, keep, tolerance);
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

#[test]
fn recomputing_gives_the_bits_of_keeping() {
    for precision in [Precision::F32, Precision::Bf16] {
        let c = case(64, 96, 37, precision);
        let kernels = Kernels::best(&c.shape);
        assert_eq!(all_bits(&c, kernels, true, 2), all_bits(&c, kernels, false, 2));
    }
}

#[test]
fn tiles_do_not_depend_on_the_number_of_threads() {
    let c = case(96, 160, 70, Precision::Bf16);
    if Kernels::best(&c.shape) == Kernels::Tiles {
        let one = all_bits(&c, Kernels::Tiles, true, 1);
        assert_eq!(one, all_bits(&c, Kernels::Tiles, true, 2));
        assert_eq!(one, all_bits(&c, Kernels::Tiles, true, 2), "and come again");
    }
}

#[test]
fn an_expert_without_rows_has_a_zero_gradient() {
    for precision in [Precision::F32, Precision::Bf16] {
        let c = case(32, 32, 0, precision);
        let view = ExpertView::new(c.shape, bytes_of(&c.weights)).unwrap();
        let (o, kept) = forward(&view, &c.x_nh, true).unwrap();
        assert_eq!(o.size(), [0, 32]);
        let mut grad = vec![f32::NAN; c.shape.elements()];
        let got = backward(&view, &c.x_nh, kept, &c.g_nh, &c.w_n, &mut grad, true).unwrap();
        assert_eq!((got.dx_nh.size(), got.sum_squares(&grad).unwrap()), (vec![0, 32], 0.0));
        assert!(grad.iter().all(|x| *x == 0.0));
    }
}

#[test]
fn a_bad_value_shows_in_the_sum_of_squares() {
    for precision in [Precision::F32, Precision::Bf16] {
        let c = case(32, 32, 9, precision);
        let view = ExpertView::new(c.shape, bytes_of(&c.weights)).unwrap();
        let _ = c.g_nh.narrow(0, 4, 1).narrow(1, 7, 1).fill_(f64::NAN);
        let mut grad = vec![0f32; c.shape.elements()];
        let got = backward(&view, &c.x_nh, None, &c.g_nh, &c.w_n, &mut grad, true).unwrap();
        assert!(!got.sum_squares(&grad).unwrap().is_finite());
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
