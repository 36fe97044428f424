//! Model: hf.
