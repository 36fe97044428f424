//! Model: dense.
