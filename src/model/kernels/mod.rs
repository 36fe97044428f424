//! Model: kernels.
