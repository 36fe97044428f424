//! The whole configuration of a run.
