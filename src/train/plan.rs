//! What a run will need and do, without starting it: memory by ledger line, disk, traffic, time.
//!
//! The seconds come from two figures of this machine, measured in about a second: how fast the
//! disk of the store moves large blocks, and how fast libtorch multiplies matrices.

use super::account::account;
use super::placement::{Load, Placement};
use super::{model_of, prepare};
use crate::base::ledger::Ledger;
use crate::base::units::Bytes;
use crate::base::{Error, Result};
use crate::config::{self, Config, Device};
use crate::model::compute;
use crate::model::config::{ModelConfig, Precision};
use crate::storage::arena::Arena;
use crate::storage::disk::{DataFile, Extent, FileId, IoBuf, IoDone, IoOp, IoRequest, IoService};
use crate::storage::hierarchy::SlotClass;
use crate::storage::store::Store;
use crate::text::tokenizer::Tokenizer;
use serde::Serialize;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;
use tch::{Device as TorchDevice, Kind, Tensor};

/// Figures of the machine, per second.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Machine {
    pub disk_read: f64,
    pub disk_write: f64,
    pub flops: f64,
    pub memory: f64,
}

/// The prediction.
#[derive(Debug, Clone, Serialize)]
pub struct Plan {
    pub ledger: Ledger,
    pub memory_bytes: u64,
    pub disk_bytes: u64,
    pub read_per_step: u64,
    pub written_per_step: u64,
    pub compute_seconds: f64,
    pub io_seconds: f64,
    pub seconds_per_step: f64,
    pub tokens_per_second: f64,
    pub terabytes_written_per_day: f64,
    pub placement: Placement,
    pub machine: Machine,
}

/// Plans `config`.
///
/// # Errors
/// Budget where the configuration cannot work, with the figure that would.
pub fn plan(config: &Config, probe_dir: &Path) -> Result<Plan> {
    let model = planned_model(config)?;
    let load = prepare::load_of(config, &model);
    let placement = Placement::new(&load)?;
    let machine = measure(probe_dir, load.shape.precision)?;
    let ranks = load.ranks as u64;
    let account = account(config, &load, &placement);
    let disk_bytes = Store::disk_required(&placement.store(&load, serde_json::json!({}))) * ranks;
    let (mut read, mut written) = placement.traffic();
    (read, written) = (read * ranks, written * ranks);
    // A commit writes what is resident and changed.
    let slots = placement.slots;
    let resident = u64::from(slots.weights) * placement.weights_bytes
        + u64::from(slots.states) * placement.state_bytes;
    written += (resident * ranks).checked_div(config.train.commit_every).unwrap_or(0);
    let compute_seconds = compute_seconds(&load, &machine);
    let io_seconds = read as f64 / machine.disk_read + written as f64 / machine.disk_write;
    let seconds = match config.graph.schedule {
        config::ScheduleKind::Overlapped => compute_seconds.max(io_seconds),
        config::ScheduleKind::Sequential => compute_seconds + io_seconds,
    };
    let tokens = (load.batch * load.seq) as f64;
    Ok(Plan {
        memory_bytes: account.total(),
        ledger: account,
        disk_bytes,
        read_per_step: read,
        written_per_step: written,
        compute_seconds,
        io_seconds,
        seconds_per_step: seconds,
        tokens_per_second: tokens / seconds,
        terabytes_written_per_day: written as f64 / seconds * 86_400.0 / 1e12,
        placement,
        machine,
    })
}

/// The model without reading any data: a vocabulary that would be trained is taken at its word.
fn planned_model(config: &Config) -> Result<ModelConfig> {
    let tokenizer = match &config.data.tokenizer {
        config::Tokenizer::File { path } => Tokenizer::load(path)?,
        _ => Tokenizer::bytes()?,
    };
    let mut model = model_of::model_config(config, &tokenizer)?;
    let unset = config.model.shape().is_some_and(|shape| shape.vocab.is_none());
    if let (config::Tokenizer::Bpe { vocab }, true) = (&config.data.tokenizer, unset) {
        model.vocab = *vocab;
    }
    Ok(model)
}

/// Arithmetic of a step over the matrix rate, and the optimizer's traffic over the memory's.
fn compute_seconds(load: &Load, machine: &Machine) -> f64 {
    let c = &load.config;
    let (h, f) = (c.hidden as f64, c.expert_width as f64);
    let head_width = (c.heads * c.head_dim) as f64;
    let kv_width = (c.kv_heads * c.head_dim) as f64;
    let expert = 3.0 * h * f * c.top_k as f64;
    let shared = 3.0 * h * c.shared_width.unwrap_or(0) as f64;
    let attention = h * (2.0 * head_width + 2.0 * kv_width) + load.seq as f64 * head_width;
    let layer = expert * if load.keep_experts { 3.0 } else { 3.67 }
        + (shared + attention) * if load.keep_dense { 3.0 } else { 4.0 };
    let token = 2.0 * (layer * c.layers as f64 + 3.0 * h * c.vocab as f64);
    let tokens = (load.batch * load.seq) as f64;
    let parameters = (c.layers * c.experts * load.shape.parameters()) as f64;
    tokens * token / machine.flops + parameters * 36.0 / machine.memory
}

fn measure(dir: &Path, precision: Precision) -> Result<Machine> {
    let (disk_read, disk_write) = measure_disk(dir)?;
    let kind = compute::dense(precision).kind();
    let (rows, inner, columns) = (64, 512, 2048);
    let a = Tensor::f_ones([rows, inner], (kind, TorchDevice::Cpu))?;
    let b = Tensor::f_ones([inner, columns], (kind, TorchDevice::Cpu))?;
    let matmul = median(|| a.f_matmul(&b).map(drop).map_err(Error::from), 9, 20)?;
    let from = Tensor::f_ones([32 << 20], (Kind::Float, TorchDevice::Cpu))?;
    let mut to = from.f_empty_like()?;
    let copy = median(
        || {
            to.f_copy_(&from)?;
            Ok(())
        },
        5,
        1,
    )?;
    Ok(Machine {
        disk_read,
        disk_write,
        flops: 2.0 * (rows * inner * columns) as f64 / matmul,
        memory: 2.0 * (128 << 20) as f64 / copy,
    })
}

/// Median seconds of `body` over `rounds` of `times` runs.
fn median(mut body: impl FnMut() -> Result<()>, rounds: usize, times: u32) -> Result<f64> {
    let mut seconds = Vec::with_capacity(rounds);
    for _ in 0..rounds {
        let start = Instant::now();
        for _ in 0..times {
            body()?;
        }
        seconds.push(start.elapsed().as_secs_f64() / f64::from(times));
    }
    seconds.sort_by(f64::total_cmp);
    Ok(seconds[rounds / 2])
}

/// Bytes a second of reads and writes of 4 MiB blocks in a deep queue.
fn measure_disk(dir: &Path) -> Result<(f64, f64)> {
    const BLOCK: u64 = 4 << 20;
    const COUNT: u64 = 96;
    let path = dir.join(format!(".semoe-probe-{}", std::process::id()));
    let result = (|| {
        let len = BLOCK * COUNT;
        let file = std::fs::File::create(&path)
            .and_then(|file| file.set_len(len).map(|()| file))
            .map_err(|e| Error::io(format!("creating {}", path.display()), e))?;
        drop(file);
        let arena = Arena::new(&[SlotClass {
            part: crate::base::Part::Weights,
            slot_bytes: BLOCK,
            slots: 8,
        }])?;
        let (sender, done) = crossbeam_channel::unbounded();
        let data = DataFile { id: FileId(0), path: path.clone(), len };
        let on_done = Arc::new(move |finished: IoDone| drop(sender.send(finished)));
        let io = IoService::start(&Default::default(), vec![data], None, on_done)?;
        let mut rates = Vec::new();
        for op in [IoOp::Write, IoOp::Read] {
            let start = Instant::now();
            let mut free: Vec<u32> = (0..8).collect();
            let mut finished = 0;
            let mut next = 0;
            let mut slot_of = vec![0; COUNT as usize];
            while finished < COUNT {
                while next < COUNT
                    && let Some(index) = free.pop()
                {
                    let slot = arena.slot(crate::storage::hierarchy::SlotId {
                        part: crate::base::Part::Weights,
                        index,
                    })?;
                    // SAFETY: the arena outlives the service, and a slot serves one request at a
                    // time.
                    let buf = unsafe { IoBuf::new(slot.ptr, slot.len) };
                    let extent = Extent { file: FileId(0), offset: next * BLOCK, len: BLOCK };
                    slot_of[next as usize] = index;
                    io.submit(IoRequest { tag: next, op, extent, buf, urgency: 0 })?;
                    next += 1;
                }
                let one = done.recv().map_err(|_| Error::bug("the io thread went away"))?;
                one.result?;
                free.push(slot_of[one.tag as usize]);
                finished += 1;
            }
            rates.push(len as f64 / start.elapsed().as_secs_f64());
        }
        io.shutdown();
        Ok((rates[1], rates[0]))
    })();
    // A probe that stays behind is small and named for what it is.
    drop(std::fs::remove_file(&path));
    result
}

impl Plan {
    /// The plan as text.
    pub fn text(&self, config: &Config) -> String {
        let gb = |rate: f64| format!("{:.2} GB/s", rate / 1e9);
        let device = match config.train.device {
            Device::Cpu => "cpu",
            Device::Cuda => "cuda (this machine's figures; its GPU was not measured)",
        };
        format!(
            "device            {device}\n\
             memory at most\n{}\n\
             disk              {}\n\
             read a step       {}\n\
             written a step    {}\n\
             seconds a step    {:.3} (compute {:.3}, disk {:.3})\n\
             tokens a second   {:.0}\n\
             SSD writes        {:.2} TB a day\n\
             this machine      disk reads {}, writes {}; {:.0} GFLOP/s; memory {}\n",
            self.ledger,
            Bytes(self.disk_bytes),
            Bytes(self.read_per_step),
            Bytes(self.written_per_step),
            self.seconds_per_step,
            self.compute_seconds,
            self.io_seconds,
            self.tokens_per_second,
            self.terabytes_written_per_day,
            gb(self.machine.disk_read),
            gb(self.machine.disk_write),
            self.machine.flops / 1e9,
            gb(self.machine.memory),
        )
    }
}
