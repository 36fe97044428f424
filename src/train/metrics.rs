//! Train: metrics.
