//! Products with weights that are small integers: x is rounded to int8 by groups, integers are
//! multiplied and summed exactly, and each group's sum is scaled in f32.
//!
//! One order of sums for every N: a row is walked in stretches of 256 columns; an output has two
//! accumulators of eight lanes for scaled sums (groups of 64 take turns; of groups of 32 a lane has each
//! eighth one) and one for what weights' offsets add; at the row's end they are joined and the lanes are
//! added in a tree.

use super::blocks::{Blocks, Int4By, Int8, Mxfp4, Q4_0, Q4K, Q6K, Q8_0};
use super::encoding::{Encoding, SUPER};
use super::simd::{Bytes, Level, for_level};

/// Bytes ahead of the weights in use that are asked for.
const AHEAD: usize = 2048;
/// Rows of W that pass before the next rows of x: they stay in the second-level cache.
const PANEL: usize = 16;

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
    pub x: Columns,
    pub n: usize,
    pub k: usize,
    pub from: usize,
    pub to: usize,
    /// Element (n, m) is at `out + n · out_stride + m`.
    pub out: *mut f32,
    pub out_stride: usize,
    pub add: bool,
}

/// Rows of rounded activations (see [`super::input::Input`]).
#[derive(Clone, Copy)]
pub(super) struct Columns {
    pub q: *const i8,
    pub d: *const f32,
    pub sums: *const f32,
    pub sums16: *const i16,
    pub q_stride: usize,
    pub d_stride: usize,
}

impl Columns {
    /// From row `c` on.
    #[inline(always)]
    pub fn at(&self, c: usize) -> Self {
        Self {
            q: self.q.wrapping_add(c * self.q_stride),
            d: self.d.wrapping_add(c * self.d_stride),
            sums: self.sums.wrapping_add(c * self.d_stride),
            sums16: self.sums16.wrapping_add(c * self.q_stride / 16),
            ..*self
        }
    }
    /// int8 of row `c` from column `k` on.
    #[inline(always)]
    pub fn q(&self, c: usize, k: usize) -> *const u8 {
        self.q.wrapping_add(c * self.q_stride + k).cast()
    }
    /// Scales of row `c` from group `g` on.
    #[inline(always)]
    pub fn d(&self, c: usize, g: usize) -> *const f32 {
        self.d.wrapping_add(c * self.d_stride + g)
    }
    /// scale · Σ q of row `c` from group `g` on.
    #[inline(always)]
    pub fn sums(&self, c: usize, g: usize) -> *const f32 {
        self.sums.wrapping_add(c * self.d_stride + g)
    }
    /// Σ q of 16 columns of row `c` from column `k` on.
    #[inline(always)]
    pub fn sums16(&self, c: usize, k: usize) -> *const u8 {
        self.sums16.wrapping_add((c * self.q_stride + k) / 16).cast()
    }
}

/// The accumulators of C outputs of one row of W.
pub(super) struct Sums<S: Bytes, const C: usize> {
    pub scaled: [[S::F; 2]; C],
    pub offset: [S::F; C],
}

for_level! {
    unsafe fn q8_0(call: &Call) = Bytes rows<Q8_0>;
    unsafe fn q4_0(call: &Call) = Bytes rows<Q4_0>;
    unsafe fn q4k(call: &Call) = Bytes rows<Q4K>;
    unsafe fn q6k(call: &Call) = Bytes rows<Q6K>;
    unsafe fn mxfp4(call: &Call) = Bytes rows<Mxfp4>;
    unsafe fn int8(call: &Call) = Bytes rows<Int8>;
    unsafe fn int4_32(call: &Call) = Bytes rows<Int4By<32>>;
    unsafe fn int4_64(call: &Call) = Bytes rows<Int4By<64>>;
    unsafe fn int4_128(call: &Call) = Bytes rows<Int4By<128>>;
}

/// Runs `call` for an encoding of integers.
///
/// # Safety
/// The pointers hold what the sizes say, and nobody else writes these outputs.
pub(super) unsafe fn run(level: Level, encoding: Encoding, call: &Call) {
    // SAFETY: the caller's.
    unsafe {
        match encoding {
            Encoding::Q8_0 => q8_0(level, call),
            Encoding::Q4_0 => q4_0(level, call),
            Encoding::Q4K => q4k(level, call),
            Encoding::Q6K => q6k(level, call),
            Encoding::Mxfp4 => mxfp4(level, call),
            Encoding::Int4 { group: 32 } => int4_32(level, call),
            Encoding::Int4 { group: 64 } => int4_64(level, call),
            Encoding::Int4 { .. } => int4_128(level, call),
            _ => int8(level, call),
        }
    }
}

#[inline(always)]
unsafe fn rows<S: Bytes, B: Blocks>(call: &Call) {
    if call.n == 1 {
        // SAFETY: as below.
        return unsafe { streams::<S, B>(call) };
    }
    let mut from = call.from;
    while from < call.to {
        let to = (from + PANEL).min(call.to);
        let mut c = 0;
        while c < call.n {
            let together = match (call.n - c).min(B::TOGETHER) {
                4..8 => 4,
                n => n,
            };
            for m in from..to {
                // SAFETY: the caller's: rows from..to of W and c.. of x exist.
                unsafe {
                    match together {
                        1 => outputs::<S, B, 1, 1>(call, [m], c),
                        2 => outputs::<S, B, 1, 2>(call, [m], c),
                        3 => outputs::<S, B, 1, 3>(call, [m], c),
                        4 => outputs::<S, B, 1, 4>(call, [m], c),
                        _ => outputs::<S, B, 1, 8>(call, [m], c),
                    }
                }
            }
            c += together;
        }
        from = to;
    }
}

/// One row of x: two rows of W at a time, from the two halves of the range, so that memory is read in
/// two long streams.
#[inline(always)]
unsafe fn streams<S: Bytes, B: Blocks>(call: &Call) {
    let half = (call.to - call.from) / 2;
    for m in call.from..call.from + half {
        // SAFETY: the caller's.
        unsafe { outputs::<S, B, 2, 1>(call, [m, m + half], 0) }
    }
    for m in call.from + 2 * half..call.to {
        // SAFETY: the caller's.
        unsafe { outputs::<S, B, 1, 1>(call, [m], 0) }
    }
}

/// R rows of W times C rows of x.
#[inline(always)]
unsafe fn outputs<S: Bytes, B: Blocks, const R: usize, const C: usize>(
    call: &Call,
    rows: [usize; R],
    c: usize,
) {
    let x = call.x.at(c);
    let whole = call.k / SUPER;
    // SAFETY: the caller's; a stretch that ends early is copied beside zeros.
    unsafe {
        let w = rows.map(|m| call.w.add(m * call.row_bytes));
        let aux = rows.map(|m| call.aux.wrapping_add(m * call.aux_stride));
        let zero = || Sums::<S, C> { scaled: [[S::zero_f(); 2]; C], offset: [S::zero_f(); C] };
        let mut sums = rows.map(|_| zero());
        for s in 0..whole {
            for ((w, aux), sums) in w.iter().zip(&aux).zip(&mut sums) {
                let w = w.add(s * B::BYTES);
                let mut ahead = AHEAD;
                while ahead < AHEAD + B::BYTES {
                    S::prefetch(w.wrapping_add(ahead));
                    ahead += 64;
                }
                let aux = aux.wrapping_add(s * B::AUX);
                B::step::<S, C>(w, aux, aux.wrapping_add(call.aux_second), &x, s, sums);
            }
        }
        for (((m, w), aux), sums) in rows.iter().zip(&w).zip(&aux).zip(&mut sums) {
            if whole * SUPER < call.k {
                tail::<S, B, C>(call, *w, *aux, &x, whole, sums);
            }
            finish::<S, B, C>(call, *m, c, sums);
        }
    }
}

/// The last columns of a row, fewer than a stretch.
#[inline(always)]
unsafe fn tail<S: Bytes, B: Blocks, const C: usize>(
    call: &Call,
    w: *const u8,
    aux: *const u8,
    x: &Columns,
    s: usize,
    sums: &mut Sums<S, C>,
) {
    let (mut padded, mut first, mut second) = ([0u8; 512], [0u8; 16], [0u8; 16]);
    // SAFETY: no more is copied than the row has left, and a stretch has no more than fits.
    unsafe {
        let left = call.row_bytes - s * B::BYTES;
        w.add(s * B::BYTES).copy_to_nonoverlapping(padded.as_mut_ptr(), left);
        if B::AUX > 0 {
            let array = if call.aux_second > 0 { call.aux_second } else { call.aux_stride };
            let left = array - s * B::AUX;
            aux.add(s * B::AUX).copy_to_nonoverlapping(first.as_mut_ptr(), left);
            if call.aux_second > 0 {
                let from = aux.add(call.aux_second + s * B::AUX);
                from.copy_to_nonoverlapping(second.as_mut_ptr(), left);
            }
        }
        B::step::<S, C>(padded.as_ptr(), first.as_ptr(), second.as_ptr(), x, s, sums);
    }
}

/// Joins the accumulators, and writes the outputs.
#[inline(always)]
unsafe fn finish<S: Bytes, B: Blocks, const C: usize>(
    call: &Call,
    m: usize,
    c: usize,
    sums: &Sums<S, C>,
) {
    // SAFETY: the caller's.
    unsafe {
        for j in 0..C {
            let both = S::add_f(sums.scaled[j][0], sums.scaled[j][1]);
            let all = S::fma_f(sums.offset[j], S::splat_f(B::OFFSET), both);
            let mut sum = S::sum_f(all);
            if B::ROW_SCALE {
                sum *= call.row_scales.add(m * 4).cast::<f32>().read_unaligned();
            }
            let out = call.out.add((c + j) * call.out_stride + m);
            *out = if call.add { *out + sum } else { sum };
        }
    }
}
