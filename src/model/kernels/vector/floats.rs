//! Scratch of the kernels: f32 that begin at a cache line.

use super::grain;
use super::pack::{Element, Matrix};
use crate::base::Result;
use crate::model::kernels::allocator::Scratch;
use crate::model::kernels::parallel::parallel_for;
use crate::model::kernels::shared::Shared;

const PER_LINE: usize = 16;

/// Zeroed f32 that begin at a cache line.
pub struct Floats(Scratch);

impl Floats {
    /// `len` of them, and as many more as fill the last line.
    pub fn new(len: usize) -> Self {
        let scratch = Scratch::new(4 * len.next_multiple_of(PER_LINE));
        // SAFETY: all bytes of the scratch, which nobody else has.
        unsafe { scratch.at().write_bytes(0, scratch.bytes()) };
        Self(scratch)
    }

    pub fn slice(&mut self) -> &mut [f32] {
        // SAFETY: zeroed when made, aligned, and borrowed as long as `self` is.
        unsafe { std::slice::from_raw_parts_mut(self.at(), self.0.bytes() / 4) }
    }

    pub fn at(&mut self) -> *mut f32 {
        self.0.at().cast()
    }

    /// As a matrix, for reading.
    pub fn matrix(&self, stride: usize) -> Matrix<f32> {
        Matrix { at: self.0.at().cast(), stride }
    }
}

/// Elements from one row of a scratch matrix to the next. A line more than the row needs, so that
/// rows of a power of two do not all fall into one set of the cache.
pub fn padded(columns: usize) -> usize {
    columns.next_multiple_of(PER_LINE) + PER_LINE
}

/// Rows of any element type in f32: the values themselves, or a copy.
pub struct Wide<'a> {
    copy: Option<Floats>,
    values: &'a [f32],
    stride: usize,
}

impl<'a> Wide<'a> {
    /// # Errors
    /// As [`parallel_for`].
    pub fn new<T: Element>(values: &'a [T], columns: usize) -> Result<Self> {
        if let Some(values) = T::as_f32(values) {
            return Ok(Self { copy: None, values, stride: columns });
        }
        let (rows, stride) = (values.len() / columns, padded(columns));
        let mut copy = Floats::new(rows * stride);
        let out = Shared::new(copy.slice());
        parallel_for(rows, grain(4 * columns), |range| {
            for n in range {
                // SAFETY: row n of the copy, which this index owns.
                let to = unsafe { std::slice::from_raw_parts_mut(out.at(n * stride), columns) };
                T::widen(&values[n * columns..][..columns], to);
            }
        })?;
        Ok(Self { copy: Some(copy), values: &[], stride })
    }

    pub fn matrix(&self) -> Matrix<f32> {
        match &self.copy {
            Some(copy) => copy.matrix(self.stride),
            None => Matrix::new(self.values, self.stride),
        }
    }
}
