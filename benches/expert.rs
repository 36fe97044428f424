//! What an expert costs: forward, backward and update of hidden 512, width 1024, in bf16, against
//! libtorch's own product of the same shape (in bf16 and in f32: the better one counts) in the same
//! run, and against a memory copy.
//!
//! Many experts take turns, so weights, states and gradients come from memory as in training.
//! Rounds alternate between the things compared and the best round of each counts, because
//! machines are noisy. Wanted: at least 0.70 of the product's rate.

use memmap2::MmapMut;
use semoe::model::compute::{has_bf16_products, in_effect};
use semoe::model::expert::{ExpertShape, ExpertView, Kernels, Precision, backward, forward};
use semoe::model::kernels::allocator::tune_allocator;
use semoe::model::kernels::parallel::Threads;
use semoe::model::kernels::reduce::sum_squares;
use semoe::model::optim::{AdamW, Optimizer, StepRate, Update};
use std::time::Instant;
use tch::{Device, Kind, Tensor};

const HIDDEN: usize = 512;
const WIDTH: usize = 1024;
const EXPERTS: usize = 32;
/// Experts that libtorch takes in a round of bf16 where the processor has no bf16 products: it
/// needs seconds for each there.
const FEW: usize = 2;
const ROUNDS: usize = 7;
const WANTED: f64 = 0.70;

/// One block a slot, of one part.
struct Slots {
    memory: MmapMut,
    bytes: usize,
}

impl Slots {
    fn new(bytes: u64) -> Self {
        let bytes = (bytes as usize).next_multiple_of(4096);
        let mut memory = MmapMut::map_anon(bytes * EXPERTS).expect("the slots fit in memory");
        #[cfg(target_os = "linux")]
        let _ = memory.advise(memmap2::Advice::HugePage);
        memory.fill(0);
        Self { memory, bytes }
    }

    fn get(&self, slot: usize) -> &[u8] {
        &self.memory[slot * self.bytes..(slot + 1) * self.bytes]
    }

    fn get_mut(&mut self, slot: usize) -> &mut [u8] {
        &mut self.memory[slot * self.bytes..(slot + 1) * self.bytes]
    }
}

struct Bench {
    shape: ExpertShape,
    weights: Slots,
    states: Slots,
    grads: Slots,
    x_nh: Tensor,
    g_nh: Tensor,
    w_n: Tensor,
}

impl Bench {
    fn new(rows: i64) -> Self {
        let shape = ExpertShape::new(HIDDEN, WIDTH, Precision::Bf16);
        let mut weights = Slots::new(shape.weights_bytes());
        let mut states = Slots::new(shape.state_bytes());
        let draw = Tensor::randn([shape.elements() as i64], (Kind::Float, Device::Cpu)) * 0.02;
        let master = Vec::<f32>::try_from(draw).expect("a flat tensor");
        for slot in 0..EXPERTS {
            let (weights, states) = (weights.get_mut(slot), states.get_mut(slot));
            shape.write_master(&master, weights, states).expect("the slots fit the shape");
        }
        let input = || {
            let x = Tensor::randn([rows, HIDDEN as i64], (Kind::Float, Device::Cpu));
            x.to_kind(Kind::BFloat16)
        };
        let (x_nh, g_nh) = (input(), input());
        let w_n = Tensor::rand([rows], (Kind::Float, Device::Cpu));
        let grads = Slots::new(shape.grad_bytes());
        Self { shape, weights, states, grads, x_nh, g_nh, w_n }
    }

    /// Seconds an expert for libtorch's product x_nh · W_gate_upᵀ over these experts' weights.
    fn product(&self, weights: &[Tensor]) -> f64 {
        let x_nh = self.x_nh.to_kind(weights[0].kind());
        seconds(weights.len(), || weights.iter().for_each(|w_fh| drop(x_nh.mm(&w_fh.tr()))))
    }

    /// Seconds an expert forward and backward.
    fn passes(&mut self, kernels: Kernels) -> (f64, f64) {
        let (shape, mut kept) = (self.shape, Vec::new());
        let experts = if kernels == Kernels::Libtorch { libtorch_experts() } else { EXPERTS };
        let (weights, grads) = (&self.weights, &mut self.grads);
        let view = |slot| {
            ExpertView::with_kernels(shape, weights.get(slot), kernels).expect("the slot fits")
        };
        let ahead = seconds(experts, || {
            kept = (0..experts)
                .map(|slot| forward(&view(slot), &self.x_nh, true).expect("it runs").1)
                .collect();
        });
        let back = seconds(experts, || {
            for (slot, kept) in kept.drain(..).enumerate() {
                let grad = shape.grad_mut(grads.get_mut(slot)).expect("the slot fits");
                let (x, g, w) = (&self.x_nh, &self.g_nh, &self.w_n);
                backward(&view(slot), x, kept, g, w, grad, true).expect("it runs");
            }
        });
        (ahead, back)
    }

    /// Seconds an expert for AdamW.
    fn update(&mut self, threads: Threads) -> f64 {
        let adamw = AdamW { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1 };
        let steps = [StepRate { step: 10, lr: 1e-9 }];
        seconds(EXPERTS, || {
            for slot in 0..EXPERTS {
                let grad = Some(self.shape.grad(self.grads.get(slot)).expect("the slot fits"));
                let update = Update { steps: &steps, grad, grad_scale: 1.0, decay: true, threads };
                let (weights, states) = (self.weights.get_mut(slot), self.states.get_mut(slot));
                let params = self.shape.params(weights, states).expect("the slots fit");
                adamw.update(&update, params).expect("it runs");
            }
        })
    }

    fn norm(&self) -> f64 {
        seconds(EXPERTS, || {
            for slot in 0..EXPERTS {
                let grad = self.shape.grad(self.grads.get(slot)).expect("the slot fits");
                sum_squares(grad, Threads::Pool).expect("it runs");
            }
        })
    }
}

fn seconds(experts: usize, run: impl FnOnce()) -> f64 {
    let start = Instant::now();
    run();
    start.elapsed().as_secs_f64() / experts as f64
}

fn libtorch_experts() -> usize {
    if has_bf16_products() { EXPERTS } else { FEW }
}

fn passes(rows: i64) {
    let mut bench = Bench::new(rows);
    let shape = [2 * WIDTH as i64, HIDDEN as i64];
    let wide: Vec<Tensor> =
        (0..EXPERTS).map(|_| Tensor::randn(shape, (Kind::Float, Device::Cpu))).collect();
    let narrow: Vec<Tensor> =
        wide[..libtorch_experts()].iter().map(|w_fh| w_fh.to_kind(Kind::BFloat16)).collect();
    let best = Kernels::best(&bench.shape);
    let mut fastest = [f64::MAX; 6];
    for _ in 0..ROUNDS {
        let (ahead, back) = bench.passes(best);
        let (plain_ahead, plain_back) = bench.passes(Kernels::Libtorch);
        let products = [bench.product(&narrow), bench.product(&wide)];
        let round = [products[0], products[1], ahead, back, plain_ahead, plain_back];
        fastest.iter_mut().zip(round).for_each(|(best, now)| *best = best.min(now));
    }
    let [narrow, wide, ahead, back, plain_ahead, plain_back] = fastest;
    let flop = 2.0 * rows as f64 * bench.shape.parameters() as f64;
    let rate = |flop: f64, seconds: f64| flop / seconds / 1e9;
    let [narrow, wide] = [narrow, wide].map(|seconds| rate(2.0 / 3.0 * flop, seconds));
    let one = narrow.max(wide);
    println!(
        "{rows} rows an expert; libtorch's product alone {narrow:.0} GFLOP/s in bf16, {wide:.0} in f32"
    );
    for (kernels, ahead, back) in
        [(best, ahead, back), (Kernels::Libtorch, plain_ahead, plain_back)]
    {
        let ratio = rate(3.0 * flop, ahead + back) / one;
        println!(
            "  {kernels:?}: forward {:.0} us, backward {:.0} us, {:.0} GFLOP/s, ratio {ratio:.2}",
            ahead * 1e6,
            back * 1e6,
            rate(3.0 * flop, ahead + back),
        );
    }
    let ratio = rate(3.0 * flop, ahead + back) / one;
    let verdict = if ratio >= WANTED { "reached" } else { "MISSED" };
    println!("  expert compute over one product: {ratio:.2}, wanted {WANTED:.2}: {verdict}");
}

fn updates() {
    let mut bench = Bench::new(1);
    let elements = bench.shape.elements() as f64;
    let bytes = bench.shape.grad_bytes() as i64 / 4;
    let pairs: Vec<[Tensor; 2]> = (0..EXPERTS)
        .map(|_| [0, 1].map(|_| Tensor::zeros([bytes], (Kind::Float, Device::Cpu))))
        .collect();
    let mut fastest = [f64::MAX; 4];
    for _ in 0..ROUNDS {
        let copy = seconds(EXPERTS, || {
            for [from, to] in &pairs {
                to.shallow_clone().f_copy_(from).expect("it runs");
            }
        });
        let round =
            [copy, bench.update(Threads::Pool), bench.update(Threads::Calling), bench.norm()];
        fastest.iter_mut().zip(round).for_each(|(best, now)| *best = best.min(now));
    }
    let [copy, pool, calling, norm] = fastest;
    let bandwidth = |bytes: f64, seconds: f64| bytes / seconds / 1e9;
    // A copy reads, and moves each line that it writes twice.
    let memory = bandwidth(12.0 * elements, copy);
    println!("memory copy {memory:.1} GB/s");
    for (name, seconds) in [("all threads", pool), ("one thread", calling)] {
        // Weights, master's rest, m and v in and out, the gradient in.
        let got = bandwidth(28.0 * elements, seconds);
        println!("  adamw, {name}: {got:.1} GB/s, ratio {:.2}", got / memory);
    }
    let got = bandwidth(4.0 * elements, norm);
    println!("  sum of squares: {got:.1} GB/s, ratio {:.2}", got / memory);
}

fn main() {
    tune_allocator().unwrap();
    let _guard = tch::no_grad_guard();
    println!("{}", in_effect(&ExpertShape::new(HIDDEN, WIDTH, Precision::Bf16)));
    for rows in [16, 64, 512] {
        passes(rows);
    }
    updates();
}
