//! Promise: once warm, products with encoded weights allocate nothing, on any thread, and the dense
//! part of decoded tokens few small pieces.

use semoe::model::config::ModelConfig;
use semoe::model::forward::{Forward, KvCache, KvType, Routes, Row};
use semoe::model::hf::Checkpoint;
use semoe::model::kernels::linear::{
    Activation, Activations, Encoding, ExpertWeights, GateUp, OwnedMatrix, Work, encode, expert,
    linear,
};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, Ordering};

/// The system's allocator, counting.
struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, p: *mut u8, layout: Layout) {
        // SAFETY: the caller's.
        unsafe { System.dealloc(p, layout) }
    }
    unsafe fn realloc(&self, p: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's.
        unsafe { System.realloc(p, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn matrix(encoding: Encoding, rows: usize, cols: usize) -> OwnedMatrix {
    let values: Vec<f32> = (0..rows * cols).map(|i| (i % 251) as f32 * 0.01 - 1.2).collect();
    encode(encoding, rows, cols, &values).unwrap().0
}

/// Allocations of one call over two sequences and three layers, at most: one was counted.
const A_CALL: u64 = 8;

/// One test, so that nothing else runs in this process while it counts.
#[test]
fn steady_products_allocate_nothing_and_tokens_little() {
    products();
    for family in ["olmoe", "qwen2_moe", "deepseek_v3", "gpt_oss"] {
        tokens(family);
    }
}

/// Tokens through the dense part of a fixture, two sequences at once.
fn tokens(family: &str) {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let dir = root.join("tests/fixtures/hf").join(family);
    let config = ModelConfig::from_hf(&dir).unwrap();
    let forward = Forward::load(&config, &Checkpoint::open(&dir).unwrap()).unwrap();
    let mut caches = [0, 1].map(|_| KvCache::new(&config, 100, KvType::Bf16));
    let mut work = Work::new(3, Activations::F32).unwrap();
    let mut routes = Routes::default();
    let (mut x, mut y) = (vec![0.0; 2 * config.hidden], vec![0.0; 2 * config.hidden]);
    let mut logits = Vec::new();
    let mut token = |position| {
        let rows = [0, 1].map(|sequence| Row { sequence, position });
        forward.embed(&[7, 8], &mut x).unwrap();
        for layer in 0..config.layers {
            forward.attention(layer, &mut x, &rows, &mut caches, &mut y, &mut work).unwrap();
            forward.route(layer, &y, &mut routes, &mut work).unwrap();
            forward.shared(layer, &y, &mut x, &mut work).unwrap();
            forward.guess(layer, &x, None, &mut routes, &mut work).unwrap();
        }
        forward.head(&x, &mut logits, &mut work).unwrap();
    };
    (0..10).for_each(&mut token);
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    (10..100).for_each(&mut token);
    let a_call = (ALLOCATIONS.load(Ordering::Relaxed) - before).div_ceil(90);
    println!("{family}: {a_call} allocations for a token of two sequences");
    assert!(a_call <= A_CALL, "{family}: {a_call}");
}

fn products() {
    let (hidden, width) = (256, 128);
    let mut work = Work::new(3, Activations::F32).unwrap();
    let encodings = [Encoding::F32, Encoding::Bf16, Encoding::Int8, Encoding::Int4 { group: 64 }];
    let experts: Vec<[OwnedMatrix; 3]> = (encodings.iter())
        .map(|&e| [matrix(e, width, hidden), matrix(e, width, hidden), matrix(e, hidden, width)])
        .collect();
    let x = vec![0.3; 20 * hidden];
    let mut out = vec![0.0; 20 * hidden];
    let mut wide = vec![0.0; 20 * width];
    let mut token = |work: &mut Work| {
        for [gate, up, down] in &experts {
            for n in [1, 4, 20] {
                let e = ExpertWeights {
                    gate_up: GateUp::Apart { gate: gate.view().into(), up: up.view().into() },
                    down: down.view().into(),
                    activation: Activation::SwiGlu,
                };
                expert(&e, &x[..n * hidden], &[0.5; 20][..n], &mut out[..n * hidden], work)
                    .unwrap();
                let (x, wide) = (&x[..n * hidden], &mut wide[..n * width]);
                linear(&gate.view(), x, wide, false, work).unwrap();
            }
        }
    };
    token(&mut work);
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    (0..20).for_each(|_| token(&mut work));
    // The harness's own threads wait meanwhile.
    assert_eq!(ALLOCATIONS.load(Ordering::Relaxed) - before, 0);
}
