//! Repacking a checkpoint to a store, streaming: one expert, or a slice of one dense tensor, is in
//! memory at a time.

use super::log::{Done, Log};
use super::plan::{DenseJob, ExpertJob, Plan, rows_and_cols};
use super::recode::{Deviation, recode};
use super::{INDEX, Index, VERSION};
use crate::base::behind::give_back;
use crate::base::file::{read_json, write_whole};
use crate::base::{Error, Result, checksum};
use crate::model::checkpoint::entries::{Entries, Origin};
use crate::model::checkpoint::source::Source;
use crate::model::checkpoint::table::Piece;
use crate::model::config::Precision;
use crate::model::kernels::linear::{AlignedBytes, Encoding};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// What to change on the way; None leaves weights as they are encoded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Options {
    pub experts: Option<Encoding>,
    /// For matrices outside the experts but routers and gates, which choose experts.
    pub dense: Option<Encoding>,
}

/// How far a layer's experts are from those imported: √(Σ (new − old)² / Σ old²).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LayerDeviation {
    pub layer: usize,
    pub relative_rms: f64,
}

/// What an import did.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Imported {
    /// Bytes of the store's data files.
    pub bytes: u64,
    /// Of every layer with experts; 0 where nothing was changed.
    pub layers: Vec<LayerDeviation>,
    /// The same for the tensors outside the experts.
    pub dense: f64,
}

/// Which import a folder holds, until it is whole.
const JOB: &str = "import.json";
const LOG: &str = "import.log";
/// Files that are copied as they are, where there are any.
const BESIDE: [&str; 5] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
];
/// Bytes between two syncs: what a kill can cost.
const SYNC_EVERY: u64 = 64 << 20;

/// Writes `source` to the folder `to`, or goes on with an import that was stopped there.
/// `progress` hears of bytes written, and of all.
///
/// # Errors
/// Input: the folder holds something else, a tensor cannot be encoded as asked; Io.
pub fn import(
    source: &Source,
    to: &Path,
    options: &Options,
    progress: impl FnMut(u64, u64),
) -> Result<Imported> {
    import_syncing(source, to, options, SYNC_EVERY, progress)
}

/// As [`import`], syncing every so many bytes.
pub(super) fn import_syncing(
    source: &Source,
    to: &Path,
    options: &Options,
    sync_every: u64,
    progress: impl FnMut(u64, u64),
) -> Result<Imported> {
    let plan = Plan::new(source, options)?;
    claim(source, to, options)?;
    let (log, done) = Log::open(&to.join(LOG))?;
    let mut import = Import {
        source,
        files: open_files(to, &plan)?,
        total: plan.bytes(),
        plan,
        log,
        done,
        unsynced: 0,
        logged: 0,
        written: 0,
        sync_every,
        progress,
    };
    import.keep_what_is_good()?;
    import.run()?;
    let Import { plan, done, .. } = import;
    finish(source, to, &plan, &done)
}

/// Notes whose import the folder is; refuses a folder that is something else.
fn claim(source: &Source, to: &Path, options: &Options) -> Result<()> {
    let refuse = |what: &str| {
        Err(Error::input(format!("{} {what}; give another folder, or remove it", to.display())))
    };
    if to.join(INDEX).exists() {
        return refuse("already holds a store");
    }
    let name = |encoding: Option<Encoding>| encoding.map(Encoding::name);
    let job = json!({
        "version": VERSION, "checkpoint": source.identity(),
        "experts": name(options.experts), "dense": name(options.dense),
    });
    match read_json(&to.join(JOB))? {
        Some(found) if found == job => return Ok(()),
        Some(_) => return refuse("holds an unfinished import of another checkpoint or encoding"),
        None => {}
    }
    if std::fs::read_dir(to).is_ok_and(|mut entries| entries.next().is_some()) {
        return refuse("is not empty");
    }
    std::fs::create_dir_all(to)
        .map_err(|e| Error::io(format!("making the folder {}", to.display()), e))?;
    write_whole(&to.join(JOB), job.to_string().as_bytes())
}

/// The data files at their full lengths, so that a full disk shows at once.
fn open_files(to: &Path, plan: &Plan) -> Result<Vec<(PathBuf, File)>> {
    let mut files = Vec::with_capacity(plan.files.len());
    for (name, length) in plan.files.iter().zip(&plan.lengths) {
        let path = to.join(name);
        let io = |e| Error::io(format!("making {} of {length} bytes", path.display()), e);
        let options =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).clone();
        let file = options.open(&path).map_err(io)?;
        if *length > 0 {
            let mode = rustix::fs::FallocateFlags::empty();
            match rustix::fs::fallocate(&file, mode, 0, *length) {
                Ok(()) => {}
                // Some filesystems cannot promise space.
                Err(rustix::io::Errno::OPNOTSUPP) => file.set_len(*length).map_err(io)?,
                Err(e) => return Err(io(e.into())),
            }
        }
        files.push((path, file));
    }
    Ok(files)
}

struct Import<'a, F> {
    source: &'a Source,
    plan: Plan,
    files: Vec<(PathBuf, File)>,
    log: Log,
    /// Every block written, in order.
    done: Vec<Done>,
    /// How many of them the log holds.
    logged: usize,
    unsynced: u64,
    written: u64,
    total: u64,
    sync_every: u64,
    progress: F,
}

impl Plan {
    /// Bytes of all blocks.
    fn bytes(&self) -> u64 {
        self.blocks().iter().flatten().flatten().map(|piece| piece.len).sum()
    }

    /// The pieces of every block, in order: dense tensors with their scales, then experts.
    fn blocks(&self) -> Vec<[Option<Piece>; 2]> {
        let dense = self.dense.iter().map(|job| [Some(job.data), job.scales]);
        let experts = self.experts.iter().map(|job| [Some(job.block), None]);
        dense.chain(experts).collect()
    }
}

impl<F: FnMut(u64, u64)> Import<'_, F> {
    /// Reads the blocks that the log knows; from the first that is not what was written on, they
    /// are written again.
    fn keep_what_is_good(&mut self) -> Result<()> {
        let blocks = self.plan.blocks();
        self.done.truncate(blocks.len());
        let mut good = 0;
        for (done, pieces) in self.done.iter().zip(&blocks) {
            let mut crc = 0;
            for piece in pieces.iter().flatten() {
                crc = self.checksum(*piece, crc)?;
            }
            if crc != done.crc {
                break;
            }
            good += 1;
            self.written += pieces.iter().flatten().map(|piece| piece.len).sum::<u64>();
            (self.progress)(self.written, self.total);
        }
        self.done.truncate(good);
        self.logged = good;
        self.log.restart(&self.done)
    }

    fn checksum(&self, piece: Piece, mut crc: u32) -> Result<u32> {
        let (path, file) = &self.files[piece.file];
        let mut bytes = vec![0; piece.len.min(1 << 20) as usize];
        let mut at = 0;
        while at < piece.len {
            let part = (piece.len - at).min(bytes.len() as u64) as usize;
            file.read_exact_at(&mut bytes[..part], piece.offset + at)
                .map_err(|e| Error::io(format!("reading {}", path.display()), e))?;
            crc = checksum::crc32c_append(crc, &bytes[..part]);
            at += part as u64;
        }
        Ok(crc)
    }

    fn run(&mut self) -> Result<()> {
        let dense = std::mem::take(&mut self.plan.dense);
        for job in dense.iter().skip(self.done.len()) {
            let done = self.write_dense(job).map_err(|e| e.with("tensor", &job.tensor.name))?;
            self.close_block(done)?;
        }
        let experts = std::mem::take(&mut self.plan.experts);
        for job in experts.iter().skip(self.done.len() - dense.len()) {
            let done = self
                .write_expert(job)
                .map_err(|e| e.with("layer", job.layer).with("expert", job.expert))?;
            self.close_block(done)?;
        }
        (self.plan.dense, self.plan.experts) = (dense, experts);
        self.sync()
    }

    fn close_block(&mut self, done: Done) -> Result<()> {
        self.done.push(done);
        (self.progress)(self.written, self.total);
        if self.unsynced >= self.sync_every { self.sync() } else { Ok(()) }
    }

    /// Makes what was written durable, then says so in the log, then gives the page cache back.
    fn sync(&mut self) -> Result<()> {
        for (path, file) in &self.files {
            file.sync_data().map_err(|e| Error::io(format!("syncing {}", path.display()), e))?;
            give_back(file, None);
        }
        self.log.append(self.logged, &self.done[self.logged..])?;
        self.logged = self.done.len();
        self.unsynced = 0;
        Ok(())
    }

    fn write(&mut self, piece: Piece, at: u64, bytes: &[u8]) -> Result<()> {
        let (path, file) = &self.files[piece.file];
        file.write_all_at(bytes, piece.offset + at)
            .map_err(|e| Error::io(format!("writing {}", path.display()), e))?;
        self.written += bytes.len() as u64;
        self.unsynced += bytes.len() as u64;
        Ok(())
    }

    fn write_dense(&mut self, job: &DenseJob) -> Result<Done> {
        let cols = rows_and_cols(&job.tensor.shape).1;
        let row_bytes = job.encoding.row_bytes(cols)?;
        let mut all_scales = Vec::with_capacity(job.scales.map_or(0, |piece| piece.len as usize));
        let (mut crc, mut deviation, mut at) = (0, Deviation::default(), 0);
        self.source.each_slice(&job.tensor.name, &job.tensor.shape, |slice| {
            let mut data = vec![0; slice.rows * row_bytes];
            let mut scales = vec![0; job.encoding.scale_bytes(slice.rows, cols)];
            deviation.add(recode(slice, job.encoding, false, &mut data, &mut scales)?);
            crc = checksum::crc32c_append(crc, &data);
            self.write(job.data, at, &data)?;
            at += data.len() as u64;
            all_scales.extend_from_slice(&scales);
            Ok(())
        })?;
        if let Some(piece) = job.scales {
            crc = checksum::crc32c_append(crc, &all_scales);
            self.write(piece, 0, &all_scales)?;
        }
        Ok(Done { crc, deviation })
    }

    fn write_expert(&mut self, job: &ExpertJob) -> Result<Done> {
        let pieces = self.source.read_expert(job.layer, job.expert)?;
        let pieces: Vec<&[u8]> = pieces.iter().map(|piece| &**piece).collect();
        let from = self.source.layout(job.layer, job.expert)?;
        let mut block = AlignedBytes::zeroed(job.block.len as usize);
        let mut deviation = Deviation::default();
        for (old, new) in from.matrices().into_iter().zip(job.layout.matrices()) {
            let projection = old.view(&pieces)?;
            let mut data = vec![0; new.data.len];
            let mut scales = vec![0; new.scales.map_or(0, |span| span.len)];
            let (encoding, turned) = (new.encoding, new.transposed);
            deviation.add(recode(&projection.matrix, encoding, turned, &mut data, &mut scales)?);
            block[new.data.range()].copy_from_slice(&data);
            if let Some(span) = new.scales {
                block[span.range()].copy_from_slice(&scales);
            }
            if let Some((bias, at)) = projection.bias.zip(new.bias.as_ref()) {
                block[at.span.range()].copy_from_slice(bias.data);
            }
        }
        self.write(job.block, 0, &block)?;
        Ok(Done { crc: checksum::crc32c(&block), deviation })
    }
}

/// Puts beside the data what a model needs, and writes the index last.
fn finish(source: &Source, to: &Path, plan: &Plan, done: &[Done]) -> Result<Imported> {
    let imported = summary(plan, done);
    write_beside(source, to)?;
    let (table, experts) = plan.found(to, source.config().layers);
    let entries = Entries::write(Origin::Store, String::new(), source.config(), &table, &experts);
    let checksums = done.iter().map(|done| done.crc).collect();
    let index = Index { version: VERSION, entries, checksums, imported };
    let text = serde_json::to_vec(&index)
        .map_err(|e| Error::bug("a store's index has no JSON form").from_source(e))?;
    write_whole(&to.join(INDEX), &text)?;
    for name in [LOG, JOB] {
        let path = to.join(name);
        std::fs::remove_file(&path)
            .map_err(|e| Error::io(format!("removing {}", path.display()), e))?;
    }
    Ok(index.imported)
}

fn summary(plan: &Plan, done: &[Done]) -> Imported {
    let (dense, experts) = done.split_at(plan.dense.len().min(done.len()));
    let mut all = Deviation::default();
    dense.iter().for_each(|done| all.add(done.deviation));
    let mut layers: Vec<(usize, Deviation)> = Vec::new();
    for (job, done) in plan.experts.iter().zip(experts) {
        match layers.last_mut() {
            Some((layer, sums)) if *layer == job.layer => sums.add(done.deviation),
            _ => layers.push((job.layer, done.deviation)),
        }
    }
    let layer = |(layer, sums): (usize, Deviation)| LayerDeviation {
        layer,
        relative_rms: sums.relative_rms(),
    };
    Imported {
        bytes: plan.lengths.iter().sum(),
        layers: layers.into_iter().map(layer).collect(),
        dense: all.relative_rms(),
    }
}

/// Puts configuration, tokenizer and chat template into `to`: copied, or out of a GGUF file's
/// metadata.
pub(in crate::model::checkpoint) fn write_beside(source: &Source, to: &Path) -> Result<()> {
    if source.origin() != Origin::Gguf {
        for name in BESIDE {
            let from = source.path().join(name);
            match std::fs::read(&from) {
                Ok(bytes) => write_whole(&to.join(name), &bytes)?,
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                Err(e) => return Err(Error::io(format!("reading {}", from.display()), e)),
            }
        }
        return Ok(());
    }
    let pretty = |value: &serde_json::Value| format!("{value:#}\n").into_bytes();
    let config = source.config().to_hf_json(Precision::Bf16);
    write_whole(&to.join("config.json"), &pretty(&config))?;
    if let Some(generation) = source.generation_config()? {
        write_whole(&to.join("generation_config.json"), &pretty(&generation))?;
    }
    match source.tokenizer() {
        Ok(tokenizer) => tokenizer.save(to),
        Err(_) if !source.has_tokenizer() => Ok(()),
        Err(e) => Err(e),
    }
}
