//! Model: rope.
