//! Experts meet another number of rows with nearly every call: what computes them must not keep
//! something for each.

use semoe::model::expert::{ExpertShape, ExpertView, Precision, backward, forward};
use semoe::model::kernels::allocator::tune_allocator;
use tch::{Device, Kind, Tensor};

const HIDDEN: usize = 64;
const WIDTH: usize = 128;
/// Numbers of rows; the first of them are for what is kept once.
const ROWS: std::ops::Range<i64> = 1..640;
const FIRST: i64 = 40;
/// More than allocations at chance moments come to, far less than kernels for each number of rows.
const MOST: u64 = 24 << 20;

fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

#[test]
fn a_new_number_of_rows_leaves_nothing_behind() {
    tune_allocator().unwrap();
    tch::set_num_threads(2);
    let shape = ExpertShape::new(HIDDEN, WIDTH, Precision::Bf16);
    let (mut weights, mut states, mut grads) = (
        vec![0u8; shape.weights_bytes() as usize],
        vec![0u8; shape.state_bytes() as usize],
        vec![0u8; shape.grad_bytes() as usize],
    );
    let draw = Tensor::randn([shape.elements() as i64], (Kind::Float, Device::Cpu)) * 0.02;
    let master = Vec::<f32>::try_from(draw).unwrap();
    shape.write_master(&master, &mut weights, &mut states).unwrap();
    let mut early = 0;
    for rows in ROWS {
        let input = || {
            let x = Tensor::randn([rows, HIDDEN as i64], (Kind::Float, Device::Cpu));
            x.to_kind(Kind::BFloat16)
        };
        let (x_nh, g_nh) = (input(), input());
        let w_n = Tensor::rand([rows], (Kind::Float, Device::Cpu));
        let view = ExpertView::new(shape, &weights).unwrap();
        let kept = forward(&view, &x_nh, true).unwrap().1;
        let grad = shape.grad_mut(&mut grads).unwrap();
        backward(&view, &x_nh, kept, &g_nh, &w_n, grad, true).unwrap();
        if rows == FIRST {
            early = resident();
        }
    }
    let grown = resident().saturating_sub(early);
    assert!(grown < MOST, "{} MiB were kept", grown >> 20);
}
