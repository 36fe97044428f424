//! Bytes of a slot as typed slices and tensors, and tensors as slices: no copies.
//!
//! The one file where memory changes its type. A tensor made here borrows its memory without
//! libtorch knowing it, so nothing outside the model layer may make one, and its users keep it
//! beside the borrow ([`crate::model::expert::ExpertView`]).

use super::float::Number;
use crate::base::{Error, Result};
use tch::{Device, Kind, Tensor};

/// Types for which every bit pattern is a value: bytes may be read as them.
///
/// # Safety
/// Implementors have no padding, no invalid bit patterns and no drop code.
pub unsafe trait Plain: Copy + Send + Sync + 'static {}
// SAFETY: integers and floats meet all three conditions.
unsafe impl Plain for u16 {}
// SAFETY: as above.
unsafe impl Plain for i16 {}
// SAFETY: as above.
unsafe impl Plain for i8 {}
// SAFETY: as above.
unsafe impl Plain for i32 {}
// SAFETY: as above.
unsafe impl Plain for f32 {}

/// The bytes as values of `T`.
///
/// # Errors
/// [`crate::base::ErrorKind::Bug`] when the bytes are misaligned or not a whole number of values.
pub fn cast<T: Plain>(bytes: &[u8]) -> Result<&[T]> {
    // SAFETY: `T: Plain`, so any bytes are valid values.
    let (head, body, tail) = unsafe { bytes.align_to::<T>() };
    if head.is_empty() && tail.is_empty() {
        return Ok(body);
    }
    Err(misaligned::<T>(bytes.as_ptr(), bytes.len()))
}

/// The bytes as values of `T`, to be changed.
///
/// # Errors
/// As [`cast`].
pub fn cast_mut<T: Plain>(bytes: &mut [u8]) -> Result<&mut [T]> {
    let (address, len) = (bytes.as_ptr(), bytes.len());
    // SAFETY: `T: Plain`, so any bytes are valid values, and any values are valid bytes.
    let (head, body, tail) = unsafe { bytes.align_to_mut::<T>() };
    if head.is_empty() && tail.is_empty() { Ok(body) } else { Err(misaligned::<T>(address, len)) }
}

/// The values as bytes.
pub fn bytes_of<T: Plain>(values: &[T]) -> &[u8] {
    // SAFETY: `T: Plain` has no padding, so all its bytes are initialised; the lifetime is kept.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}

fn misaligned<T>(address: *const u8, len: usize) -> Error {
    Error::bug("a slot's bytes are misaligned for their element type")
        .with("address", format!("{address:p}"))
        .with("bytes", len)
        .with("element_bytes", size_of::<T>())
}

/// A tensor [rows, columns] over `values`. It must not outlive them, and must not be written.
pub(in crate::model) fn tensor_over<T: Number>(
    values: &[T],
    rows: usize,
    columns: usize,
) -> Result<Tensor> {
    fits(values.len(), rows, columns)?;
    blob(values.as_ptr().cast(), rows, columns, T::KIND)
}

/// A writable tensor [rows, columns] over `values`. It must not outlive them.
pub(in crate::model) fn tensor_over_mut<T: Number>(
    values: &mut [T],
    rows: usize,
    columns: usize,
) -> Result<Tensor> {
    fits(values.len(), rows, columns)?;
    blob(values.as_mut_ptr().cast(), rows, columns, T::KIND)
}

fn blob(data: *const u8, rows: usize, columns: usize, kind: Kind) -> Result<Tensor> {
    let size = [rows as i64, columns as i64];
    // SAFETY: the callers checked that the slice holds rows * columns elements of this kind, and
    // promise that the tensor does not outlive it.
    Ok(unsafe { Tensor::f_from_blob(data, &size, &[columns as i64, 1], kind, Device::Cpu) }?)
}

fn fits(len: usize, rows: usize, columns: usize) -> Result<()> {
    if len == rows * columns {
        return Ok(());
    }
    let text = "a slice does not hold the tensor asked for";
    Err(Error::bug(text).with("elements", len).with("rows", rows).with("columns", columns))
}

/// The elements of a contiguous CPU tensor.
///
/// # Errors
/// [`crate::base::ErrorKind::Bug`] when the tensor is not contiguous, not on the CPU, or of
/// another kind.
pub fn elements<T: Number>(x: &Tensor) -> Result<&[T]> {
    check::<T>(x)?;
    if x.numel() == 0 {
        return Ok(&[]);
    }
    // SAFETY: checked: the tensor holds numel() elements of T's kind, one after the other. tch
    // tensors are not Sync, and the slice borrows the handle.
    Ok(unsafe { std::slice::from_raw_parts(x.data_ptr().cast::<T>(), x.numel()) })
}

/// The elements of a contiguous CPU tensor that this handle alone refers to, to be changed.
///
/// # Errors
/// As [`elements`].
pub fn elements_mut<T: Number>(x: &mut Tensor) -> Result<&mut [T]> {
    check::<T>(x)?;
    if x.numel() == 0 {
        return Ok(&mut []);
    }
    // SAFETY: as in `elements`; the handle is borrowed mutably, and callers pass tensors they made.
    Ok(unsafe { std::slice::from_raw_parts_mut(x.data_ptr().cast::<T>(), x.numel()) })
}

fn check<T: Number>(x: &Tensor) -> Result<()> {
    if x.f_kind()? == T::KIND && x.is_contiguous() && x.device() == Device::Cpu {
        return Ok(());
    }
    Err(Error::bug("a kernel needs a contiguous tensor in memory")
        .with("wanted", format!("{:?}", T::KIND))
        .with("got", format!("{:?} {:?} on {:?}", x.f_kind()?, x.size(), x.device())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_and_values_share_memory() {
        let mut values = vec![1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0];
        assert_eq!(cast::<f32>(bytes_of(&values)).unwrap(), &values[..]);
        assert!(cast::<f32>(&bytes_of(&values)[1..]).is_err());
        let mut t = tensor_over_mut(&mut values, 2, 3).unwrap();
        let _ = t.f_mul_scalar_(2.0).unwrap();
        assert_eq!(elements::<f32>(&t).unwrap(), &[2.0, 4.0, 6.0, 8.0, 10.0, 12.0]);
        assert!(elements::<u16>(&t).is_err());
        assert!(elements::<f32>(&t.tr()).is_err());
        drop(t);
        assert_eq!(values[5], 12.0);
        assert!(tensor_over(&values, 2, 4).is_err());
    }
}
