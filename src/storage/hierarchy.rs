//! Storage: hierarchy.
