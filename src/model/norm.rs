//! Model: norm.
