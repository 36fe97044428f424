//! Totals of cache and disk, which the prefetcher keeps and the sink reads.

use super::sink::Traffic;
use std::sync::atomic::{AtomicU64, Ordering};

/// Running totals that others read without a message.
#[derive(Debug, Default)]
pub struct Meter {
    pub(super) hits: AtomicU64,
    pub(super) misses: AtomicU64,
    pub(super) late: AtomicU64,
    pub(super) prefetches: AtomicU64,
    pub(super) bytes_read: AtomicU64,
    pub(super) bytes_written: AtomicU64,
    pub(super) weight_bytes_read: AtomicU64,
    pub(super) disk_busy: AtomicU64,
}

impl Meter {
    pub fn read(&self) -> Traffic {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Traffic {
            cache_hits: get(&self.hits),
            cache_misses: get(&self.misses),
            cache_late: get(&self.late),
            prefetches: get(&self.prefetches),
            bytes_read: get(&self.bytes_read),
            bytes_written: get(&self.bytes_written),
            disk_busy: get(&self.disk_busy),
            weight_bytes_read: get(&self.weight_bytes_read),
        }
    }
}
