//! Storage: index.
