//! Model: expert.
