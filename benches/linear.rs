//! What encoded weights cost at the shape of OLMoE's experts (hidden 2048, width 1024), beside
//! what this machine reads from memory and what libtorch multiplies, in the same run.
//!
//! Decode: experts that together are far larger than the caches take turns, so weights come from
//! memory; bytes of weights a second against a plain read by the same threads. Wanted: 0.85.
//! Prefill: floating-point operations a second against libtorch's f32 product. Rounds alternate
//! between the things compared, and the median of each counts.
//!
//! `cargo bench --bench linear -- [ENCODING…]` takes some encodings only.

use memmap2::MmapMut;
use semoe::model::kernels::allocator::tune_allocator;
use semoe::model::kernels::linear::{
    Activation, Activations, AlignedBytes, Encoding, ExpertWeights, GateUp, Matrix, OwnedMatrix,
    Work, encode, expert, read,
};
use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;
use tch::{Device, Kind, Tensor};

const HIDDEN: usize = 2048;
const WIDTH: usize = 1024;
const FLOPS: f64 = (2 * 3 * HIDDEN * WIDTH) as f64;
/// Bytes of all experts of one encoding together, and of the plain read.
const BYTES: usize = 256 << 20;
const ROUNDS: usize = 9;
const WANTED: f64 = 0.85;

/// A seeded stream of numbers in [-1, 1).
struct Random(u64);

impl Random {
    fn bits(&mut self) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 32) as u32
    }
    fn numbers(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| (self.bits() >> 8) as f32 / (1 << 23) as f32 - 1.0).collect()
    }
}

/// A matrix of about the size of real weights: encoded where semoe writes the encoding, else
/// random bytes with sensible scales.
fn matrix(encoding: Encoding, rows: usize, cols: usize, random: &mut Random) -> OwnedMatrix {
    if matches!(encoding, Encoding::Int8 | Encoding::Int4 { .. }) || encoding.is_float() {
        let values: Vec<f32> = random.numbers(rows * cols).iter().map(|x| x * 0.02).collect();
        return encode(encoding, rows, cols, &values).expect("semoe writes it").0;
    }
    let mut data = AlignedBytes::zeroed(encoding.data_bytes(rows, cols).expect("a whole shape"));
    let mut scales = AlignedBytes::zeroed(encoding.scale_bytes(rows, cols));
    data.iter_mut().for_each(|b| *b = random.bits() as u8);
    let (block, places): (usize, &[usize]) = match encoding {
        Encoding::Q8_0 => (34, &[0]),
        Encoding::Q4_0 => (18, &[0]),
        Encoding::Q4K => (144, &[0, 2]),
        Encoding::Q6K => (210, &[208]),
        _ => (1, &[]),
    };
    for block in data.chunks_mut(block) {
        places.iter().for_each(|at| block[*at..at + 2].copy_from_slice(&[0x10, 0x0c]));
    }
    match encoding {
        Encoding::Fp8 => {
            data.iter_mut().filter(|b| **b & 0x7f == 0x7f).for_each(|b| *b ^= 1);
            scales.chunks_mut(4).for_each(|s| s.copy_from_slice(&0.0001f32.to_le_bytes()));
        }
        _ => scales.fill(120),
    }
    OwnedMatrix { encoding, rows, cols, transposed: false, data, scales }
}

/// Memory as slots of experts are: mapped, in huge pages where the system permits them.
fn memory(bytes: usize) -> MmapMut {
    let mut memory = MmapMut::map_anon(bytes).expect("it fits in memory");
    #[cfg(target_os = "linux")]
    let _ = memory.advise(memmap2::Advice::HugePage);
    memory.fill(1);
    memory
}

/// Experts of one encoding, each in a slot.
struct Experts {
    memory: MmapMut,
    slot: usize,
    parts: [OwnedMatrix; 3],
}

impl Experts {
    /// Far more than the caches hold.
    fn new(encoding: Encoding) -> Self {
        let mut random = Random(0x1234_5678_9abc_def1);
        let parts = [(WIDTH, HIDDEN), (WIDTH, HIDDEN), (HIDDEN, WIDTH)]
            .map(|(rows, cols)| matrix(encoding, rows, cols, &mut random));
        let slot = parts.iter().map(|part| places(part)[2]).sum::<usize>().next_multiple_of(4096);
        let mut memory = memory(slot * (BYTES / slot + 1));
        for slot in memory.chunks_exact_mut(slot) {
            let mut rest = slot;
            for part in &parts {
                let [data, scales, end] = places(part);
                let (place, behind) = rest.split_at_mut(end);
                place[..data].copy_from_slice(&part.data);
                place[scales..scales + part.scales.len()].copy_from_slice(&part.scales);
                rest = behind;
            }
        }
        Self { memory, slot, parts }
    }

    fn bytes(&self) -> u64 {
        self.parts.iter().map(OwnedMatrix::bytes).sum()
    }

    fn len(&self) -> usize {
        self.memory.len() / self.slot
    }

    fn weights(&self, index: usize) -> ExpertWeights<'_> {
        let mut rest = &self.memory[index * self.slot..][..self.slot];
        let mut next = |part: &OwnedMatrix| {
            let [data, scales, end] = places(part);
            let (place, behind) = rest.split_at(end);
            rest = behind;
            let scales = &place[scales..scales + part.scales.len()];
            Matrix { data: &place[..data], scales, ..part.view() }
        };
        let [gate, up, down] = self.parts.each_ref().map(&mut next);
        ExpertWeights {
            gate_up: GateUp::Apart { gate: gate.into(), up: up.into() },
            down: down.into(),
            activation: Activation::SwiGlu,
        }
    }
}

/// In the slot: where a part's data ends, where its scales begin, where it ends.
fn places(part: &OwnedMatrix) -> [usize; 3] {
    let scales = part.data.len().next_multiple_of(64);
    [part.data.len(), scales, (scales + part.scales.len()).next_multiple_of(64)]
}

fn seconds(work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().as_secs_f64()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn pass(
    (experts, of): (&Experts, usize),
    x: &[f32],
    weights: &[f32],
    out: &mut [f32],
    work: &mut Work,
) {
    for index in 0..of {
        expert(&experts.weights(index), x, weights, out, work).expect("the shapes fit");
    }
}

/// How long it takes until every thread is at work and done again: a task ends when all have begun.
fn region(work: &mut Work) {
    let threads = work.threads();
    let mut times = Vec::new();
    for _ in 0..20_000 {
        let begun = AtomicU64::new(0);
        let meet = |_, _| {
            begun.fetch_add(1, Ordering::AcqRel);
            while begun.load(Ordering::Acquire) < threads as u64 {
                std::hint::spin_loop();
            }
        };
        times.push(seconds(|| work.pool().run(threads, &meet).expect("no panic")));
    }
    println!("a region that all {threads} threads enter: {:.2} µs (median)", median(times) * 1e6);
}

fn decode(encoding: Encoding, buffer: &[u8], work: &mut Work) {
    let experts = Experts::new(encoding);
    let bytes = experts.bytes() * experts.len() as u64;
    print!("{:>10}", encoding.name());
    for rows in [1, 2, 4, 8] {
        let x = Random(77).numbers(rows * HIDDEN);
        let (weights, mut out) = (vec![0.5; rows], vec![0.0; rows * HIDDEN]);
        let (mut reads, mut passes) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            reads.push(seconds(|| {
                black_box(read(buffer, work).expect("it runs"));
            }));
            passes.push(seconds(|| pass((&experts, experts.len()), &x, &weights, &mut out, work)));
        }
        let plain = buffer.len() as f64 / median(reads) / 1e9;
        let time = median(passes);
        let rate = bytes as f64 / time / 1e9;
        let micros = time / experts.len() as f64 * 1e6;
        let mark = if rows > 1 || rate / plain >= WANTED { ' ' } else { '!' };
        print!(" | {rows}: {rate:5.1} GB/s {:.2}{mark} {micros:6.1} µs", rate / plain);
    }
    println!();
}

fn prefill(encoding: Encoding, work: &mut Work) {
    let experts = Experts::new(encoding);
    let of = experts.len().min(3);
    print!("{:>10}", encoding.name());
    for rows in [64, 128, 512] {
        let x = Random(78).numbers(rows * HIDDEN);
        let (weights, mut out) = (vec![0.5; rows], vec![0.0; rows * HIDDEN]);
        let x_t = Tensor::randn([rows as i64, HIDDEN as i64], (Kind::Float, Device::Cpu));
        let w_t = Tensor::randn([3 * WIDTH as i64, HIDDEN as i64], (Kind::Float, Device::Cpu));
        let (mut torch, mut ours) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            ours.push(seconds(|| pass((&experts, of), &x, &weights, &mut out, work)));
            torch.push(seconds(|| drop(x_t.mm(&w_t.tr()))));
        }
        let rate = |time: f64| FLOPS * rows as f64 / time / 1e9;
        let ours = rate(median(ours) / of as f64);
        let torch = rate(median(torch));
        print!(" | {rows}: {ours:5.0} GFLOP/s {:.2} of {torch:.0}", ours / torch);
    }
    println!();
}

fn main() {
    tune_allocator().unwrap();
    let threads = std::thread::available_parallelism().map_or(2, |n| n.get().min(2));
    tch::set_num_threads(threads as i32);
    let mut work = Work::new(threads, Activations::best()).expect("threads start");
    let wanted: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let chosen = |e: &Encoding| wanted.is_empty() || wanted.iter().any(|w| w == e.name());
    let chosen: Vec<Encoding> = Encoding::ALL.into_iter().filter(chosen).collect();
    let buffer = memory(BYTES);
    region(&mut work);
    println!(
        "an expert of {threads} threads, weights from memory: rows: rate, share of a plain read"
    );
    chosen.iter().for_each(|e| decode(*e, &buffer, &mut work));
    println!("an expert of many rows: rate, share of libtorch's f32 product");
    chosen.iter().for_each(|e| prefill(*e, &mut work));
}
