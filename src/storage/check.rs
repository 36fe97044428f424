//! Storage: check.
