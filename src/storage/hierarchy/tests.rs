//! The hierarchy, move by move.
