//! Storage: store.
