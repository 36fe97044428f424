//! Model: config.
