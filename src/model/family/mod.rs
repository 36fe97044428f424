//! Model: family.
