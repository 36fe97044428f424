//! What a run of the generator came to, in the figures that tell what limited it.

use crate::actors::sink::{PassReport, Traffic};
use crate::graph::Lane;
use serde::Serialize;

/// Sums over passes of one kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Passes {
    pub passes: u64,
    /// Rows that went through the layers.
    pub tokens: u64,
    pub seconds: f64,
    pub hits: u64,
    pub misses: u64,
    /// Misses on experts that were being read already.
    pub late: u64,
    /// Experts of which reading began before anyone asked for them, and those of them that nobody asked
    /// for at their time.
    pub read_ahead: u64,
    pub wasted: u64,
    pub bytes_read: u64,
    /// Bytes read while nobody waited for them, and those of them that were of no use at their time.
    pub bytes_ahead: u64,
    pub bytes_in_vain: u64,
    /// Seconds in which the disk had at least one request.
    pub disk_busy: f64,
    /// Seconds in which the executor waited for blocks.
    pub exposed_io: f64,
    /// Seconds in which the executor computed.
    pub busy: f64,
}

impl Passes {
    fn add(&mut self, report: &PassReport) {
        let Traffic { cache_hits, cache_misses, cache_late, prefetches, .. } = report.traffic;
        let Traffic { wasted, bytes_read, disk_busy, .. } = report.traffic;
        let Traffic { bytes_ahead, bytes_in_vain, .. } = report.traffic;
        self.passes += 1;
        self.tokens += report.numbers.tokens;
        self.seconds += report.numbers.seconds;
        self.hits += cache_hits;
        self.misses += cache_misses;
        self.late += cache_late;
        self.read_ahead += prefetches;
        self.wasted += wasted;
        self.bytes_read += bytes_read;
        self.bytes_ahead += bytes_ahead;
        self.bytes_in_vain += bytes_in_vain;
        self.disk_busy += disk_busy as f64 * 1e-9;
        self.exposed_io += report.accounting.exposed_of(Lane::Io) as f64 * 1e-9;
        self.busy += report.accounting.busy as f64 * 1e-9;
    }

    pub fn tokens_per_s(&self) -> f64 {
        if self.seconds > 0.0 { self.tokens as f64 / self.seconds } else { 0.0 }
    }

    /// Experts found in memory by experts needed; 1 where none was needed.
    pub fn hit_rate(&self) -> f64 {
        let needed = self.hits + self.misses;
        if needed == 0 { 1.0 } else { self.hits as f64 / needed as f64 }
    }

    /// Bytes that were read when they were needed, and not ahead.
    pub fn bytes_awaited(&self) -> u64 {
        self.bytes_read.saturating_sub(self.bytes_ahead)
    }

    pub fn per_token(&self, bytes: u64) -> f64 {
        bytes as f64 / self.tokens.max(1) as f64
    }

    /// Share of the time.
    pub fn share(&self, seconds: f64) -> f64 {
        if self.seconds > 0.0 { seconds / self.seconds } else { 0.0 }
    }
}

/// Reading prompts and making tokens, apart.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Figures {
    pub prompt: Passes,
    pub decode: Passes,
}

impl Figures {
    /// A pass ended. One with a row for each text is decoding.
    pub fn add(&mut self, report: &PassReport) {
        if report.numbers.tokens > report.numbers.targets {
            self.prompt.add(report);
        } else if report.numbers.tokens > 0 {
            self.decode.add(report);
        }
    }

    /// Both kinds together.
    pub fn all(&self) -> Passes {
        let Self { prompt: a, decode: b } = self;
        Passes {
            passes: a.passes + b.passes,
            tokens: a.tokens + b.tokens,
            seconds: a.seconds + b.seconds,
            hits: a.hits + b.hits,
            misses: a.misses + b.misses,
            late: a.late + b.late,
            read_ahead: a.read_ahead + b.read_ahead,
            wasted: a.wasted + b.wasted,
            bytes_read: a.bytes_read + b.bytes_read,
            bytes_ahead: a.bytes_ahead + b.bytes_ahead,
            bytes_in_vain: a.bytes_in_vain + b.bytes_in_vain,
            disk_busy: a.disk_busy + b.disk_busy,
            exposed_io: a.exposed_io + b.exposed_io,
            busy: a.busy + b.busy,
        }
    }

    /// The table that people read, a line each kind.
    pub fn table(&self) -> String {
        let mut text = String::new();
        for (name, p) in [("prompt", &self.prompt), ("decode", &self.decode)] {
            if p.passes == 0 {
                continue;
            }
            text += &format!(
                "{name}: {} tokens in {:.2} s, {:.2} tokens/s; {:.1} MB read a token, {:.1}% hits, \
                 disk busy {:.0}%, waiting for it {:.0}%, computing {:.0}%\n",
                p.tokens,
                p.seconds,
                p.tokens_per_s(),
                p.per_token(p.bytes_read) * 1e-6,
                100.0 * p.hit_rate(),
                100.0 * p.share(p.disk_busy),
                100.0 * p.share(p.exposed_io),
                100.0 * p.share(p.busy),
            );
        }
        text
    }
}
