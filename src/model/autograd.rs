//! Model: autograd.
