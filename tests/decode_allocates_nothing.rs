//! Promise: once warm, products with encoded weights allocate nothing, on any thread.

use semoe::model::kernels::linear::{
    Activation, Encoding, ExpertWeights, GateUp, OwnedMatrix, Work, encode, expert, linear,
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

#[test]
fn steady_products_allocate_nothing() {
    let (hidden, width) = (256, 128);
    let mut work = Work::new(3).unwrap();
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
    // The harness's own threads wait meanwhile; one test runs in this process.
    assert_eq!(ALLOCATIONS.load(Ordering::Relaxed) - before, 0);
}
