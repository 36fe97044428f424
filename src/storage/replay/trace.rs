//! The trace file: a few bytes an access.
//!
//! A record starts with a tag byte: its kind in the low 3 bits, the part in the next 3, then one
//! bit for "the ticket of the access before" and one for "never used again". Numbers follow in
//! LEB128, differences zigzagged first. Traces may be joined end to end: a header may come again.

use crate::base::{BlockId, Error, Part, Result};
use crate::storage::hierarchy::{Access, Outcome, SlotClass};
use std::path::Path;

const READ: u8 = 0;
const UPDATE: u8 = 1;
const CREATE: u8 = 2;
const DIRTY: u8 = 3;
const DISCARD: u8 = 4;
const FLUSH: u8 = 5;
const HEADER: u8 = 7;
const SAME_TICKET: u8 = 1 << 6;
const NEVER: u8 = 1 << 7;

/// The first bytes of a header, tag included.
const MAGIC: &[u8; 12] = b"\x07semoe-trace";

/// One thing that happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Record {
    /// `ticket` asked for `block`; the planner expected the next use at `next_use`.
    Access { block: BlockId, access: Access, ticket: u64, next_use: u64 },
    /// The block was changed.
    Dirty { block: BlockId },
    /// The block was dropped unwritten.
    Discard { block: BlockId },
    /// Every dirty durable block was written.
    Flush,
}

/// Numbers to which the next differences refer.
#[derive(Debug, Default)]
struct Last {
    ticket: u64,
    next_use: u64,
}

/// Turns accesses into bytes.
#[derive(Debug)]
pub struct Recorder {
    bytes: Vec<u8>,
    last: Last,
}

impl Recorder {
    /// A recorder for a cache with these slots.
    pub fn new(classes: &[SlotClass]) -> Self {
        let mut bytes = MAGIC.to_vec();
        bytes.push(classes.len() as u8);
        for class in classes {
            bytes.push(class.part as u8);
            put(&mut bytes, class.slot_bytes);
            put(&mut bytes, u64::from(class.slots));
        }
        // No access has this ticket, so the first one names its own.
        Self { bytes, last: Last { ticket: u64::MAX, next_use: 0 } }
    }

    /// The trace.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    pub fn access(&mut self, ticket: u64, block: BlockId, access: Access, next_use: u64) {
        let mut tag = match access {
            Access::Read => READ,
            Access::Update => UPDATE,
            Access::Create => CREATE,
        };
        let same_ticket = ticket == self.last.ticket;
        if same_ticket {
            tag |= SAME_TICKET;
        }
        if next_use == u64::MAX {
            tag |= NEVER;
        }
        self.block(tag, block);
        if !same_ticket {
            let from = std::mem::replace(&mut self.last.ticket, ticket);
            put(&mut self.bytes, zigzag(ticket.wrapping_sub(from)));
        }
        if next_use != u64::MAX {
            let from = std::mem::replace(&mut self.last.next_use, next_use);
            put(&mut self.bytes, zigzag(next_use.wrapping_sub(from)));
        }
    }

    pub fn outcome(&mut self, block: BlockId, access: Access, outcome: Outcome) {
        match outcome {
            Outcome::Dirty => self.block(DIRTY, block),
            Outcome::Discard => self.block(DISCARD, block),
            Outcome::Clean if access == Access::Create => self.block(DISCARD, block),
            Outcome::Clean => {}
        }
    }

    pub fn flush(&mut self) {
        self.bytes.push(FLUSH);
    }

    fn block(&mut self, tag: u8, block: BlockId) {
        self.bytes.push(tag | (block.part as u8) << 3);
        put(&mut self.bytes, u64::from(block.layer));
        put(&mut self.bytes, u64::from(block.expert));
    }
}

fn put(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

fn zigzag(difference: u64) -> u64 {
    let signed = difference as i64;
    ((signed << 1) ^ (signed >> 63)) as u64
}

fn unzigzag(number: u64) -> u64 {
    ((number >> 1) as i64 ^ -((number & 1) as i64)) as u64
}

/// A trace read back.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Trace {
    /// The cache it was recorded with.
    pub classes: Vec<SlotClass>,
    pub records: Vec<Record>,
}

impl Trace {
    /// Reads a trace file.
    ///
    /// # Errors
    /// `Input` if the file cannot be read or is no trace, `Corrupt` if a record makes no sense.
    pub fn read(path: &Path) -> Result<Self> {
        let named = |e: Error| e.with("file", path.display());
        let bytes = std::fs::read(path)
            .map_err(|e| named(Error::input("the cache trace cannot be read").from_source(e)))?;
        Self::parse(&bytes).map_err(named)
    }

    /// Parses the bytes of a trace. A last record that a kill cut short is left out.
    ///
    /// # Errors
    /// As [`Trace::read`].
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        if !bytes.starts_with(MAGIC) {
            return Err(Error::input("not a cache trace: record one with a run of semoe train"));
        }
        let mut reader = Reader { bytes, at: 0, last: Last::default() };
        let mut trace = Self::default();
        while reader.at < bytes.len() {
            let start = reader.at;
            match reader.next(&mut trace) {
                Some(Ok(())) => {}
                Some(Err(what)) => {
                    return Err(Error::corrupt(what).with("offset", start));
                }
                None => break,
            }
        }
        Ok(trace)
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    last: Last,
}

impl Reader<'_> {
    /// Appends the next record; `None` at an end in the middle of one.
    fn next(&mut self, trace: &mut Trace) -> Option<Result<(), &'static str>> {
        let tag = self.byte()?;
        let kind = tag & 7;
        let record = match kind {
            HEADER => return self.header(trace),
            FLUSH => Record::Flush,
            READ..=DISCARD => {
                let Some(part) = Part::ALL.get(usize::from(tag >> 3 & 7)).copied() else {
                    return Some(Err("the cache trace names an unknown part"));
                };
                let (layer, expert) = (self.number()?, self.number()?);
                let (Ok(layer), Ok(expert)) = (u16::try_from(layer), u16::try_from(expert)) else {
                    return Some(Err("the cache trace names an impossible block"));
                };
                self.of_block(tag, BlockId { layer, expert, part })?
            }
            _ => return Some(Err("the cache trace has an unknown record")),
        };
        trace.records.push(record);
        Some(Ok(()))
    }

    fn of_block(&mut self, tag: u8, block: BlockId) -> Option<Record> {
        let access = match tag & 7 {
            DIRTY => return Some(Record::Dirty { block }),
            DISCARD => return Some(Record::Discard { block }),
            READ => Access::Read,
            UPDATE => Access::Update,
            _ => Access::Create,
        };
        if tag & SAME_TICKET == 0 {
            self.last.ticket = self.last.ticket.wrapping_add(unzigzag(self.number()?));
        }
        let mut next_use = u64::MAX;
        if tag & NEVER == 0 {
            self.last.next_use = self.last.next_use.wrapping_add(unzigzag(self.number()?));
            next_use = self.last.next_use;
        }
        Some(Record::Access { block, access, ticket: self.last.ticket, next_use })
    }

    fn header(&mut self, trace: &mut Trace) -> Option<Result<(), &'static str>> {
        let rest = self.bytes.get(self.at..self.at + MAGIC.len() - 1)?;
        if rest != &MAGIC[1..] {
            return Some(Err("the cache trace has an unknown record"));
        }
        self.at += rest.len();
        let mut classes = Vec::new();
        for _ in 0..self.byte()? {
            let part = self.byte()?;
            let (slot_bytes, slots) = (self.number()?, self.number()?);
            let part = Part::ALL.get(usize::from(part)).copied();
            let (Some(part), Ok(slots)) = (part, u32::try_from(slots)) else {
                return Some(Err("the cache trace has a bad header"));
            };
            classes.push(SlotClass { part, slot_bytes, slots });
        }
        self.last = Last { ticket: u64::MAX, next_use: 0 };
        trace.classes = classes;
        Some(Ok(()))
    }

    fn byte(&mut self) -> Option<u8> {
        let byte = self.bytes.get(self.at).copied()?;
        self.at += 1;
        Some(byte)
    }

    fn number(&mut self) -> Option<u64> {
        let mut number = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            number |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(number);
            }
        }
        Some(number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CLASS: SlotClass = SlotClass { part: Part::Weights, slot_bytes: 1 << 20, slots: 7 };

    fn write(recorder: &mut Recorder, record: &Record) {
        match *record {
            Record::Access { block, access, ticket, next_use } => {
                recorder.access(ticket, block, access, next_use);
            }
            Record::Dirty { block } => recorder.outcome(block, Access::Update, Outcome::Dirty),
            Record::Discard { block } => recorder.outcome(block, Access::Read, Outcome::Discard),
            Record::Flush => recorder.flush(),
        }
    }

    fn record() -> impl Strategy<Value = Record> {
        let block = (any::<u16>(), any::<u16>(), 0..Part::ALL.len())
            .prop_map(|(l, e, p)| BlockId { layer: l, expert: e, part: Part::ALL[p] });
        let access = prop_oneof![Just(Access::Read), Just(Access::Update), Just(Access::Create)];
        let time = prop_oneof![any::<u64>(), Just(u64::MAX), 0..100u64];
        prop_oneof![
            (block.clone(), access, time.clone(), time).prop_map(
                |(block, access, ticket, next_use)| Record::Access {
                    block,
                    access,
                    ticket,
                    next_use
                }
            ),
            block.clone().prop_map(|block| Record::Dirty { block }),
            block.prop_map(|block| Record::Discard { block }),
            Just(Record::Flush),
        ]
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(records in prop::collection::vec(record(), 0..60), resumed in any::<bool>()) {
            let mut bytes = Vec::new();
            let mut recorder = Recorder::new(&[CLASS]);
            for (i, record) in records.iter().enumerate() {
                if resumed && i == records.len() / 2 {
                    bytes.extend(recorder.into_bytes());
                    recorder = Recorder::new(&[CLASS]);
                }
                write(&mut recorder, record);
            }
            bytes.extend(recorder.into_bytes());
            let trace = Trace::parse(&bytes).unwrap();
            prop_assert_eq!(&trace.records, &records);
            prop_assert_eq!(&trace.classes, &[CLASS]);
            // A cut loses at most the record that it hits.
            for cut in MAGIC.len()..bytes.len() {
                let trace = Trace::parse(&bytes[..cut]).unwrap();
                prop_assert!(records.starts_with(&trace.records));
            }
        }

        #[test]
        fn hostile_bytes_end_in_an_error_or_a_trace(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut all = MAGIC.to_vec();
            all.extend(bytes);
            let _ = Trace::parse(&all);
        }
    }

    #[test]
    fn an_access_costs_a_few_bytes() {
        let mut recorder = Recorder::new(&[CLASS]);
        for ticket in 0..1000 {
            let block = BlockId::weights(ticket / 64 % 16, ticket % 64);
            recorder.access(ticket as u64, block, Access::Read, ticket as u64 + 1000);
        }
        assert!(recorder.into_bytes().len() <= 6 * 1000);
    }

    #[test]
    fn other_files_are_refused() {
        assert!(Trace::parse(b"PK\x03\x04").is_err());
        let mut bytes = Recorder::new(&[CLASS]).into_bytes();
        bytes.extend([READ | 7 << 3, 0, 0]);
        let refused = Trace::parse(&bytes).unwrap_err().to_string();
        assert!(refused.contains("unknown part"), "{refused}");
    }
}
