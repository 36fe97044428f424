//! Activations as the kernels take them: cut into blocks of columns, or rounded to int8 by groups.
//!
//! Rounding is symmetric: q = round(127 x / max|x|) over a group. A row that holds a number that
//! is not finite gives results that are not finite.

use super::aligned::Aligned;
#[cfg(target_arch = "x86_64")]
use super::e4m3;
use super::encoding::{BLOCK, Encoding, SUPER};
use super::pool::{Disjoint, Pool};
#[cfg(target_arch = "x86_64")]
use super::sets;
use super::simd::Level;
#[cfg(target_arch = "x86_64")]
use super::tiles;
#[cfg(target_arch = "x86_64")]
use super::work::sized;
use crate::base::Result;
use crate::model::kernels::dispatch::dispatched;
use crate::model::kernels::float::to_bf16;

/// Columns of a block of f32 activations; every instruction set sums up to there, or to a divisor.
pub(super) const K_BLOCK: usize = 512;
/// Floats between two rows of a block: rows begin on different cache sets.
pub(super) const K_STRIDE: usize = K_BLOCK + 16;
/// bf16 columns of a vector, and between the ends of two rows: they begin on different cache sets.
const PAIR_PADDING: usize = 32;
/// Columns of which sums are kept.
const SIXTEEN: usize = 16;
/// Zeros that follow a row's group scales: kernels read eight at a time.
const GROUP_PADDING: usize = 8;
/// From this many rows on the threads share the work.
const SHARED_ROWS: usize = 16;

/// What an encoding's kernels want to be given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Form {
    /// f32, in blocks of columns.
    #[default]
    Blocks,
    /// Rounded to bf16.
    Pairs,
    /// As `Pairs`, in groups of rows as the kernels of [`super::tiles`] take them.
    #[cfg(target_arch = "x86_64")]
    Tiles,
    /// int8, with a scale for each group of this many columns.
    Groups(usize),
    /// As `Groups`, as the kernels of [`super::sets`] take them.
    #[cfg(target_arch = "x86_64")]
    Sets { group: usize, bias: i32, layout: sets::Layout },
}

impl Form {
    /// Of a matrix with rows of `cols`.
    pub fn of(encoding: Encoding, cols: usize, level: Level) -> Self {
        let group = match encoding {
            #[cfg(target_arch = "x86_64")]
            Encoding::Bf16 if level >= Level::Amx && tiles::fits(cols) => return Self::Tiles,
            Encoding::Bf16 if level >= Level::Avx512Bf16 => return Self::Pairs,
            #[cfg(target_arch = "x86_64")]
            Encoding::Fp8 if level >= Level::Avx512Bf16 && e4m3::fits() => return Self::Pairs,
            Encoding::F32 | Encoding::F16 | Encoding::Bf16 | Encoding::Fp8 => return Self::Blocks,
            Encoding::Mxfp4 | Encoding::Q8_0 | Encoding::Q4_0 => 32,
            Encoding::Q4K | Encoding::Q6K => SUPER,
            Encoding::Int8 => 128,
            Encoding::Int4 { group } => group as usize,
        };
        #[cfg(target_arch = "x86_64")]
        if level >= Level::Avx512Vnni {
            let (bias, layout) = (sets::bias(encoding), sets::layout(encoding));
            return Self::Sets { group, bias, layout };
        }
        Self::Groups(group)
    }
}

/// Activations x [N, K] in one form. Memory is kept from one use to the next.
#[derive(Default)]
pub(super) struct Input {
    pub form: Form,
    pub rows: usize,
    pub cols: usize,
    /// `Blocks`: [⌈K/512⌉, N, K_STRIDE], zeros after the last column.
    pub blocks: Aligned<f32>,
    /// `Pairs` and `Tiles`: bf16 [N, `pair_stride`], zeros after the last column.
    pub pairs: Aligned<u16>,
    pub pair_stride: usize,
    /// `Tiles`, where there are several rows: the same in groups.
    #[cfg(target_arch = "x86_64")]
    pub tiles: Aligned<u16>,
    /// `Groups`: int8 [N, `q_stride`], zeros after the last column; with groups of 32 each stretch of 256
    /// columns is turned: quad i of each of its eight groups, for each i.
    pub q: Aligned<i8>,
    /// Scale of each group [N, `d_stride`], and scale · Σ q; `Sets`: of each set.
    pub d: Aligned<f32>,
    pub sums: Aligned<f32>,
    /// Σ q of 16 columns [N, `q_stride` / 16].
    pub sums16: Aligned<i16>,
    /// `Sets`: −bias · Σ q of each set [N, `d_stride`].
    pub bias: Aligned<i32>,
    /// `Sets`, where there are many rows: the same for eight rows together.
    #[cfg(target_arch = "x86_64")]
    pub eights: Vec<sets::Meeting>,
    pub q_stride: usize,
    pub d_stride: usize,
}

impl Input {
    /// Takes x [N, K] in.
    pub fn take(&mut self, form: Form, x_nk: &[f32], cols: usize, pool: &mut Pool) -> Result<()> {
        (self.form, self.cols, self.rows) = (form, cols, x_nk.len() / cols.max(1));
        match form {
            Form::Blocks => self.take_blocks(x_nk, pool),
            Form::Pairs => self.take_pairs(x_nk, pool),
            #[cfg(target_arch = "x86_64")]
            Form::Tiles => self.take_tiles(x_nk, pool),
            Form::Groups(group) => self.take_groups(group, x_nk, pool),
            #[cfg(target_arch = "x86_64")]
            Form::Sets { group, bias, layout } => self.take_sets(group, bias, layout, x_nk, pool),
        }
    }

    fn take_blocks(&mut self, x_nk: &[f32], pool: &mut Pool) -> Result<()> {
        let (rows, cols) = (self.rows, self.cols);
        let len = cols.div_ceil(K_BLOCK) * rows * K_STRIDE;
        let blocks = Disjoint::new(self.blocks.sized(len)?);
        each_row(rows, pool, &|n| {
            for (b, x) in x_nk[n * cols..(n + 1) * cols].chunks(K_BLOCK).enumerate() {
                // SAFETY: row n of block b belongs to this call alone.
                let out = unsafe { blocks.range((b * rows + n) * K_STRIDE, K_STRIDE) };
                out[..x.len()].copy_from_slice(x);
                let padded = (x.len() + 16).min(K_STRIDE);
                out[x.len()..padded].fill(0.0);
            }
        })
    }

    fn take_pairs(&mut self, x_nk: &[f32], pool: &mut Pool) -> Result<()> {
        let (rows, cols) = (self.rows, self.cols);
        let stride = pair_stride(cols);
        let pairs = Disjoint::new(self.pairs_for(rows, cols)?);
        each_row(rows, pool, &|n| {
            // SAFETY: row n belongs to this call alone.
            let out = unsafe { pairs.range(n * stride, stride) };
            round_pairs(&x_nk[n * cols..(n + 1) * cols], out);
        })
    }

    /// Room for rows of `cols` that somebody rounds.
    pub fn pairs_for(&mut self, rows: usize, cols: usize) -> Result<&mut [u16]> {
        self.pair_stride = pair_stride(cols);
        self.pairs.sized(rows * self.pair_stride)
    }

    #[cfg(target_arch = "x86_64")]
    fn take_tiles(&mut self, x_nk: &[f32], pool: &mut Pool) -> Result<()> {
        self.take_pairs(x_nk, pool)?;
        let Self { pairs, pair_stride, tiles, rows, cols, .. } = self;
        let rows_nk = pairs.sized(*rows * *pair_stride)?;
        // SAFETY: the form is of a processor that has AMX, and so AVX-512 BF16.
        unsafe { tiles::pack(rows_nk, *pair_stride, (*rows, *cols), tiles, pool) }
    }

    fn take_groups(&mut self, group: usize, x_nk: &[f32], pool: &mut Pool) -> Result<()> {
        let (rows, cols) = (self.rows, self.cols);
        let q_stride = cols.next_multiple_of(SUPER);
        let d_stride = q_stride / group + GROUP_PADDING;
        (self.q_stride, self.d_stride) = (q_stride, d_stride);
        let q = Disjoint::new(self.q.sized(rows * q_stride)?);
        let d = Disjoint::new(self.d.sized(rows * d_stride)?);
        let sums = Disjoint::new(self.sums.sized(rows * d_stride)?);
        let sums16 = Disjoint::new(self.sums16.sized(rows * q_stride / 16)?);
        each_row(rows, pool, &|n| {
            // SAFETY: row n of each belongs to this call alone.
            let (q, d, sums, sums16) = unsafe {
                (
                    q.range(n * q_stride, q_stride),
                    d.range(n * d_stride, d_stride),
                    sums.range(n * d_stride, d_stride),
                    sums16.range(n * q_stride / 16, q_stride / 16),
                )
            };
            round_row(group, &x_nk[n * cols..(n + 1) * cols], q, d, sums, sums16);
        })
    }

    #[cfg(target_arch = "x86_64")]
    fn take_sets(
        &mut self,
        group: usize,
        bias: i32,
        layout: sets::Layout,
        x_nk: &[f32],
        pool: &mut Pool,
    ) -> Result<()> {
        let (rows, cols) = (self.rows, self.cols);
        let padded = cols.next_multiple_of(SUPER);
        // Rows begin on different cache sets.
        let (q_stride, d_stride) = (padded + 64, padded / SIXTEEN + 16);
        (self.q_stride, self.d_stride) = (q_stride, d_stride);
        let q = Disjoint::new(self.q.sized(rows * q_stride)?);
        let d = Disjoint::new(self.d.sized(rows * d_stride)?);
        let sums = Disjoint::new(self.sums.sized(rows * d_stride)?);
        let biases = Disjoint::new(self.bias.sized(rows * d_stride)?);
        each_row(rows, pool, &|n| {
            let (at, len) = (n * d_stride, padded / SIXTEEN);
            // SAFETY: row n of each belongs to this call alone; the form is of a processor that has
            // AVX-512 with VNNI.
            unsafe {
                let out = sets::Rounded {
                    q: q.range(n * q_stride, padded),
                    d: d.range(at, len),
                    sums: sums.range(at, len),
                    bias: biases.range(at, len),
                };
                sets::round(group, bias, layout, &x_nk[n * cols..(n + 1) * cols], out);
            }
        })?;
        if rows < sets::many(layout) {
            return Ok(());
        }
        let (all, len) = (self.in_sets(), padded / SIXTEEN);
        let eights = Disjoint::new(sized(&mut self.eights, rows.div_ceil(sets::COLUMNS) * len));
        pool.run(rows.div_ceil(sets::COLUMNS), &|_, eight| {
            let first = eight * sets::COLUMNS;
            let n = (rows - first).min(sets::COLUMNS);
            // SAFETY: these eight rows belong to this call alone, and were rounded.
            unsafe { sets::join(layout, n, &all.at(first, 0), eights.range(eight * len, len)) }
        })
    }

    /// The rows as `Sets`' kernels take them.
    #[cfg(target_arch = "x86_64")]
    pub fn in_sets(&self) -> sets::Rows {
        sets::Rows {
            q: self.q.as_ptr(),
            d: self.d.as_ptr(),
            bias: self.bias.as_ptr(),
            sums: self.sums.as_ptr(),
            q_stride: self.q_stride,
            d_stride: self.d_stride,
            eights: self.eights.as_ptr(),
        }
    }
}

/// Numbers from one row of `Pairs` to the next; those after `cols` are zero.
pub(super) fn pair_stride(cols: usize) -> usize {
    cols.next_multiple_of(PAIR_PADDING) + PAIR_PADDING
}

fn each_row(rows: usize, pool: &mut Pool, body: &(dyn Fn(usize) + Sync)) -> Result<()> {
    if rows < SHARED_ROWS {
        (0..rows).for_each(body);
        return Ok(());
    }
    let chunk = SHARED_ROWS / 2;
    pool.run(rows.div_ceil(chunk), &|_, task| {
        (task * chunk..rows.min((task + 1) * chunk)).for_each(body);
    })
}

dispatched! {
    /// x in bf16, and zeros behind it.
    pub(super) fn round_pairs(x: &[f32], out: &mut [u16]) = round_pairs_body;
}

#[inline(always)]
fn round_pairs_body(x: &[f32], out: &mut [u16]) {
    let (numbers, rest) = out.split_at_mut(x.len());
    for (out, x) in numbers.iter_mut().zip(x) {
        *out = to_bf16(*x);
    }
    rest.fill(0);
}

dispatched! {
    fn round_row(group: usize, x: &[f32], q: &mut [i8], d: &mut [f32], sums: &mut [f32], sums16: &mut [i16]) = round_body;
}

#[inline(always)]
fn round_body(
    group: usize,
    x: &[f32],
    q: &mut [i8],
    d: &mut [f32],
    sums: &mut [f32],
    sums16: &mut [i16],
) {
    let groups = x.len().div_ceil(group);
    q[x.len()..].fill(0);
    d[groups..].fill(0.0);
    sums[groups..].fill(0.0);
    for ((x, q), d) in x.chunks(group).zip(q.chunks_mut(group)).zip(&mut *d) {
        *d = round_group(x, q);
    }
    for (sum, q) in sums16.iter_mut().zip(q.as_chunks::<SIXTEEN>().0) {
        *sum = sum_of(q);
    }
    if group == BLOCK {
        q.as_chunks_mut().0.iter_mut().for_each(turn);
    }
    for ((sum, d), sixteens) in sums.iter_mut().zip(&*d).zip(sums16.chunks(group / SIXTEEN)) {
        *sum = d * sixteens.iter().map(|s| i32::from(*s)).sum::<i32>() as f32;
    }
}

/// Turns a stretch: quad i of each of its eight blocks, for each i.
#[inline(always)]
fn turn(stretch: &mut [i8; SUPER]) {
    let from = *stretch;
    let (quads, _) = from.as_chunks::<4>();
    for (at, out) in stretch.as_chunks_mut().0.iter_mut().enumerate() {
        *out = quads[at % 8 * 8 + at / 8];
    }
}

#[inline(always)]
fn sum_of(q: &[i8; SIXTEEN]) -> i16 {
    q.iter().map(|q| i16::from(*q)).sum()
}

/// Rounds a group; its scale.
#[inline(always)]
pub(super) fn round_group(x: &[f32], q: &mut [i8]) -> f32 {
    // Adding it leaves the nearest integer in the low bits of the significand.
    const SHIFT: f32 = 12_582_912.0;
    // Below this 127 / max overflows; such a group is zero beside any other.
    const TINY: f32 = 1e-30;
    // As integers, so that NaN is the largest of all.
    let bits = x.iter().fold(0, |most, x| (x.to_bits() & 0x7fff_ffff).max(most));
    let most = f32::from_bits(bits);
    let factor = if most > TINY { 127.0 / most } else { 0.0 };
    for (q, x) in q.iter_mut().zip(x) {
        *q = (x * factor + SHIFT).to_bits() as i8;
    }
    if most.is_finite() { most / 127.0 } else { f32::NAN }
}
