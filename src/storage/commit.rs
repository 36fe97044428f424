//! Storage: commit.
