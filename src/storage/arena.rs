//! Storage: arena.
