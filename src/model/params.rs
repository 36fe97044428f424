//! Model: params.
