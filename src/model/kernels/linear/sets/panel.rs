//! Many rows of x: sixteen rows of W are unpacked once, so that each lane has a row of its own and
//! sums need no gathering.

#![expect(clippy::needless_range_loop, reason = "an index names the same lane of several arrays")]

use super::codes::Codes;
use super::layout::{QUADS, SETS, STRETCH};
use super::{Call, K_BLOCK, Place, Tail, row_scale};
use crate::model::kernels::linear::simd::sets::{ORDER, load, transpose};
use std::arch::x86_64::*;
use std::mem::MaybeUninit;

/// Rows of W in a panel.
const ROWS: usize = 16;
/// Rows of x that meet it together.
pub(in super::super) const COLUMNS: usize = 8;
/// Stretches of a block.
const STRETCHES: usize = K_BLOCK / STRETCH;
/// Levels of the tree that adds a row's sixteen sums.
const LEVELS: usize = 5;

/// What eight rows of x hold of a set: see [`super::Rows`].
#[derive(Clone, Default)]
#[repr(C, align(32))]
pub(in super::super) struct Meeting {
    pub q: [[i32; COLUMNS]; QUADS],
    pub bias: [i32; COLUMNS],
    pub d: [f32; COLUMNS],
    pub sums: [f32; COLUMNS],
}

/// Sixteen rows of a block of W, set by set, and each set stretch by stretch, as they are added.
#[repr(C, align(64))]
struct Panel {
    codes: [[[[u8; 64]; QUADS]; STRETCHES]; SETS],
    scales: [[[f32; ROWS]; STRETCHES]; SETS],
    zeros: [[[f32; ROWS]; STRETCHES]; SETS],
}

/// See [`super::run`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) unsafe fn run<W: Codes>(call: &Call) {
    let mut panel = MaybeUninit::<Panel>::uninit();
    let panel = panel.as_mut_ptr();
    for m in (call.from..call.to).step_by(ROWS) {
        let mut first = 0;
        while first * STRETCH < call.k {
            let end = (first + STRETCHES).min(call.k.div_ceil(STRETCH));
            // SAFETY: the caller's; what is multiplied was filled.
            unsafe {
                fill::<W>(call, m, first, end, panel);
                let mut c = 0;
                while c < call.n {
                    match call.n - c {
                        1 => columns::<W, 1>(call, m, c, first, end, panel),
                        2 => columns::<W, 2>(call, m, c, first, end, panel),
                        3 => columns::<W, 3>(call, m, c, first, end, panel),
                        4 => columns::<W, 4>(call, m, c, first, end, panel),
                        5 => columns::<W, 5>(call, m, c, first, end, panel),
                        6 => columns::<W, 6>(call, m, c, first, end, panel),
                        7 => columns::<W, 7>(call, m, c, first, end, panel),
                        _ => columns::<W, COLUMNS>(call, m, c, first, end, panel),
                    }
                    c += COLUMNS;
                }
            }
            first = end;
        }
    }
}

/// Unpacks stretches `first..end` of the rows from `m` on; after the last row, it again.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn fill<W: Codes>(call: &Call, m: usize, first: usize, end: usize, panel: *mut Panel) {
    let whole = call.k / STRETCH;
    for s in first..end {
        // SAFETY: the caller's; a stretch that ends early is copied beside zeros.
        unsafe {
            if s < whole {
                let mut places = [Place::of::<W>(call, m, s); ROWS];
                for (r, place) in places.iter_mut().enumerate() {
                    *place = Place::of::<W>(call, (m + r).min(call.to - 1), s);
                }
                stretch::<W>(&places, s - first, panel);
            } else {
                let tails: [Tail; ROWS] =
                    std::array::from_fn(|r| Tail::new::<W>(call, (m + r).min(call.to - 1), s));
                stretch::<W>(&tails.each_ref().map(Tail::place), s - first, panel);
            }
        }
    }
}

/// Unpacks one stretch, the `s`-th of the panel.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn stretch<W: Codes>(places: &[Place; ROWS], s: usize, panel: *mut Panel) {
    // SAFETY: the caller's; addresses are computed, nothing unfilled is read.
    unsafe {
        let mut codes = [[_mm512_setzero_si512(); ROWS]; 4];
        for r in 0..ROWS {
            let row = W::codes(places[r].w);
            for v in 0..4 {
                codes[v][r] = row[v];
            }
        }
        for v in 0..4 {
            let columns = transpose(codes[v]);
            for lane in 0..16 {
                let (set, quad) = W::LAYOUT.set(v, lane);
                let at = &raw mut (*panel).codes[set][s][quad];
                _mm512_store_si512(at.cast(), columns[lane]);
            }
        }
        let mut numbers = [_mm512_setzero_ps(); ROWS];
        for r in 0..ROWS {
            numbers[r] = W::scales(places[r].w, places[r].aux);
        }
        turn(numbers, s, &raw mut (*panel).scales);
        if W::ZERO {
            for r in 0..ROWS {
                numbers[r] = W::zeros(places[r].w, places[r].second);
            }
            turn(numbers, s, &raw mut (*panel).zeros);
        }
    }
}

/// Puts what sixteen rows have for their sets where the sets have it for their rows.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn turn(rows: [__m512; ROWS], s: usize, out: *mut [[[f32; ROWS]; STRETCHES]; SETS]) {
    let mut bits = [_mm512_setzero_si512(); ROWS];
    for r in 0..ROWS {
        bits[r] = _mm512_castps_si512(rows[r]);
    }
    let sets = transpose(bits);
    for set in 0..SETS {
        // SAFETY: the caller's: there is a place for each set of stretch `s`.
        unsafe { _mm512_store_si512((&raw mut (*out)[set][s]).cast(), sets[set]) }
    }
}

/// The panel times C rows of x from `c` on.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn columns<W: Codes, const C: usize>(
    call: &Call,
    m: usize,
    c: usize,
    first: usize,
    end: usize,
    panel: *const Panel,
) {
    // Sums that wait for their neighbours in the tree, one a level.
    let mut waiting = [[_mm512_setzero_ps(); C]; LEVELS];
    let sets = call.k.div_ceil(STRETCH) * SETS;
    let x = call.x.eights.wrapping_add(c / COLUMNS * sets + first * SETS);
    for (i, set) in ORDER.into_iter().enumerate() {
        // SAFETY: the caller's.
        let mut sums = unsafe { one_set::<W, C>(x, set, end - first, panel) };
        let level = (i + 1).trailing_zeros() as usize;
        for below in waiting.iter().take(level) {
            for j in 0..C {
                sums[j] = _mm512_add_ps(below[j], sums[j]);
            }
        }
        waiting[level.min(LEVELS - 1)] = sums;
    }
    let rows = (call.to - m).min(ROWS);
    let mask = ((1u32 << rows) - 1) as u16;
    // SAFETY: the caller's: masked places are not touched.
    unsafe {
        for j in 0..C {
            let mut value = waiting[LEVELS - 1][j];
            if W::ROW_SCALE {
                let mut scales = [0.0; ROWS];
                for r in 0..rows {
                    scales[r] = row_scale::<W>(call, m + r);
                }
                value = _mm512_mul_ps(value, _mm512_loadu_ps(scales.as_ptr()));
            }
            let out = call.out.add((c + j) * call.out_stride + m);
            if first > 0 || call.add {
                value = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, out), value);
            }
            _mm512_mask_storeu_ps(out, mask, value);
        }
    }
}

/// Sums of sixteen rows of W with C rows of x, over set `set`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn one_set<W: Codes, const C: usize>(
    x: *const Meeting,
    set: usize,
    stretches: usize,
    panel: *const Panel,
) -> [__m512; C] {
    let mut acc = [_mm512_setzero_ps(); C];
    // SAFETY: the caller's: these stretches were filled.
    unsafe {
        for s in 0..stretches {
            let x = &*x.add(set * stretches + s);
            let mut sums = [_mm512_setzero_si512(); C];
            for j in 0..C {
                sums[j] = _mm512_set1_epi32(x.bias[j]);
            }
            for quad in 0..QUADS {
                let codes = load((&raw const (*panel).codes[set][s][quad]).cast());
                for j in 0..C {
                    let q = _mm512_set1_epi32(x.q[quad][j]);
                    sums[j] = _mm512_dpbusd_epi32(sums[j], codes, q);
                }
            }
            let scales = _mm512_load_ps((&raw const (*panel).scales[set][s]).cast());
            for j in 0..C {
                let scale = _mm512_mul_ps(scales, _mm512_set1_ps(x.d[j]));
                acc[j] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[j]), scale, acc[j]);
            }
            if W::ZERO {
                let zeros = _mm512_load_ps((&raw const (*panel).zeros[set][s]).cast());
                for j in 0..C {
                    acc[j] = _mm512_fmadd_ps(zeros, _mm512_set1_ps(x.sums[j]), acc[j]);
                }
            }
        }
    }
    acc
}
