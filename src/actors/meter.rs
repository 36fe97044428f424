//! Totals of cache and disk, which the sink reads: the cache counts its own, the prefetcher keeps the
//! disk's.

use super::cache::Cache;
use super::sink::Traffic;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Running totals that others read without a message.
#[derive(Debug)]
pub struct Meter {
    cache: Arc<Cache>,
    pub(super) bytes_read: AtomicU64,
    pub(super) bytes_written: AtomicU64,
    pub(super) weight_bytes_read: AtomicU64,
    pub(super) bytes_ahead: AtomicU64,
    pub(super) bytes_in_vain: AtomicU64,
    pub(super) disk_busy: AtomicU64,
}

impl Meter {
    pub fn new(cache: Arc<Cache>) -> Self {
        Self {
            cache,
            bytes_read: AtomicU64::new(0),
            bytes_written: AtomicU64::new(0),
            weight_bytes_read: AtomicU64::new(0),
            bytes_ahead: AtomicU64::new(0),
            bytes_in_vain: AtomicU64::new(0),
            disk_busy: AtomicU64::new(0),
        }
    }

    pub fn read(&self) -> Traffic {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let stats = self.cache.with(|hierarchy| hierarchy.stats().total());
        Traffic {
            cache_hits: stats.hits,
            // A block that is on its way in when it is asked for was not there: no hit.
            cache_misses: stats.misses + stats.late,
            cache_late: stats.late,
            prefetches: stats.prefetches,
            wasted: stats.wasted,
            bytes_read: get(&self.bytes_read),
            bytes_written: get(&self.bytes_written),
            disk_busy: get(&self.disk_busy),
            weight_bytes_read: get(&self.weight_bytes_read),
            bytes_ahead: get(&self.bytes_ahead),
            bytes_in_vain: get(&self.bytes_in_vain),
        }
    }
}
