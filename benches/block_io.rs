//! Block reads through store, hierarchy and io service, checksums compared, against raw O_DIRECT
//! reads of the same blocks of the same file in the same run. The promise is 85% or more; the
//! benchmark fails if it is broken.
//!
//! Sizes are those of real experts: bf16 weights of 512 x 1024 and of OLMoE's 2048 x 1024, and the
//! f32 masters and moments of the first. Rounds alternate, so that a disk that slows down slows
//! both.

use crossbeam_channel::{Receiver, unbounded};
use semoe::base::{BlockId, Error, Part, Result};
use semoe::config::Config;
use semoe::storage::arena::Arena;
use semoe::storage::disk::{IoBuf, IoDone, IoOp, IoRequest, IoService};
use semoe::storage::hierarchy::{Access, Event, Hierarchy, Move, Outcome, SlotClass, SlotId, Want};
use semoe::storage::policy::{PolicyConfig, PolicyKind};
use semoe::storage::store::{ClassSpec, Located, Store, StoreOptions, StoreSpec};
use semoe::train::launch::io_options;
use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

const TARGET: f64 = 0.85;
/// Bytes of blocks read in a round.
const ROUND: u64 = 768 << 20;
const ROUNDS: usize = 5;
/// Blocks under way at once, raw and through the store.
const DEPTH: u32 = 16;

fn block(index: u64) -> BlockId {
    BlockId::weights(0, index as usize)
}

/// A store of blocks of one size, written once.
struct Bench {
    store: Store,
    io: IoService,
    done: Receiver<IoDone>,
    arena: Arc<Arena>,
    bytes: u64,
    blocks: u64,
}

impl Bench {
    fn new(dir: &Path, bytes: u64, config: &Config) -> Result<Self> {
        let blocks = ROUND / bytes;
        let spec = StoreSpec {
            classes: vec![ClassSpec { part: Part::Weights, block_bytes: bytes, blocks }],
            keep: 0,
            identity: serde_json::json!({}),
        };
        let store = Store::create(dir, &spec, &StoreOptions { index_cache: 8 << 20 })?;
        let arena = Arena::new(&[class(bytes)])?;
        let (sender, done) = unbounded();
        let on_done = Arc::new(move |finished: IoDone| drop(sender.send(finished)));
        let whole = arena.whole();
        let registered = Some((whole.ptr, whole.len));
        let io = IoService::start(&io_options(config), store.files(), registered, on_done)?;
        let bench = Self { store, io, done, arena, bytes, blocks };
        bench.write()?;
        Ok(bench)
    }

    fn request(&self, tag: u64, op: IoOp, slot: SlotId) -> Result<IoRequest> {
        let block = block(tag);
        let extent = match op {
            IoOp::Write => self.store.place(block, 0)?,
            IoOp::Read => self.located(block)?.extent,
        };
        let bytes = self.arena.slot(slot)?;
        // SAFETY: the arena outlives the service, and a slot serves one request at a time.
        let buf = unsafe { IoBuf::new(bytes.ptr, bytes.len) };
        Ok(IoRequest { tag, op, extent, buf, urgency: 0, check: true, lift: None })
    }

    fn located(&self, block: BlockId) -> Result<Located> {
        self.store.locate(block)?.ok_or_else(|| Error::bug("a block was not written"))
    }

    fn write(&self) -> Result<()> {
        for index in 0..DEPTH {
            let slot = self.arena.slot(SlotId { part: Part::Weights, index })?;
            // SAFETY: nothing is under way yet.
            let bytes = unsafe { slot.as_mut_slice() };
            bytes.iter_mut().enumerate().for_each(|(at, byte)| *byte = (at ^ at >> 11) as u8);
        }
        let mut under_way = 0;
        for tag in 0..self.blocks {
            if under_way == DEPTH {
                self.wrote()?;
                under_way -= 1;
            }
            let slot = SlotId { part: Part::Weights, index: tag as u32 % DEPTH };
            self.io.submit(self.request(tag, IoOp::Write, slot)?)?;
            under_way += 1;
        }
        (0..under_way).try_for_each(|_| self.wrote())
    }

    fn wrote(&self) -> Result<()> {
        let done = self.done.recv().map_err(|_| Error::bug("the io thread went away"))?;
        self.store.written(block(done.tag), 0, done.result?, 0)
    }

    /// Reads every block as the prefetcher does: acquired, loaded, verified, granted, released.
    fn through_the_store(&self) -> Result<f64> {
        let start = Instant::now();
        let mut hierarchy =
            Hierarchy::new(&[class(self.bytes)], &PolicyConfig::of(PolicyKind::Planned))?;
        let mut moves = Vec::new();
        let mut loading: HashMap<u64, Located> = HashMap::new();
        let (mut asked, mut granted) = (0, 0);
        while granted < self.blocks {
            while asked < self.blocks && asked - granted < u64::from(DEPTH) {
                let want = Want { block: block(asked), access: Access::Read, next_use: u64::MAX };
                let wants = vec![want];
                hierarchy
                    .on(Event::Acquire { ticket: asked, priority: asked, wants }, &mut moves)?;
                asked += 1;
            }
            while let Some(step) = moves.pop() {
                match step {
                    Move::Load { block, slot, .. } => {
                        let tag = block.expert as u64;
                        loading.insert(tag, self.located(block)?);
                        self.io.submit(self.request(tag, IoOp::Read, slot)?)?;
                    }
                    Move::Grant { ticket, .. } => {
                        granted += 1;
                        let outcomes = vec![(block(ticket), Outcome::Clean)];
                        hierarchy.on(Event::Release { ticket, outcomes }, &mut moves)?;
                    }
                    other => {
                        return Err(
                            Error::bug("an unforeseen move").with("move", format!("{other:?}"))
                        );
                    }
                }
            }
            if !loading.is_empty() {
                let done = self.done.recv().map_err(|_| Error::bug("the io thread went away"))?;
                let located =
                    loading.remove(&done.tag).ok_or_else(|| Error::bug("a stray answer"))?;
                let block = block(done.tag);
                self.store.verify_crc(block, &located, done.result?)?;
                hierarchy.on(Event::Loaded { block }, &mut moves)?;
            }
        }
        Ok((self.blocks * self.bytes) as f64 / start.elapsed().as_secs_f64())
    }

    /// Reads the same extents with plain preads, as many at once, and looks at nothing.
    fn raw(&self) -> Result<f64> {
        let path = &self.store.files()[0].path;
        let file = File::options()
            .read(true)
            .custom_flags(libc::O_DIRECT)
            .open(path)
            .map_err(|e| Error::io("opening the data file", e))?;
        let offsets = (0..self.blocks)
            .map(|index| Ok(self.located(block(index))?.extent.offset))
            .collect::<Result<Vec<u64>>>()?;
        let next = AtomicUsize::new(0);
        let start = Instant::now();
        std::thread::scope(|scope| {
            let readers: Vec<_> = (0..DEPTH)
                .map(|index| {
                    let (offsets, next, file) = (&offsets, &next, &file);
                    scope.spawn(move || -> Result<()> {
                        let slot = self.arena.slot(SlotId { part: Part::Weights, index })?;
                        // SAFETY: one thread a slot, and nothing else is under way.
                        let bytes = unsafe { slot.as_mut_slice() };
                        while let Some(offset) = offsets.get(next.fetch_add(1, Ordering::Relaxed)) {
                            file.read_exact_at(bytes, *offset)
                                .map_err(|e| Error::io("reading the data file", e))?;
                        }
                        Ok(())
                    })
                })
                .collect();
            readers.into_iter().try_for_each(|reader| match reader.join() {
                Ok(read) => read,
                Err(_) => Err(Error::bug("a reader panicked")),
            })
        })?;
        Ok((self.blocks * self.bytes) as f64 / start.elapsed().as_secs_f64())
    }
}

fn class(bytes: u64) -> SlotClass {
    SlotClass { part: Part::Weights, slot_bytes: bytes, slots: DEPTH }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn measure(name: &str, bytes: u64, config: &Config) -> Result<bool> {
    // Where the build is, unless the caller names the disk that matters.
    let parent =
        std::env::var("SEMOE_BENCH_DIR").unwrap_or_else(|_| env!("CARGO_TARGET_TMPDIR").to_owned());
    let dir = tempfile::tempdir_in(parent).map_err(|e| Error::io("making a folder", e))?;
    let bench = Bench::new(&dir.path().join("store"), bytes, config)?;
    let (mut raw, mut ours) = (Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        let (plain, through) = (bench.raw()?, bench.through_the_store()?);
        // The first pass over freshly written blocks is the disk's own affair.
        if round > 0 {
            raw.push(plain);
            ours.push(through);
        }
    }
    let ratio = median(ours.iter().zip(&raw).map(|(ours, raw)| ours / raw).collect());
    println!(
        "block reads, {name}: {:.3} GB/s through the store, {:.3} GB/s raw: {:.1}% (target {:.0}%)",
        median(ours) / 1e9,
        median(raw) / 1e9,
        ratio * 100.0,
        TARGET * 100.0,
    );
    Ok(ratio >= TARGET)
}

fn main() -> ExitCode {
    let config = match Config::load("configs/demo.toml".as_ref(), &[]) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    let sizes =
        [("3 MiB weights", 3 << 20), ("12 MiB weights", 12 << 20), ("18 MiB states", 18 << 20)];
    let mut kept = true;
    for (name, bytes) in sizes {
        match measure(name, bytes, &config) {
            Ok(met) => kept &= met,
            Err(error) => {
                eprintln!("{error}");
                return ExitCode::FAILURE;
            }
        }
    }
    if kept { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
