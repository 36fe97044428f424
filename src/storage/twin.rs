//! Storage: twin.
