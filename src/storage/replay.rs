//! Storage: replay.
