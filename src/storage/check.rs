//! Looking a store over: what it holds (`ls`), whether it is sound (`check`), and giving back
//! what nothing refers to (`gc`).
//!
//! Law 9: damage is found and named, block by block; looking changes nothing.

use super::disk::{BLOCK_ALIGN, DirectChoice, EngineChoice, IoBuf, IoOp, IoOptions, IoRequest};
use super::disk::{IoDone, IoService};
use super::store::{Checkpoint, Located, Store};
use crate::base::units::Bytes;
use crate::base::{BlockId, Error, Part, Result, Step};
use memmap2::MmapMut;
use serde::Serialize;
use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

/// Slots of one part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Usage {
    pub part: Part,
    pub slot_bytes: u64,
    pub slots: u64,
    pub free: u64,
}

/// What a store holds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Listing {
    pub committed: Option<Step>,
    pub checkpoints: Vec<(String, Step)>,
    pub usage: Vec<Usage>,
    pub identity: serde_json::Value,
}

impl fmt::Display for Listing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.committed {
            Some(step) => writeln!(f, "last commit: step {step}")?,
            None => writeln!(f, "last commit: none")?,
        }
        for (name, step) in &self.checkpoints {
            writeln!(f, "checkpoint {name}: step {step}")?;
        }
        for usage in &self.usage {
            let part = format!("{:?}", usage.part).to_lowercase();
            let slot = Bytes(usage.slot_bytes).to_string();
            let total = Bytes(usage.slot_bytes * usage.slots).to_string();
            let Usage { slots, free, .. } = usage;
            writeln!(f, "{part:<11} {slots:>7} slots of {slot:>11} = {total:>11}, {free} free")?;
        }
        Ok(())
    }
}

/// A block that is not what was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Damage {
    pub block: BlockId,
    pub version: Step,
    pub problem: String,
}

/// What `check` found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    pub committed: Option<Step>,
    /// Versions read: those of the last commit and of every checkpoint, each once.
    pub blocks: u64,
    pub bytes: u64,
    pub damaged: Vec<Damage>,
}

impl Report {
    pub fn is_sound(&self) -> bool {
        self.damaged.is_empty()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = Bytes(self.bytes);
        let bad = self.damaged.len();
        for Damage { block, version, problem } in &self.damaged {
            writeln!(f, "{block} version {version}: {problem}")?;
        }
        match self.committed {
            Some(step) => write!(f, "step {step}: {} blocks, {bytes}, {bad} damaged", self.blocks),
            None => write!(f, "no commit yet; nothing to check"),
        }
    }
}

/// What `gc` gave back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Reclaimed {
    pub usage: Vec<Usage>,
    pub free_bytes: u64,
}

impl fmt::Display for Reclaimed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of reserved space are free for new versions", Bytes(self.free_bytes))
    }
}

impl Store {
    /// What the store holds.
    pub fn list(&self) -> Listing {
        let usage = self.usage();
        Listing {
            committed: self.committed(),
            checkpoints: self.checkpoints(),
            usage: usage.into_iter().map(Usage::from).collect(),
            identity: self.spec().identity.clone(),
        }
    }

    /// Reads every block of the last commit and of the checkpoints, and compares checksums.
    ///
    /// # Errors
    /// `Io` if the files cannot be opened; damage is in the report.
    pub fn check(&self) -> Result<Report> {
        let mut report = Report { committed: self.committed(), ..Report::default() };
        let mut views: Vec<Checkpoint> = Vec::new();
        if report.committed.is_some() {
            views.push(self.last_commit()?);
        }
        for (name, _) in self.checkpoints() {
            views.push(self.open_checkpoint(&name)?);
        }
        let mut seen = HashSet::new();
        let mut blocks: Vec<(BlockId, Located)> = views
            .iter()
            .flat_map(Checkpoint::blocks)
            .filter(|b| seen.insert((b.0, b.1.version)))
            .collect();
        blocks.sort_by_key(|(_, located)| (located.extent.file, located.extent.offset));
        let mut reader = Reader::start(self, &blocks)?;
        for (block, located) in blocks {
            let outcome =
                reader.read(&located).and_then(|crc| self.verify_crc(block, &located, crc));
            report.blocks += 1;
            report.bytes += located.extent.len;
            if let Err(e) = outcome {
                let problem = e.to_string();
                report.damaged.push(Damage { block, version: located.version, problem });
            }
        }
        Ok(report)
    }

    /// Gives back what neither the last commit nor a checkpoint refers to: opening has found it,
    /// this makes it durable.
    ///
    /// # Errors
    /// `Io` if the index cannot be written.
    pub fn gc(&self) -> Result<Reclaimed> {
        self.settle_index()?;
        let usage: Vec<Usage> = self.usage().into_iter().map(Usage::from).collect();
        let free_bytes = usage.iter().map(|usage| usage.free * usage.slot_bytes).sum();
        Ok(Reclaimed { usage, free_bytes })
    }
}

impl From<(Part, u64, u64, u64)> for Usage {
    fn from((part, slot_bytes, slots, free): (Part, u64, u64, u64)) -> Self {
        Self { part, slot_bytes, slots, free }
    }
}

/// Reads one block after the other; its chunks keep the device busy.
struct Reader {
    io: IoService,
    memory: MmapMut,
    answers: crossbeam_channel::Receiver<IoDone>,
}

impl Reader {
    fn start(store: &Store, blocks: &[(BlockId, Located)]) -> Result<Self> {
        let longest = blocks.iter().map(|(_, located)| located.extent.len).max();
        let bytes = longest.unwrap_or(BLOCK_ALIGN) as usize;
        let memory = MmapMut::map_anon(bytes)
            .map_err(|e| Error::io("cannot map a buffer for checking", e))?;
        let (tell, answers) = crossbeam_channel::bounded(1);
        let on_done = Arc::new(move |done| {
            // The reader waits for every answer, so it is there to take this one.
            let _ = tell.send(done);
        });
        let options = IoOptions {
            engine: EngineChoice::Auto,
            direct: DirectChoice::Auto,
            register: false,
            ..IoOptions::default()
        };
        let io = IoService::start(&options, store.files(), None, on_done)?;
        Ok(Self { io, memory, answers })
    }

    fn read(&mut self, located: &Located) -> Result<u32> {
        // SAFETY: the mapping lives as long as this reader, which waits for the answer below and
        // makes one request at a time.
        let buf = unsafe { IoBuf::new(self.memory.as_mut_ptr(), self.memory.len()) };
        let request = IoRequest {
            tag: 0,
            op: IoOp::Read,
            extent: located.extent,
            buf,
            urgency: 0,
            check: true,
            lift: None,
        };
        self.io.submit(request)?;
        match self.answers.recv() {
            Ok(done) => done.result,
            Err(_) => Err(Error::bug("the io service ended without an answer")),
        }
    }
}
