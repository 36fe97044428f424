//! Model: optim.
