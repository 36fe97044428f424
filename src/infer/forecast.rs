//! Seconds and bytes of a token: forecast from what a machine can, measured by a run.
//!
//! A pass takes
//!
//! * the weights, keys and values that it computes with, over the slower of memory and the kernel
//!   of their encoding;
//! * the overhead of each layer and each expert; and
//! * in each layer the time for which its reads are waited for: they begin with its gate, and the
//!   experts that are there compute meanwhile. How many of a layer's experts are missing is as if each
//!   were by chance.
//!
//! Reads ahead of a gate are left out: where they pay a run is faster than this says.

use super::figures::Passes;
use super::machine::{ComputeFigures, DiskFigures};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;

/// Bytes by the encoding that they are in.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Amounts(pub BTreeMap<String, f64>);

impl Amounts {
    pub fn add(&mut self, encoding: &str, bytes: f64) {
        *self.0.entry(encoding.to_owned()).or_default() += bytes;
    }

    /// Of so many.
    #[must_use]
    pub fn scaled(&self, by: f64) -> Self {
        Self(self.0.iter().map(|(name, bytes)| (name.clone(), bytes * by)).collect())
    }

    pub fn total(&self) -> f64 {
        self.0.values().sum()
    }
}

/// What a token of a model reads and computes, as its headers tell.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Workload {
    pub layers: usize,
    /// Those of them that have routed experts.
    pub routed_layers: usize,
    /// Experts that a token takes in a routed layer.
    pub top_k: usize,
    /// Bytes of dense weights that a pass computes with.
    pub dense: Amounts,
    /// Bytes that an expert computes with, on average.
    pub expert: Amounts,
    /// Bytes that fetching an expert moves off the disk, on average.
    pub expert_read: f64,
    /// Requests to the disk that this is divided into, on average.
    pub expert_requests: f64,
    /// Bytes of keys and values that a position adds to what a token computes with.
    pub kv_per_position: u64,
    /// Experts that memory holds at once, of all.
    pub slots: u32,
    pub blocks: u32,
    /// Requests that the disk is given at a time, at most.
    pub depth: u32,
}

impl Workload {
    /// Experts that one token takes.
    pub fn needed(&self) -> f64 {
        (self.routed_layers * self.top_k) as f64
    }

    /// Bytes of weights that one token computes with.
    pub fn active_bytes(&self) -> f64 {
        self.dense.total() + self.needed() * self.expert.total()
    }

    /// Hit rate where every expert is as likely as any other: the share that memory holds.
    pub fn uniform_hit_rate(&self) -> f64 {
        if self.blocks == 0 { 1.0 } else { f64::from(self.slots) / f64::from(self.blocks) }
    }
}

/// What the disk gives.
#[derive(Debug, Clone, Copy)]
pub enum DiskRate<'a> {
    Measured(&'a DiskFigures),
    /// Bytes a second, whatever is asked of it.
    Said(f64),
}

impl DiskRate<'_> {
    /// Bytes a second at requests of `bytes`, `depth` of them at a time.
    fn at(&self, bytes: f64, depth: f64) -> f64 {
        match self {
            Self::Measured(figures) => figures.rate(bytes, depth),
            Self::Said(rate) => *rate,
        }
    }
}

/// What a machine gives.
#[derive(Debug, Clone, Copy)]
pub struct Rates<'a> {
    pub disk: DiskRate<'a>,
    pub compute: &'a ComputeFigures,
}

/// A pass that decodes: one token of each of some texts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pass {
    /// Tokens.
    pub rows: f64,
    /// Experts that it computes with, over all layers.
    pub needed: f64,
    /// Experts that are read for it while it waits: what was read ahead is not among them.
    pub fetched: f64,
    /// Positions that each text holds.
    pub positions: f64,
}

impl Pass {
    /// One token at a hit rate, at the beginning of a text.
    pub fn of_a_token(work: &Workload, hit_rate: f64) -> Self {
        let needed = work.needed();
        Self { rows: 1.0, needed, fetched: (1.0 - hit_rate) * needed, positions: 0.0 }
    }

    /// The mean pass of what was measured; None where nothing was.
    pub fn measured(work: &Workload, passes: &Passes, positions: f64) -> Option<Self> {
        let each = |count: u64| count as f64 / passes.passes as f64;
        let read = |bytes: f64| if work.expert_read > 0.0 { bytes / work.expert_read } else { 0.0 };
        (passes.passes > 0).then(|| Self {
            rows: each(passes.tokens),
            needed: each(passes.hits + passes.misses),
            fetched: read(each(passes.bytes_awaited())),
            positions,
        })
    }

    /// Share of its experts that it does not wait for.
    pub fn hit_rate(&self) -> f64 {
        if self.needed > 0.0 { 1.0 - self.fetched / self.needed } else { 1.0 }
    }
}

/// What takes most of the time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Limit {
    Disk,
    Memory,
    /// The kernels read slower than memory gives.
    Kernels,
    /// What each layer and expert costs, however small.
    Overhead,
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Disk => "disk",
            Self::Memory => "memory",
            Self::Kernels => "kernels",
            Self::Overhead => "overhead",
        })
    }
}

/// A kernel that is this near to memory's rate is limited by memory.
const NEAR: f64 = 0.85;

/// What a token will take.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Forecast {
    /// Share of the experts that it does not wait for.
    pub hit_rate: f64,
    pub tokens_per_s: f64,
    pub bytes_read_per_token: f64,
    /// Seconds of a pass: reading, waiting for what is read, computing, and what each layer and expert
    /// costs on top.
    pub disk_seconds: f64,
    pub waiting_seconds: f64,
    pub compute_seconds: f64,
    pub overhead_seconds: f64,
    pub limit: Limit,
}

impl Forecast {
    /// Foretells `pass`; see the module.
    pub fn of(work: &Workload, rates: &Rates<'_>, pass: &Pass) -> Self {
        let read = pass.fetched * work.expert_read;
        let layers = work.routed_layers.max(1) as f64;
        // The reads of one layer are under way together.
        let under_way = pass.fetched / layers * work.expert_requests;
        let request = work.expert_read / work.expert_requests.max(1.0);
        let depth = under_way.clamp(1.0, f64::from(work.depth.max(1)));
        let disk_seconds = if read > 0.0 { read / rates.disk.at(request, depth) } else { 0.0 };

        let compute = rates.compute;
        let kv = pass.rows * pass.positions * work.kv_per_position as f64;
        let experts = work.expert.scaled(pass.needed);
        let kernels = compute.seconds(&work.dense) + compute.seconds(&experts);
        let compute_seconds = kernels + kv / compute.memory;
        let bytes = work.dense.total() + experts.total() + kv;
        let memory_seconds = bytes / compute.memory;
        let overhead_seconds =
            work.layers as f64 * compute.layer_seconds + pass.needed * compute.expert_seconds;

        let waiting_seconds = work.routed_layers as f64 * {
            let (needed, missing) = (pass.needed / layers, pass.fetched / layers);
            let each = |seconds: f64, count: f64| if count > 0.0 { seconds / count } else { 0.0 };
            let computing = compute.seconds(&experts) + pass.needed * compute.expert_seconds;
            let (read, compute) = (each(disk_seconds, pass.fetched), each(computing, pass.needed));
            waited(needed, missing, read, compute)
        };

        let limit = if waiting_seconds > compute_seconds.max(overhead_seconds) {
            Limit::Disk
        } else if overhead_seconds > compute_seconds {
            Limit::Overhead
        } else if memory_seconds >= NEAR * compute_seconds {
            Limit::Memory
        } else {
            Limit::Kernels
        };
        let seconds = waiting_seconds + compute_seconds + overhead_seconds;
        Self {
            hit_rate: pass.hit_rate(),
            tokens_per_s: pass.rows / seconds,
            bytes_read_per_token: read / pass.rows,
            disk_seconds,
            waiting_seconds,
            compute_seconds,
            overhead_seconds,
            limit,
        }
    }
}

/// Seconds for which a layer that takes `needed` experts waits, of which `missing` are read on average:
/// a read takes `read` seconds, an expert computes for `compute`, and those that are there do so while
/// the others are read.
fn waited(needed: f64, missing: f64, read: f64, compute: f64) -> f64 {
    let count = needed.round().max(1.0);
    let share = (missing / count).clamp(0.0, 1.0);
    if share >= 1.0 {
        return count * read;
    }
    // Binomial: the chance of m + 1 from that of m.
    let (mut chance, mut seconds) = ((1.0 - share).powf(count), 0.0);
    for m in 0..=count as u64 {
        let m = m as f64;
        seconds += chance * (m * read - (count - m) * compute).max(0.0);
        chance *= (count - m) / (m + 1.0) * share / (1.0 - share);
    }
    seconds
}

/// A run's forecast and what it measured, side by side.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Beside {
    pub forecast: Forecast,
    pub tokens_per_s: f64,
    /// Without those that were read ahead.
    pub bytes_awaited_per_token: f64,
}

impl Beside {
    /// Of the passes that decoded, over texts of `positions` on average; None where there are
    /// none.
    pub fn of(work: &Workload, rates: &Rates<'_>, decode: &Passes, positions: f64) -> Option<Self> {
        Pass::measured(work, decode, positions).map(|pass| Self {
            forecast: Forecast::of(work, rates, &pass),
            tokens_per_s: decode.tokens_per_s(),
            bytes_awaited_per_token: decode.per_token(decode.bytes_awaited()),
        })
    }
}

impl fmt::Display for Beside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Forecast { hit_rate, tokens_per_s, bytes_read_per_token, limit, .. } = self.forecast;
        writeln!(f, "a token        forecast    measured")?;
        writeln!(f, "tokens/s   {tokens_per_s:>12.2}{:>12.2}", self.tokens_per_s)?;
        let megabytes = |bytes: f64| format!("{:.2} MB", bytes * 1e-6);
        let (forecast, measured) = (bytes_read_per_token, self.bytes_awaited_per_token);
        writeln!(f, "awaited    {:>12}{:>12}", megabytes(forecast), megabytes(measured))?;
        let hits = 100.0 * hit_rate;
        writeln!(
            f,
            "forecast for {hits:.1}% of experts not waited for, as measured; limited by {limit}"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn amounts(encoding: &str, bytes: f64) -> Amounts {
        let mut amounts = Amounts::default();
        amounts.add(encoding, bytes);
        amounts
    }

    fn work() -> Workload {
        Workload {
            layers: 10,
            routed_layers: 10,
            top_k: 2,
            dense: amounts("bf16", 1e9),
            expert: amounts("int4_g64", 1e8),
            expert_read: 1.25e8,
            expert_requests: 125.0,
            kv_per_position: 1000,
            slots: 16,
            blocks: 64,
            depth: 16,
        }
    }

    fn compute() -> ComputeFigures {
        ComputeFigures {
            threads: 2,
            memory: 10e9,
            kernels: [("bf16".to_owned(), 20e9), ("int4_g64".to_owned(), 5e9)].into(),
            layer_seconds: 1e-3,
            expert_seconds: 5e-4,
        }
    }

    fn at(hit_rate: f64, disk: f64) -> Forecast {
        let compute = compute();
        let rates = Rates { disk: DiskRate::Said(disk), compute: &compute };
        Forecast::of(&work(), &rates, &Pass::of_a_token(&work(), hit_rate))
    }

    fn close(found: f64, expected: f64) {
        assert!((found / expected - 1.0).abs() < 1e-9, "{found} instead of {expected}");
    }

    #[test]
    fn a_token_computes_and_waits_for_what_is_read() {
        // 1 GB at memory's 10 GB/s, 2 GB at the kernel's 5 GB/s, 10 ms and 10 ms of overhead.
        let resident = at(1.0, 1e9);
        close(resident.compute_seconds, 0.5);
        close(resident.overhead_seconds, 0.02);
        close(resident.tokens_per_s, 1.0 / 0.52);
        assert_eq!((resident.bytes_read_per_token, resident.limit), (0.0, Limit::Kernels));
        // 10 of 20 experts of 125 MB.
        let half = at(0.5, 1e9);
        close(half.bytes_read_per_token, 1.25e9);
        // Of a layer's two none, one or both are missing, at one in four, two and one: a read takes 125
        // ms, and the other expert computes for 20.5 of them.
        let waiting = 10.0 * (0.5 * (0.125 - 0.0205) + 0.25 * 0.25);
        close(half.waiting_seconds, waiting);
        close(half.tokens_per_s, 1.0 / (0.52 + waiting));
        assert_eq!((half.hit_rate, half.limit), (0.5, Limit::Disk));
        close(at(0.0, 1e9).waiting_seconds, 2.5);
        // Of a fast disk only what no expert computes beside is waited for.
        close(at(0.5, 100e9).waiting_seconds, 10.0 * 0.25 * 2.0 * 0.00125);
        close(work().active_bytes(), 3e9);
        close(work().uniform_hit_rate(), 0.25);
    }

    #[test]
    fn the_limit_is_named() {
        let mut compute = compute();
        let pass = Pass::of_a_token(&work(), 1.0);
        let mut limit = |change: fn(&mut ComputeFigures)| {
            change(&mut compute);
            let rates = Rates { disk: DiskRate::Said(1e9), compute: &compute };
            Forecast::of(&work(), &rates, &pass).limit
        };
        assert_eq!(limit(|_| ()), Limit::Kernels);
        assert_eq!(limit(|c| c.kernels.clear()), Limit::Memory);
        assert_eq!(limit(|c| c.layer_seconds = 1.0), Limit::Overhead);
    }

    #[test]
    fn keys_and_values_are_read_at_the_rate_of_memory() {
        let compute = compute();
        let rates = Rates { disk: DiskRate::Said(1e9), compute: &compute };
        let pass = Pass { positions: 1e6, ..Pass::of_a_token(&work(), 1.0) };
        close(Forecast::of(&work(), &rates, &pass).compute_seconds, 0.5 + 0.1);
    }

    #[test]
    fn what_was_read_ahead_is_not_waited_for() {
        let passes = Passes {
            passes: 4,
            tokens: 8,
            seconds: 2.0,
            hits: 60,
            misses: 40,
            bytes_read: 8_000_000_000,
            bytes_ahead: 500_000_000,
            ..Passes::default()
        };
        let pass = Pass::measured(&work(), &passes, 0.0).unwrap();
        assert_eq!((pass.rows, pass.needed, pass.fetched), (2.0, 25.0, 15.0));
        close(pass.hit_rate(), 0.4);
        let compute = compute();
        let rates = Rates { disk: DiskRate::Said(1e9), compute: &compute };
        let beside = Beside::of(&work(), &rates, &passes, 0.0).unwrap();
        close(beside.forecast.bytes_read_per_token, 15.0 * 1.25e8 / 2.0);
        let text = beside.to_string();
        assert!(text.contains("4.00") && text.contains("937.50 MB"), "{text}");
        assert!(text.contains("40.0% of experts not waited for"), "{text}");
        assert!(Beside::of(&work(), &rates, &Passes::default(), 0.0).is_none());
    }
}
