//! Where bytes live: blocks in data files on SSD, slots in memory, and what moves between.

pub mod arena;
pub mod catalog;
pub mod check;
pub mod commit;
pub mod disk;
pub mod hierarchy;
pub mod in_place;
pub mod index;
pub mod lease;
pub mod policy;
pub mod probe;
pub mod replay;
pub mod store;
pub mod tiers;
pub mod twin;
