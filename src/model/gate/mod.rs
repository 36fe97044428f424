//! Model: gate.
