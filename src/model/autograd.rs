//! Gradients of given outputs, returned: nothing is accumulated into `.grad`, so who adds what
//! to which buffer, and in which order, stays with the caller (law 4).

use crate::base::{Error, ErrorKind, Result};
use std::ffi::{CStr, c_char, c_int, c_void};
use tch::Tensor;

unsafe extern "C" {
    fn semoe_last_error() -> *const c_char;
    fn semoe_autograd_grad(
        outputs: *const *mut c_void,
        grad_outputs: *const *mut c_void,
        n_outputs: usize,
        inputs: *const *mut c_void,
        n_inputs: usize,
        retain_graph: c_int,
        grads: *mut *mut c_void,
    ) -> c_int;
}

/// The message of the native bridge's last failure on this thread.
pub(in crate::model) fn native_error() -> Error {
    // SAFETY: the pointer is to a NUL-terminated string of this thread that lives until the next
    // native call on it; it is copied at once.
    let text = unsafe { CStr::from_ptr(semoe_last_error()) }.to_string_lossy();
    // libtorch appends a C++ backtrace; the first line is the message.
    Error::new(ErrorKind::Torch, text.lines().next().unwrap_or_default())
}

pub(in crate::model) fn raw(tensor: &Tensor) -> *mut c_void {
    tensor.as_ptr().cast_mut().cast()
}

/// d(outputs · grad_outputs) / d inputs, one entry an input; `None` where no output depends on
/// it. The graph is freed unless `retain_graph`.
///
/// # Errors
/// Torch, for instance when an output has no graph or shapes differ.
pub fn grad(
    outputs: &[&Tensor],
    grad_outputs: &[&Tensor],
    inputs: &[&Tensor],
    retain_graph: bool,
) -> Result<Vec<Option<Tensor>>> {
    if outputs.len() != grad_outputs.len() {
        return Err(Error::bug("every output needs its gradient"));
    }
    let outs: Vec<_> = outputs.iter().map(|t| raw(t)).collect();
    let grad_outs: Vec<_> = grad_outputs.iter().map(|t| raw(t)).collect();
    let ins: Vec<_> = inputs.iter().map(|t| raw(t)).collect();
    let mut grads = vec![std::ptr::null_mut(); inputs.len()];
    // SAFETY: all pointers are to live `at::Tensor`s that this call borrows, array lengths are
    // passed with the arrays, and the callee neither keeps nor frees them.
    let failed = unsafe {
        semoe_autograd_grad(
            outs.as_ptr(),
            grad_outs.as_ptr(),
            outs.len(),
            ins.as_ptr(),
            ins.len(),
            c_int::from(retain_graph),
            grads.as_mut_ptr(),
        )
    };
    if failed != 0 {
        return Err(native_error());
    }
    let owned = grads.into_iter().map(|grad| {
        // SAFETY: a non-null entry is an `at::Tensor` made by `new` and handed over to us.
        (!grad.is_null()).then(|| unsafe { Tensor::from_ptr(grad.cast()) })
    });
    Ok(owned.collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Kind;

    #[test]
    fn gradients_are_returned_and_unused_inputs_say_so() {
        let x = Tensor::from_slice(&[1.0f32, 2.0, 3.0]).set_requires_grad(true);
        let unused = Tensor::zeros([2], (Kind::Float, tch::Device::Cpu)).set_requires_grad(true);
        let y = &x * &x;
        let g = Tensor::from_slice(&[1.0f32, 10.0, 100.0]);
        let grads = grad(&[&y], &[&g], &[&x, &unused], false).unwrap();
        let dx: Vec<f32> = grads[0].as_ref().unwrap().try_into().unwrap();
        assert_eq!(dx, [2.0, 40.0, 600.0]);
        assert!(grads[1].is_none());
        assert!(!x.grad().defined(), "nothing goes into .grad");
    }

    #[test]
    fn an_output_without_a_graph_is_an_error() {
        let y = Tensor::from_slice(&[1.0f32]);
        let e = grad(&[&y], &[&y], &[&y], false).unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Torch);
    }
}
