//! Weighted rows on their way to an array that is larger than the caches: they are written past them, so that
//! no line is read in order to be overwritten whole.

use super::rows::weigh;

/// So many numbers are out of the caches of the cores before they are read again.
const LARGE: usize = 1 << 20;

/// How rows are written into one array.
#[derive(Debug, Clone, Copy)]
pub struct Writer {
    past_caches: bool,
}

impl Writer {
    /// Of an array of `len` numbers.
    pub fn to(len: usize) -> Self {
        Self { past_caches: cfg!(target_arch = "x86_64") && len >= LARGE }
    }

    /// `out = weight · y`. Other threads may read it after [`Self::finish`].
    pub fn weigh(self, weight: f32, y: &[f32], out: &mut [f32]) {
        #[cfg(target_arch = "x86_64")]
        if self.past_caches {
            return past_caches(weight, y, out);
        }
        weigh(weight, y, out);
    }

    /// What this thread wrote is there for those that it tells of it.
    pub fn finish(self) {
        #[cfg(target_arch = "x86_64")]
        if self.past_caches {
            // SAFETY: every x86-64 processor has it.
            unsafe { std::arch::x86_64::_mm_sfence() }
        }
    }
}

/// Whole lines past the caches, what is left at both ends as ever.
#[cfg(target_arch = "x86_64")]
fn past_caches(weight: f32, y: &[f32], out: &mut [f32]) {
    use std::arch::x86_64::{__m128, _mm_loadu_ps, _mm_mul_ps, _mm_set1_ps, _mm_stream_ps};
    const LINE: usize = 16;
    let start = out.as_ptr().align_offset(LINE * size_of::<f32>()).min(out.len());
    let (before, lines) = out.split_at_mut(start);
    let (y_before, y) = y.split_at(start);
    weigh(weight, y_before, before);
    let (lines, behind) = lines.as_chunks_mut::<LINE>();
    let (y_lines, y_behind) = y.as_chunks::<LINE>();
    for (line, y) in lines.iter_mut().zip(y_lines) {
        for at in (0..LINE).step_by(size_of::<__m128>() / size_of::<f32>()) {
            // SAFETY: every x86-64 processor has these; a line is aligned, and four numbers from `at` on are
            // within both.
            unsafe {
                let product = _mm_mul_ps(_mm_set1_ps(weight), _mm_loadu_ps(&raw const y[at]));
                _mm_stream_ps(&raw mut line[at], product);
            }
        }
    }
    weigh(weight, y_behind, behind);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_the_same_past_the_caches() {
        let y: Vec<f32> = (0..100).map(|i| (i as f32 * 0.7).sin()).collect();
        for start in 0..20 {
            for len in [0, 1, 15, 16, 17, 48, 80] {
                let mut out = [vec![f32::NAN; 120], vec![f32::NAN; 120]];
                for (out, total) in out.iter_mut().zip([LARGE - 1, LARGE]) {
                    let writer = Writer::to(total);
                    writer.weigh(0.3, &y[..len], &mut out[start..start + len]);
                    writer.finish();
                }
                let bits = |out: &[f32]| out.iter().map(|x| x.to_bits()).collect::<Vec<u32>>();
                assert_eq!(bits(&out[0]), bits(&out[1]));
                assert_eq!(
                    out[1][start..start + len],
                    y[..len].iter().map(|y| 0.3 * y).collect::<Vec<f32>>()
                );
            }
        }
    }
}
