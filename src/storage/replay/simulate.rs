//! Serving a trace's accesses from a cache under some policy, on demand alone.
//!
//! The blocks of one ticket are held together; leases of different tickets do not overlap, and
//! nothing is prefetched: so the figures rank policies, and bytes come close to a run's.

use super::trace::{Record, Trace};
use crate::base::units::Bytes;
use crate::base::{BlockId, Error, Part, Result};
use crate::storage::hierarchy::{Access, BlockMap, SlotClass};
use crate::storage::policy::{Planned, Policy, PolicyConfig, PolicyKind};
use serde::Serialize;
use std::fmt;

/// What a policy made of the accesses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Accesses that needed content.
    pub reads: u64,
    pub hits: u64,
    /// Accesses that made content.
    pub creates: u64,
    pub bytes_read: u64,
    pub bytes_written: u64,
}

impl Counts {
    /// Hits by reads; 1 where nothing was read.
    pub fn hit_rate(&self) -> f64 {
        if self.reads == 0 { 1.0 } else { self.hits as f64 / self.reads as f64 }
    }

    fn add(&mut self, other: &Self) {
        self.reads += other.reads;
        self.hits += other.hits;
        self.creates += other.creates;
        self.bytes_read += other.bytes_read;
        self.bytes_written += other.bytes_written;
    }
}

/// One policy's line.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    pub policy: String,
    pub hit_rate: f64,
    pub total: Counts,
    pub parts: Vec<(Part, Counts)>,
}

/// The policies side by side, the optimum last.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Comparison {
    /// The slots that were simulated.
    pub classes: Vec<SlotClass>,
    pub rows: Vec<Row>,
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for class in &self.classes {
            let size = Bytes(class.slot_bytes);
            writeln!(f, "{:?}: {} slots of {size}", class.part, class.slots)?;
        }
        writeln!(
            f,
            "{:<10} {:>8} {:>12} {:>12} {:>12}",
            "policy", "hits", "hit rate", "read", "written"
        )?;
        for (i, row) in self.rows.iter().enumerate() {
            let rate = format!("{:.2}%", 100.0 * row.hit_rate);
            let read = Bytes(row.total.bytes_read).to_string();
            let written = Bytes(row.total.bytes_written).to_string();
            write!(
                f,
                "{:<10} {:>8} {rate:>12} {read:>12} {written:>12}",
                row.policy, row.total.hits
            )?;
            if i + 1 < self.rows.len() {
                writeln!(f)?;
            }
        }
        Ok(())
    }
}

/// Replays `trace` through every policy (with the parameters of `config`) and Belady's optimum,
/// with `scale` times the slots that it was recorded with.
///
/// # Errors
/// `Config` for a bad scale or bad parameters; `Budget` if a ticket's blocks do not fit.
pub fn compare(trace: &Trace, config: &PolicyConfig, scale: f64) -> Result<Comparison> {
    config.check()?;
    if !(scale > 0.0 && scale.is_finite()) {
        return Err(Error::config("the scale of the cache must be over 0").with("scale", scale));
    }
    let mut classes = trace.classes.clone();
    for class in &mut classes {
        class.slots = (f64::from(class.slots) * scale).round().min(f64::from(u32::MAX)) as u32;
    }
    let mut rows = Vec::new();
    for kind in PolicyKind::ALL {
        let config = PolicyConfig { kind, ..config.clone() };
        rows.push(row(trace, &classes, kind.name(), None, |class| config.build(class.slots))?);
    }
    let future = next_reads(trace);
    rows.push(row(trace, &classes, "belady", Some(&future), |_| Box::new(Planned::default()))?);
    Ok(Comparison { classes, rows })
}

fn row(
    trace: &Trace,
    classes: &[SlotClass],
    name: &str,
    future: Option<&[u64]>,
    build: impl Fn(&SlotClass) -> Box<dyn Policy>,
) -> Result<Row> {
    let mut total = Counts::default();
    let mut parts = Vec::new();
    for class in classes {
        let mut cache = Cache::new(*class, build(class));
        cache.serve(trace, future)?;
        total.add(&cache.counts);
        parts.push((class.part, cache.counts));
    }
    Ok(Row { policy: name.to_owned(), hit_rate: total.hit_rate(), total, parts })
}

/// For each access the position of the next one that needs the block's content from before;
/// `u64::MAX` where there is none, for such a block may go at no cost.
fn next_reads(trace: &Trace) -> Vec<u64> {
    let mut next = BlockMap::default();
    let mut future = vec![u64::MAX; trace.records.len()];
    for (i, record) in trace.records.iter().enumerate().rev() {
        match record {
            Record::Access { block, access, .. } => {
                let this = if *access == Access::Create { u64::MAX } else { i as u64 };
                future[i] = next.insert(*block, this).unwrap_or(u64::MAX);
            }
            Record::Discard { block } => {
                next.insert(*block, u64::MAX);
            }
            Record::Dirty { .. } | Record::Flush => {}
        }
    }
    future
}

#[derive(Debug, Clone, Copy)]
struct Resident {
    dirty: bool,
    next_use: u64,
}

struct Cache {
    class: SlotClass,
    policy: Box<dyn Policy>,
    residents: BlockMap<Resident>,
    /// The ticket whose blocks are held, and these blocks.
    ticket: u64,
    held: Vec<BlockId>,
    counts: Counts,
}

impl Cache {
    fn new(class: SlotClass, policy: Box<dyn Policy>) -> Self {
        Self {
            class,
            policy,
            residents: BlockMap::default(),
            ticket: 0,
            held: Vec::new(),
            counts: Counts::default(),
        }
    }

    fn serve(&mut self, trace: &Trace, future: Option<&[u64]>) -> Result<()> {
        for (i, record) in trace.records.iter().enumerate() {
            match *record {
                Record::Access { block, access, ticket, next_use } => {
                    if ticket != self.ticket {
                        self.let_go();
                        self.ticket = ticket;
                    }
                    if block.part == self.class.part {
                        let next_use = future.map_or(next_use, |future| future[i]);
                        self.access(block, access, next_use)?;
                    }
                }
                Record::Dirty { block } if block.part == self.class.part => self.dirty(block),
                Record::Discard { block } if block.part == self.class.part => self.discard(block),
                Record::Dirty { .. } | Record::Discard { .. } => {}
                Record::Flush => self.flush(),
            }
        }
        Ok(())
    }

    fn let_go(&mut self) {
        for block in self.held.drain(..) {
            if let Some(resident) = self.residents.get(&block) {
                self.policy.offer(block, resident.next_use);
            }
        }
    }

    fn access(&mut self, block: BlockId, access: Access, next_use: u64) -> Result<()> {
        self.policy.accessed(block);
        let creates = access == Access::Create;
        self.counts.creates += u64::from(creates);
        self.counts.reads += u64::from(!creates);
        if let Some(resident) = self.residents.get_mut(&block) {
            resident.next_use = next_use;
            self.counts.hits += u64::from(!creates);
            if !self.held.contains(&block) {
                self.policy.withdraw(block);
                self.held.push(block);
            }
            return Ok(());
        }
        if self.residents.len() as u64 >= u64::from(self.class.slots) {
            self.make_room(next_use)?;
        }
        if !creates {
            self.counts.bytes_read += self.class.slot_bytes;
        }
        self.residents.insert(block, Resident { dirty: false, next_use });
        self.held.push(block);
        Ok(())
    }

    fn make_room(&mut self, next_use: u64) -> Result<()> {
        let Some(victim) = self.policy.victim_for(next_use) else {
            let text = "a ticket of the trace does not fit the simulated cache: give it more slots";
            return Err(Error::new(crate::base::ErrorKind::Budget, text)
                .with("slots", self.class.slots)
                .with("ticket", self.ticket));
        };
        self.policy.withdraw(victim);
        self.policy.evicted(victim);
        if self.residents.remove(&victim).is_some_and(|resident| resident.dirty) {
            self.counts.bytes_written += self.class.slot_bytes;
        }
        Ok(())
    }

    fn dirty(&mut self, block: BlockId) {
        match self.residents.get_mut(&block) {
            Some(resident) => resident.dirty = true,
            // Evicted here before the run's lease ended: it would have been written then.
            None => self.counts.bytes_written += self.class.slot_bytes,
        }
    }

    fn discard(&mut self, block: BlockId) {
        if self.residents.remove(&block).is_none() {
            return;
        }
        if let Some(place) = self.held.iter().position(|held| *held == block) {
            self.held.swap_remove(place);
        } else {
            self.policy.withdraw(block);
        }
        self.policy.evicted(block);
    }

    fn flush(&mut self) {
        if !self.class.part.is_durable() {
            return;
        }
        for resident in self.residents.values_mut() {
            if std::mem::take(&mut resident.dirty) {
                self.counts.bytes_written += self.class.slot_bytes;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sweeps(blocks: usize, slots: u32, times: usize) -> Trace {
        let class = SlotClass { part: Part::Weights, slot_bytes: 4096, slots };
        let mut records = Vec::new();
        for at in 0..blocks * times {
            let block = BlockId::weights(0, at % blocks);
            let next_use = (at + blocks) as u64;
            records.push(Record::Access {
                block,
                access: Access::Read,
                ticket: at as u64,
                next_use,
            });
        }
        Trace { classes: vec![class], records }
    }

    fn rate(comparison: &Comparison, policy: &str) -> f64 {
        comparison.rows.iter().find(|row| row.policy == policy).unwrap().hit_rate
    }

    #[test]
    fn in_a_sweep_planned_is_the_optimum_and_lru_never_hits() {
        let comparison = compare(&sweeps(10, 5, 20), &PolicyConfig::default(), 1.0).unwrap();
        assert_eq!(rate(&comparison, "lru"), 0.0);
        assert_eq!(rate(&comparison, "planned"), rate(&comparison, "belady"));
        assert!(rate(&comparison, "planned") > 0.4, "{comparison}");
        let full = compare(&sweeps(10, 5, 20), &PolicyConfig::default(), 2.0).unwrap();
        assert_eq!(rate(&full, "lru"), 0.95);
    }

    #[test]
    fn nothing_beats_belady() {
        let mut trace = sweeps(12, 5, 1);
        trace.records.clear();
        let mut state = 1u64;
        for ticket in 0..4000 {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            // Squared, so that low experts are asked for more often.
            let draw = (state >> 33) as f64 / (1u64 << 31) as f64;
            let block = BlockId::weights(0, (draw * draw * 12.0) as usize);
            let access = Access::Read;
            trace.records.push(Record::Access { block, access, ticket, next_use: u64::MAX });
        }
        let comparison = compare(&trace, &PolicyConfig::default(), 1.0).unwrap();
        for row in &comparison.rows {
            assert!(row.hit_rate <= rate(&comparison, "belady"), "{comparison}");
        }
        assert!(rate(&comparison, "lfu") > rate(&comparison, "lru") - 0.05, "{comparison}");
    }

    #[test]
    fn written_bytes_are_counted() {
        let block = |expert| BlockId::weights(0, expert);
        let access = |expert, access, ticket| Record::Access {
            block: block(expert),
            access,
            ticket,
            next_use: u64::MAX,
        };
        let mut trace = sweeps(1, 1, 0);
        trace.records = vec![
            access(0, Access::Create, 1),
            Record::Dirty { block: block(0) },
            Record::Flush,
            Record::Flush,
            access(0, Access::Update, 2),
            Record::Dirty { block: block(0) },
            access(1, Access::Create, 3),
            Record::Discard { block: block(1) },
            access(2, Access::Read, 4),
        ];
        let comparison = compare(&trace, &PolicyConfig::default(), 1.0).unwrap();
        for row in comparison.rows {
            let expected =
                Counts { reads: 2, hits: 1, creates: 2, bytes_read: 4096, bytes_written: 8192 };
            assert_eq!(row.total, expected, "{}", row.policy);
        }
    }

    #[test]
    fn a_cache_too_small_for_a_ticket_is_refused() {
        let mut trace = sweeps(4, 1, 1);
        for record in &mut trace.records {
            if let Record::Access { ticket, .. } = record {
                *ticket = 9;
            }
        }
        assert!(compare(&trace, &PolicyConfig::default(), 1.0).is_err());
        assert!(compare(&trace, &PolicyConfig::default(), 0.0).is_err());
    }
}
