//! Model: loss.
