//! Train: curve.
