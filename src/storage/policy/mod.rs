//! Which block leaves when room is needed.
