//! Reading and writing blocks.
