//! Model: init.
