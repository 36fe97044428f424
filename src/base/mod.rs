//! What every layer shares: errors, identifiers, units, time and the memory ledger.
//!
//! Imports nothing of ours.

pub mod behind;
pub mod checksum;
pub mod clock;
pub mod error;
pub mod file;
pub mod idle;
pub mod ids;
pub mod ledger;
pub mod pages;
pub mod program;
pub mod timing;
pub mod units;

pub use error::{Error, ErrorKind, Result};
pub use ids::{BlockId, Part, Step};
