//! Whole training steps as users run them: what streaming costs, what overlap gains, what
//! scheduling costs, what micro-batches read, and how good `semoe plan` is.
//!
//! Batch sizes are chosen from this machine's own rates (the forecast), so that each comparison
//! is made under its condition, and the condition is printed as it was measured. The benchmark
//! fails if a promise is broken.

use semoe::base::{Error, Result, idle};
use semoe::config::Config;
use semoe::train::metrics::{self, StepMetrics};
use semoe::train::pipeline::Pipeline;
use semoe::train::plan::{Forecast, Measured, plan};
use std::fs::OpenOptions;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const SEQ: usize = 128;
const STEPS: usize = 12;
/// Holds about a quarter of the experts' weights, masters, moments and gradients.
const QUARTER: &str = "200MiB";
const ALL: &str = "2GiB";

struct Bench {
    dir: PathBuf,
    precision: &'static str,
    runs: usize,
    kept: bool,
}

struct Run {
    forecast: Forecast,
    measured: Measured,
    steps: Vec<StepMetrics>,
}

impl Run {
    fn seconds(&self) -> f64 {
        self.measured.seconds
    }

    /// Sum over the steps that count.
    fn sum(&self, get: impl Fn(&StepMetrics) -> f64) -> f64 {
        self.steps[2..].iter().map(get).sum()
    }
}

impl Bench {
    fn config(&self, host: &str, batch: usize, micro: usize, schedule: &str) -> Result<Config> {
        let text = format!(
            r#"
name = "step"
[model]
hidden = 256
layers = 4
heads = 8
experts = 32
expert_width = 512
top_k = 2
[data]
files = ["data/kjv.txt.zst"]
tokenizer = {{ kind = "bpe", vocab = 2048 }}
[train]
steps = {STEPS}
batch = {batch}
micro_batch = {micro}
seq = {SEQ}
precision = "{precision}"
clip = 0
commit_every = 1000
[storage]
host = "{host}"
checkpoints = 0
[actors.gate]
aux_scope = "layer"
[graph]
schedule = "{schedule}"
[trace]
enabled = false
"#,
            precision = self.precision,
        );
        let path = self.dir.join("step.toml");
        std::fs::write(&path, text).map_err(|e| Error::io("writing a configuration", e))?;
        Config::load(&path, &[])
    }

    fn run(&mut self, config: Config) -> Result<Run> {
        self.runs += 1;
        let folder = self.dir.join(format!("run{}", self.runs));
        let summary = Pipeline::new(config).run_dir(&folder).train()?;
        let steps = metrics::read(&folder.join("metrics.jsonl"))?;
        std::fs::remove_dir_all(&folder).map_err(|e| Error::io("removing a run", e))?;
        let forecast = summary.forecast.ok_or_else(|| Error::bug("a run made no forecast"))?;
        Ok(Run { forecast, measured: summary.measured, steps })
    }

    /// Prints a figure beside its target.
    fn show(&mut self, name: &str, figure: f64, target: f64, at_least: bool, note: &str) {
        let met = if at_least { figure >= target } else { figure <= target };
        let sign = if at_least { "at least" } else { "at most" };
        let verdict = if met { "met" } else { "MISSED" };
        println!("{name}: {figure:.3} (target {sign} {target}: {verdict}) · {note}");
        self.kept &= met;
    }

    fn forecast(&self, host: &str, batch: usize) -> Result<Forecast> {
        let config = self.config(host, batch, batch, "overlapped")?;
        Ok(plan(&config, &self.dir)?.forecast)
    }

    /// The batch whose arithmetic takes about `wanted` times as long as its I/O: in proportion to one
    /// that is forecast, of three forecasts the middle one.
    fn batch_for(&self, wanted: f64) -> Result<usize> {
        const TRIED: usize = 16;
        let mut ratios = Vec::new();
        for _ in 0..3 {
            let forecast = self.forecast(QUARTER, TRIED)?;
            ratios.push(forecast.compute_seconds / forecast.io_seconds);
        }
        ratios.sort_by(f64::total_cmp);
        let batch = (TRIED as f64 * wanted / ratios[1]) as usize;
        Ok(batch.next_multiple_of(2).clamp(2, 512))
    }

    fn streamed_beside_in_memory(&mut self) -> Result<()> {
        let batch = self.batch_for(1.5)?;
        let streamed = self.run(self.config(QUARTER, batch, batch, "overlapped")?)?;
        let memory = self.run(self.config(ALL, batch, batch, "overlapped")?)?;
        let again = self.run(self.config(QUARTER, batch, batch, "overlapped")?)?;
        let seconds = (streamed.seconds() + again.seconds()) / 2.0;
        let io = again.sum(|step| step.utilisation["io"] * step.seconds)
            / again.sum(|step| step.seconds);
        let note = format!(
            "batch {batch}: {:.3} s in memory, {seconds:.3} s streamed; disk busy {:.0}% of it",
            memory.seconds(),
            io * 100.0,
        );
        self.show("streamed against in memory", memory.seconds() / seconds, 0.85, true, &note);
        let moved = (again.measured.read + again.measured.written) as f64 / again.seconds();
        self.in_memory_beside_a_busy_disk(batch, moved, memory.seconds(), seconds)?;
        for (name, run) in [("in memory", &memory), ("streamed", &again)] {
            self.overhead(name, run);
            self.forecast_held(name, run);
        }
        Ok(())
    }

    /// What moving the bytes costs by itself: on a virtual machine the disk's own work may take the
    /// processors, whoever moves the bytes.
    fn in_memory_beside_a_busy_disk(
        &mut self,
        batch: usize,
        rate: f64,
        memory: f64,
        streamed: f64,
    ) -> Result<()> {
        let mover = Mover::start(&self.dir, rate)?;
        let beside = self.run(self.config(ALL, batch, batch, "overlapped")?)?;
        let moved = mover.finish()?;
        println!(
            "of which the disk's own work: {:.3} s in memory beside a thread that moves {:.2} of the \
             {:.2} GB/s and does nothing else ({:.3} of the pace alone); streamed runs at {:.3} of that",
            beside.seconds(),
            moved * 1e-9,
            rate * 1e-9,
            memory / beside.seconds(),
            beside.seconds() / streamed,
        );
        Ok(())
    }

    /// Scheduling and messages: in transit, or with the planner.
    fn overhead(&mut self, name: &str, run: &Run) {
        let exposed = |step: &StepMetrics| step.exposed_seconds.values().sum::<f64>();
        let control =
            |step: &StepMetrics| step.exposed_seconds.get("control").copied().unwrap_or(0.0);
        let wall = run.sum(|step| step.seconds);
        let overhead = run.sum(|step| step.overhead_seconds);
        let busy = run.sum(|step| step.utilisation["compute"] * step.seconds);
        let parts = (busy + run.sum(exposed) + overhead) / wall;
        let share = (overhead + run.sum(control)) / wall;
        let note = format!("busy + exposed + overhead are {:.1}% of the wall", parts * 100.0);
        self.show(&format!("overhead, {name}"), share, 0.02, false, &note);
        self.kept &= (parts - 1.0).abs() < 0.01;
    }

    fn forecast_held(&mut self, name: &str, run: &Run) {
        let (forecast, measured) = (&run.forecast, &run.measured);
        let off = (forecast.seconds / measured.seconds - 1.0).abs();
        let note = format!(
            "{:.3} s (compute {:.3}, disk {:.3}) forecast, {:.3} s measured",
            forecast.seconds, forecast.compute_seconds, forecast.io_seconds, measured.seconds
        );
        self.show(&format!("forecast of the step, {name}"), off, 0.2, false, &note);
        // In memory, only a commit's share is written.
        let off = |forecast: u64, measured: u64| match forecast.abs_diff(measured) {
            0..1_000_000 => 0.0,
            off => off as f64 / (measured as f64).max(1.0),
        };
        let note = format!(
            "read {} of {} MB, written {} of {} MB",
            forecast.read / 1_000_000,
            measured.read / 1_000_000,
            forecast.written / 1_000_000,
            measured.written / 1_000_000
        );
        let worst = off(forecast.read, measured.read).max(off(forecast.written, measured.written));
        self.show(&format!("forecast of the traffic, {name}"), worst, 0.2, false, &note);
    }

    fn overlapped_beside_sequential(&mut self) -> Result<()> {
        let batch = self.batch_for(1.0)?;
        let overlapped = self.run(self.config(QUARTER, batch, batch, "overlapped")?)?;
        let sequential = self.run(self.config(QUARTER, batch, batch, "sequential")?)?;
        let again = self.run(self.config(QUARTER, batch, batch, "overlapped")?)?;
        let seconds = (overlapped.seconds() + again.seconds()) / 2.0;
        let note = format!(
            "batch {batch}: {seconds:.3} s overlapped, {:.3} s sequential of which {:.3} s compute",
            sequential.seconds(),
            sequential.sum(|step| step.utilisation["compute"] * step.seconds)
                / sequential.steps[2..].len() as f64,
        );
        self.show("overlapped over sequential", sequential.seconds() / seconds, 1.4, true, &note);
        self.forecast_held("sequential", &sequential);
        Ok(())
    }

    fn micro_batches(&mut self) -> Result<()> {
        let one = self.run(self.config(QUARTER, 8, 8, "overlapped")?)?;
        let eight = self.run(self.config(QUARTER, 8, 1, "overlapped")?)?;
        let read = |run: &Run| run.measured.read as f64;
        let note = format!(
            "{:.1} MB a step with 1 micro-batch, {:.1} MB with 8",
            read(&one) / 1e6,
            read(&eight) / 1e6
        );
        let off = (read(&eight) / read(&one) - 1.0).abs();
        self.show("bytes read, 8 micro-batches against 1", off, 0.05, false, &note);
        Ok(())
    }
}

/// A thread that reads and writes with O_DIRECT at a given pace.
struct Mover {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<std::io::Result<f64>>,
}

const PIECE: usize = 1 << 20;
const PIECES: u64 = 256;

impl Mover {
    /// Moves `rate` bytes a second, reads and writes in turn, or what the disk gives.
    fn start(dir: &Path, rate: f64) -> Result<Self> {
        let failed = |e| Error::io("moving bytes beside a run", e);
        let path = dir.join("mover");
        let file = OpenOptions::new()
            .create(true)
            .truncate(true)
            .read(true)
            .write(true)
            .custom_flags(libc::O_DIRECT)
            .open(&path)
            .map_err(failed)?;
        let mut memory = vec![1u8; 2 * PIECE];
        let skip = memory.as_ptr().align_offset(4096);
        for at in 0..PIECES {
            let piece = &memory[skip..skip + PIECE];
            file.write_all_at(piece, at * PIECE as u64).map_err(failed)?;
        }
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let (begun, mut moved) = (Instant::now(), 0.0);
            for at in (0..PIECES).cycle() {
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
                let ahead = moved / rate - begun.elapsed().as_secs_f64();
                std::thread::sleep(Duration::from_secs_f64(ahead.max(0.0)));
                let piece = &mut memory[skip..skip + PIECE];
                match at % 2 {
                    0 => file.read_exact_at(piece, at * PIECE as u64)?,
                    _ => file.write_all_at(piece, at * PIECE as u64)?,
                }
                moved += PIECE as f64;
            }
            std::fs::remove_file(&path)?;
            Ok(moved / begun.elapsed().as_secs_f64())
        });
        Ok(Self { stop, thread })
    }

    /// Ends it; bytes a second that it moved.
    fn finish(self) -> Result<f64> {
        self.stop.store(true, Ordering::Relaxed);
        let moved = self.thread.join().map_err(|_| Error::bug("the mover panicked"))?;
        moved.map_err(|e| Error::io("moving bytes beside a run", e))
    }
}

/// The faster of the two precisions on this processor.
fn faster(dir: &Path) -> Result<&'static str> {
    let seconds = |precision| -> Result<f64> {
        let bench = Bench { dir: dir.to_owned(), precision, runs: 0, kept: true };
        Ok(bench.forecast(ALL, 16)?.compute_seconds)
    };
    Ok(if seconds("bf16")? <= seconds("f32")? { "bf16" } else { "f32" })
}

fn bench() -> Result<bool> {
    let parent =
        std::env::var("SEMOE_BENCH_DIR").unwrap_or_else(|_| env!("CARGO_TARGET_TMPDIR").to_owned());
    let dir = tempfile::tempdir_in(parent).map_err(|e| Error::io("making a folder", e))?;
    let precision = faster(dir.path())?;
    let mut bench = Bench { dir: dir.path().to_owned(), precision, runs: 0, kept: true };
    println!("precision {precision}, the faster one here");
    bench.streamed_beside_in_memory()?;
    bench.overlapped_beside_sequential()?;
    bench.micro_batches()?;
    Ok(bench.kept)
}

fn main() -> ExitCode {
    idle::sleep_when_idle();
    match bench() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
