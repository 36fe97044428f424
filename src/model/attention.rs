//! Model: attention.
