//! Products with weights that are small integers, where the processor has AVX-512 with VNNI: x is
//! rounded to int8 by groups; within a set of sixteen columns integers are multiplied and summed
//! exactly; each set's sum is scaled in f32.
//!
//! One order of sums for every N. Columns are cut into blocks of [`K_BLOCK`]; within a block an output
//! has sixteen sums, the i-th of them over set i of each stretch of 256 columns ([`Layout`]), in order;
//! they are added in a tree; blocks are added in order. Few rows of x multiply the codes as they are
//! unpacked, a set in each lane (this file); many rows multiply a panel in which each lane has a row of
//! W ([`panel`]).

#![expect(clippy::needless_range_loop, reason = "an index names the same lane of several arrays")]

mod codes;
mod layout;
mod panel;
mod rounding;

use super::encoding::Encoding;
use super::simd::sets::{fold, gather, load, sum};
use codes::{Codes, Int4By, Int8, Mxfp4, Q4_0, Q4K, Q6K, Q8_0};
pub(super) use layout::Layout;
use layout::{SETS, STRETCH};
pub(super) use panel::{COLUMNS, Meeting};
pub(super) use rounding::{Rounded, join, round};
use std::arch::x86_64::*;
use std::sync::OnceLock;

/// Columns of a block: sixteen rows of codes are 32 KiB.
const K_BLOCK: usize = 2048;
/// Bytes ahead of the weights in use that are asked for.
const AHEAD: usize = 4096;

/// A range of the rows of W, times all rows of x. Pointers as the checked matrix has them.
pub(super) struct Call {
    pub w: *const u8,
    pub row_bytes: usize,
    /// What lies apart: for each row `aux_stride` bytes, and where in them the second array begins.
    pub aux: *const u8,
    pub aux_stride: usize,
    pub aux_second: usize,
    /// f32 scale of each row, or null.
    pub row_scales: *const u8,
    pub x: Rows,
    pub n: usize,
    pub k: usize,
    pub from: usize,
    pub to: usize,
    /// Element (n, m) is at `out + n · out_stride + m`.
    pub out: *mut f32,
    pub out_stride: usize,
    pub add: bool,
}

/// Rows of rounded activations (see [`super::input::Input`]): int8 in W's layout, and for each set the
/// scale, −bias · Σ q and scale · Σ q.
#[derive(Clone, Copy)]
pub(super) struct Rows {
    pub q: *const i8,
    pub d: *const f32,
    pub bias: *const i32,
    pub sums: *const f32,
    pub q_stride: usize,
    pub d_stride: usize,
    /// From [`many`] rows on: the same, for eight rows together [⌈N/8⌉, K/16].
    pub eights: *const Meeting,
}

// SAFETY: the rows are only read through it, whichever thread does.
unsafe impl Sync for Rows {}

impl Rows {
    /// Row `c`, from stretch `s` on.
    #[inline(always)]
    pub fn at(&self, c: usize, s: usize) -> Self {
        let sets = c * self.d_stride + s * SETS;
        Self {
            q: self.q.wrapping_add(c * self.q_stride + s * STRETCH),
            d: self.d.wrapping_add(sets),
            bias: self.bias.wrapping_add(sets),
            sums: self.sums.wrapping_add(sets),
            ..*self
        }
    }
}

/// Runs `call` for an encoding of integers.
///
/// # Safety
/// The processor has AVX-512 with VNNI, the pointers hold what the sizes say, and nobody else writes
/// these outputs.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) unsafe fn run(encoding: Encoding, call: &Call) {
    // SAFETY: the caller's.
    unsafe {
        match encoding {
            Encoding::Q8_0 => rows::<Q8_0>(call),
            Encoding::Q4_0 => rows::<Q4_0>(call),
            Encoding::Q4K => rows::<Q4K>(call),
            Encoding::Q6K => rows::<Q6K>(call),
            Encoding::Mxfp4 => rows::<Mxfp4>(call),
            Encoding::Int4 { group: 32 } => rows::<Int4By<8>>(call),
            Encoding::Int4 { group: 64 } => rows::<Int4By<4>>(call),
            Encoding::Int4 { .. } => rows::<Int4By<2>>(call),
            _ => rows::<Int8>(call),
        }
    }
}

/// Where set `set` of stretch `s` lies for eight rows together: set by set within each block, as a panel
/// takes them. Of a row with `stretches` stretches.
#[inline(always)]
fn meeting_at(s: usize, set: usize, stretches: usize) -> usize {
    const BLOCK: usize = K_BLOCK / STRETCH;
    let first = s / BLOCK * BLOCK;
    first * SETS + set * (stretches - first).min(BLOCK) + s - first
}

/// From this many rows of x on a panel pays: sooner where unpacking, or adding up, takes long.
pub(super) const fn many(layout: Layout) -> usize {
    match layout {
        Layout::Halves => 96,
        Layout::Nibbles => 24,
        Layout::Plain => 8,
        Layout::SplitNibbles | Layout::Blocks | Layout::Pairs => 12,
    }
}

/// How activations must lie for an encoding.
pub(super) fn layout(encoding: Encoding) -> Layout {
    match encoding {
        Encoding::Q4_0 => Q4_0::LAYOUT,
        Encoding::Q4K => Q4K::LAYOUT,
        Encoding::Mxfp4 => Mxfp4::LAYOUT,
        Encoding::Int4 { group: 32 } => Int4By::<8>::LAYOUT,
        Encoding::Int4 { .. } => Int4By::<2>::LAYOUT,
        Encoding::Int8 => Int8::LAYOUT,
        _ => Layout::Plain,
    }
}

/// What a bias must be that makes codes of an encoding signed numbers (see [`codes`]).
pub(super) fn bias(encoding: Encoding) -> i32 {
    match encoding {
        Encoding::Q8_0 | Encoding::Int8 => 128,
        Encoding::Q6K => 32,
        Encoding::Mxfp4 => 12,
        Encoding::Q4_0 => 8,
        _ => 0,
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn rows<W: Codes>(call: &Call) {
    // SAFETY: the caller's.
    unsafe {
        match call.n >= many(W::LAYOUT) {
            true => panel::run::<W>(call),
            false if bypasses() => few::<W, true>(call),
            false => few::<W, false>(call),
        }
    }
}

/// Whether weights, which are used once, are best asked for past the outer caches. Not on Intel: there the
/// few buffers of the first-level cache wait for memory then, and half of its rate is lost.
fn bypasses() -> bool {
    static BYPASSES: OnceLock<bool> = OnceLock::new();
    *BYPASSES.get_or_init(|| {
        let leaf = __cpuid(0);
        let vendor = [leaf.ebx, leaf.edx, leaf.ecx].map(u32::to_le_bytes);
        vendor.as_flattened() != b"GenuineIntel"
    })
}

/// Asks for the line at `p`, which need not exist.
#[inline(always)]
fn prefetch<const BYPASS: bool>(p: *const u8) {
    // SAFETY: every processor of this architecture has it, and it never faults.
    unsafe {
        match BYPASS {
            true => _mm_prefetch::<_MM_HINT_NTA>(p.cast()),
            false => _mm_prefetch::<_MM_HINT_T1>(p.cast()),
        }
    }
}

/// Two rows of W at a time, from the two halves of the range, so that memory is read in two long
/// streams.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn few<W: Codes, const BYPASS: bool>(call: &Call) {
    let half = (call.to - call.from) / 2;
    for at in (0..AHEAD).step_by(64) {
        for m in [call.from, call.from + half] {
            prefetch::<BYPASS>(call.w.wrapping_add(m * call.row_bytes + at));
        }
    }
    for m in call.from..call.from + half {
        // SAFETY: the caller's.
        unsafe { columns::<W, 2, BYPASS>(call, [m, m + half]) }
    }
    for m in call.from + 2 * half..call.to {
        // SAFETY: the caller's.
        unsafe { columns::<W, 1, BYPASS>(call, [m]) }
    }
}

/// R rows of W times all rows of x, four at a time.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn columns<W: Codes, const R: usize, const BYPASS: bool>(call: &Call, rows: [usize; R]) {
    for c in (0..call.n).step_by(4) {
        // SAFETY: the caller's.
        unsafe {
            match call.n - c {
                1 => outputs::<W, R, 1, BYPASS>(call, rows, c),
                2 => outputs::<W, R, 2, BYPASS>(call, rows, c),
                3 => outputs::<W, R, 3, BYPASS>(call, rows, c),
                _ => outputs::<W, R, 4, BYPASS>(call, rows, c),
            }
        }
    }
}

/// A stretch of one row of W: where its bytes and what lies apart begin.
#[derive(Clone, Copy)]
struct Place {
    w: *const u8,
    aux: *const u8,
    second: *const u8,
}

impl Place {
    #[inline(always)]
    fn of<W: Codes>(call: &Call, m: usize, s: usize) -> Self {
        let aux = call.aux.wrapping_add(m * call.aux_stride + s * W::AUX);
        Self {
            w: call.w.wrapping_add(m * call.row_bytes + s * W::BYTES),
            aux,
            second: aux.wrapping_add(call.aux_second),
        }
    }
}

/// The last columns of a row, fewer than a stretch, beside zeros.
struct Tail {
    w: [u8; 320],
    aux: [u8; 16],
    second: [u8; 16],
}

impl Tail {
    /// Stretch `s` of row `m`, the last.
    ///
    /// # Safety
    /// The row is there.
    unsafe fn new<W: Codes>(call: &Call, m: usize, s: usize) -> Self {
        let mut tail = Self { w: [0; 320], aux: [0; 16], second: [0; 16] };
        let place = Place::of::<W>(call, m, s);
        // SAFETY: no more is copied than the row has left, and a stretch has no more than fits.
        unsafe {
            let left = call.row_bytes - s * W::BYTES;
            place.w.copy_to_nonoverlapping(tail.w.as_mut_ptr(), left);
            if W::AUX > 0 {
                let array = if call.aux_second > 0 { call.aux_second } else { call.aux_stride };
                let left = array - s * W::AUX;
                place.aux.copy_to_nonoverlapping(tail.aux.as_mut_ptr(), left);
                if call.aux_second > 0 {
                    place.second.copy_to_nonoverlapping(tail.second.as_mut_ptr(), left);
                }
            }
        }
        tail
    }

    fn place(&self) -> Place {
        Place { w: self.w.as_ptr(), aux: self.aux.as_ptr(), second: self.second.as_ptr() }
    }
}

/// R rows of W times C rows of x from `c` on.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn outputs<W: Codes, const R: usize, const C: usize, const BYPASS: bool>(
    call: &Call,
    rows: [usize; R],
    c: usize,
) {
    let x = call.x.at(c, 0);
    let whole = call.k / STRETCH;
    let mut first = 0;
    while first * STRETCH < call.k {
        let end = (first + K_BLOCK / STRETCH).min(call.k.div_ceil(STRETCH));
        let mut acc = [[_mm512_setzero_ps(); C]; R];
        // SAFETY: the caller's; a stretch that ends early is copied beside zeros.
        unsafe {
            for s in first..end.min(whole) {
                for r in 0..R {
                    let place = Place::of::<W>(call, rows[r], s);
                    let mut ahead = AHEAD;
                    while ahead < AHEAD + W::BYTES {
                        prefetch::<BYPASS>(place.w.wrapping_add(ahead));
                        ahead += 64;
                    }
                    step::<W, C>(place, &x, s, &mut acc[r]);
                }
            }
            if end > whole {
                for r in 0..R {
                    let tail = Tail::new::<W>(call, rows[r], whole);
                    step::<W, C>(tail.place(), &x, whole, &mut acc[r]);
                }
            }
            for r in 0..R {
                let scale = row_scale::<W>(call, rows[r]);
                for j in 0..C {
                    let mut value = sum(acc[r][j]);
                    if W::ROW_SCALE {
                        value *= scale;
                    }
                    let out = call.out.add((c + j) * call.out_stride + rows[r]);
                    *out = if first == 0 && !call.add { value } else { *out + value };
                }
            }
        }
        first = end;
    }
}

#[inline(always)]
unsafe fn row_scale<W: Codes>(call: &Call, m: usize) -> f32 {
    if !W::ROW_SCALE {
        return 1.0;
    }
    // SAFETY: the caller's: each row has one.
    unsafe { call.row_scales.add(m * 4).cast::<f32>().read_unaligned() }
}

/// Adds stretch `s` of a row of W for C rows of x.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn step<W: Codes, const C: usize>(place: Place, x: &Rows, s: usize, acc: &mut [__m512; C]) {
    // SAFETY: the caller's.
    unsafe {
        let codes = W::codes(place.w);
        let scales = W::scales(place.w, place.aux);
        let zeros = W::zeros(place.w, place.second);
        for c in 0..C {
            let x = x.at(c, s);
            let bias = _mm512_loadu_si512(x.bias.cast());
            let sums = _mm512_cvtepi32_ps(of_sets(W::LAYOUT, codes, x.q.cast(), bias));
            let scale = _mm512_mul_ps(scales, _mm512_loadu_ps(x.d));
            acc[c] = _mm512_fmadd_ps(sums, scale, acc[c]);
            if W::ZERO {
                acc[c] = _mm512_fmadd_ps(zeros, _mm512_loadu_ps(x.sums), acc[c]);
            }
        }
    }
}

/// Sums of the sets, from `bias` on.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn of_sets(layout: Layout, codes: [__m512i; 4], q: *const u8, bias: __m512i) -> __m512i {
    let zero = _mm512_setzero_si512();
    // SAFETY: the caller's: a stretch of x is there.
    let q = unsafe { [load(q), load(q.add(64)), load(q.add(128)), load(q.add(192))] };
    match layout {
        Layout::Plain => {
            let mut products = [zero; 4];
            for v in 0..4 {
                products[v] = _mm512_dpbusd_epi32(zero, codes[v], q[v]);
            }
            _mm512_add_epi32(gather(products), bias)
        }
        Layout::SplitNibbles => {
            let low = _mm512_dpbusd_epi32(zero, codes[0], q[0]);
            let high = _mm512_dpbusd_epi32(zero, codes[1], q[1]);
            let low = _mm512_dpbusd_epi32(low, codes[2], q[2]);
            let high = _mm512_dpbusd_epi32(high, codes[3], q[3]);
            _mm512_add_epi32(fold(low, high), bias)
        }
        _ => {
            let a = _mm512_dpbusd_epi32(bias, codes[0], q[0]);
            let b = _mm512_dpbusd_epi32(zero, codes[1], q[1]);
            let a = _mm512_dpbusd_epi32(a, codes[2], q[2]);
            let b = _mm512_dpbusd_epi32(b, codes[3], q[3]);
            _mm512_add_epi32(a, b)
        }
    }
}
