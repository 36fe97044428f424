//! Rows of x rounded to int8 in the layout of an encoding, and joined eight at a time.

use super::layout::{Layout, QUAD, SETS, STRETCH};
use super::panel::{COLUMNS, Meeting};
use super::{meeting_at, of_sets};
use crate::model::kernels::linear::encoding::BLOCK;
use crate::model::kernels::linear::input::round_group;
use crate::model::kernels::linear::simd::sets::{load, transpose};
use std::arch::x86_64::*;

/// A layout as tables: where the eight columns at each place come from, and a column of each set.
struct Places {
    eights: [u8; STRETCH / 8],
    first: [i32; SETS],
}

/// Of every layout.
static PLACES: [Places; Layout::ALL.len()] = {
    let mut all =
        [const { Places { eights: [0; STRETCH / 8], first: [0; SETS] } }; Layout::ALL.len()];
    let mut i = 0;
    while i < all.len() {
        let (layout, mut at) = (Layout::ALL[i], 0);
        while at < STRETCH {
            let column = layout.column(at / 64, at % 64);
            let (set, _) = layout.set(at / 64, at % 64 / QUAD);
            if at % 8 == 0 {
                all[i].eights[at / 8] = column as u8;
            }
            all[i].first[set] = column as i32;
            at += 1;
        }
        i += 1;
    }
    all
};

/// What becomes of a row of x, as [`super::Rows`] has it.
pub(in super::super) struct Rounded<'a> {
    pub q: &'a mut [i8],
    pub d: &'a mut [f32],
    pub sums: &'a mut [f32],
    pub bias: &'a mut [i32],
}

/// Rounds a row by groups of `group` columns.
///
/// # Safety
/// The processor has AVX-512 with VNNI.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(in super::super) unsafe fn round(
    group: usize,
    bias: i32,
    layout: Layout,
    x: &[f32],
    out: Rounded<'_>,
) {
    let places = &PLACES[layout as usize];
    let ones = [_mm512_set1_epi8(1); 4];
    let (zero, bias) = (_mm512_setzero_si512(), _mm512_set1_epi32(-bias));
    let rows = out.q.as_chunks_mut::<STRETCH>().0.iter_mut().zip(x.chunks(STRETCH));
    let sets = out.d.as_chunks_mut::<SETS>().0.iter_mut();
    let sets = sets.zip(out.sums.as_chunks_mut::<SETS>().0);
    let sets = sets.zip(out.bias.as_chunks_mut::<SETS>().0);
    for ((q, x), ((d, sums), biases)) in rows.zip(sets) {
        let (mut rounded, mut scales) = ([0; STRETCH], [0.0; STRETCH / BLOCK]);
        for (g, (x, q)) in x.chunks(group).zip(rounded.chunks_mut(group)).enumerate() {
            scales[g] = round_group(x, q);
        }
        lay(layout, places, &rounded, q);
        // SAFETY: a stretch is there; the arrays have the vectors' sizes.
        unsafe {
            let counts = of_sets(layout, ones, q.as_ptr().cast(), zero);
            let first = _mm512_loadu_si512(places.first.as_ptr().cast());
            let groups = _mm512_srl_epi32(first, _mm_cvtsi32_si128(group.trailing_zeros() as i32));
            let scales = _mm512_castps256_ps512(_mm256_loadu_ps(scales.as_ptr()));
            let scales = _mm512_permutexvar_ps(groups, scales);
            _mm512_storeu_ps(d.as_mut_ptr(), scales);
            _mm512_storeu_ps(sums.as_mut_ptr(), _mm512_mul_ps(scales, _mm512_cvtepi32_ps(counts)));
            _mm512_storeu_si512(biases.as_mut_ptr().cast(), _mm512_mullo_epi32(counts, bias));
        }
    }
}

/// Puts the columns of a stretch in their places.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn lay(layout: Layout, places: &Places, x: &[i8; STRETCH], out: &mut [i8; STRETCH]) {
    for (out, from) in out.as_chunks_mut::<8>().0.iter_mut().zip(&places.eights) {
        let from = usize::from(*from);
        // Every other one of sixteen where low and high nibbles take turns, else eight neighbours.
        if layout == Layout::Pairs {
            for (out, x) in out.iter_mut().zip(x[from..].iter().step_by(2)) {
                *out = *x;
            }
        } else {
            out.copy_from_slice(&x[from..from + 8]);
        }
    }
}

/// Rows of a stretch, one in each vector; zeros for those beyond the last.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn turned(rows: usize, first: *const u8, stride: usize) -> [__m512i; 16] {
    let mut vectors = [_mm512_setzero_si512(); 16];
    for (n, vector) in vectors.iter_mut().enumerate().take(rows) {
        // SAFETY: the caller's.
        *vector = unsafe { load(first.wrapping_add(n * stride)) };
    }
    transpose(vectors)
}

/// Joins `n` rows, up to eight, of which `x` is the first.
///
/// # Safety
/// The processor has AVX-512 with VNNI, and the rows have as many stretches as `out` has of sets.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(in super::super) unsafe fn join(
    layout: Layout,
    n: usize,
    x: &super::Rows,
    out: &mut [Meeting],
) {
    let stretches = out.len() / SETS;
    for s in 0..stretches {
        let x = x.at(0, s);
        // SAFETY: the caller's; half a vector is eight rows' numbers.
        unsafe {
            for v in 0..4 {
                let quads = turned(n, x.q.cast::<u8>().wrapping_add(64 * v), x.q_stride);
                for (lane, quads) in quads.into_iter().enumerate() {
                    let (set, quad) = layout.set(v, lane);
                    store(&mut out[meeting_at(s, set, stretches)].q[quad], quads);
                }
            }
            let (d, sums) =
                (turned(n, x.d.cast(), 4 * x.d_stride), turned(n, x.sums.cast(), 4 * x.d_stride));
            let bias = turned(n, x.bias.cast(), 4 * x.d_stride);
            for set in 0..SETS {
                let meeting = &mut out[meeting_at(s, set, stretches)];
                store(&mut meeting.d, d[set]);
                store(&mut meeting.sums, sums[set]);
                store(&mut meeting.bias, bias[set]);
            }
        }
    }
}

/// The first eight lanes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn store<T>(out: &mut [T; COLUMNS], v: __m512i) {
    // SAFETY: eight numbers of 32 bits.
    unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), _mm512_castsi512_si256(v)) }
}
