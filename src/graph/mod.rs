//! What runs after what: the pure scheduler.
