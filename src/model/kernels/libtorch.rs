//! What libtorch says of itself.

use std::ffi::{CStr, c_char};

unsafe extern "C" {
    fn semoe_torch_version() -> *const c_char;
}

/// The version that the program was built with, such as `2.11.0`.
pub fn version() -> String {
    // SAFETY: a constant of the native side, NUL-terminated.
    unsafe { CStr::from_ptr(semoe_torch_version()) }.to_string_lossy().into_owned()
}

/// Has libtorch and MKL set up what a thread's first parallel region asks of them, so that the pages of
/// theirs that this takes are there (see [`crate::base::program`]).
pub fn settle() {
    tch::get_num_threads();
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_version_is_numbers() {
        let version = super::version();
        assert!(version.split('.').take(2).all(|n| n.parse::<u32>().is_ok()), "{version}");
    }
}
