//! `semoe bench`: how fast a checkpoint reads prompts and makes tokens, in one memory.

use super::model::{ModelArgs, announce};
use super::{output, prediction};
use crate::base::{Error, Result};
use crate::infer::figures::Passes;
use crate::infer::forecast::Forecast;
use crate::infer::generator::Generator;
use crate::infer::memory::peak_memory;
use crate::infer::sampler::Sampling;
use crate::infer::settings::Settings;
use clap::{Args, ValueEnum};
use serde::Serialize;
use std::path::PathBuf;

/// Most prompts that are read to bring every expert into memory.
const FILLS: u64 = 16;

#[derive(Debug, Args)]
pub struct BenchArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Lengths of the prompts.
    #[arg(long, short = 'p', value_delimiter = ',', default_value = "128,512")]
    prompts: Vec<usize>,
    /// Tokens to make after a prompt of one token.
    #[arg(long, short = 'n', default_value_t = 64)]
    tokens: usize,
    /// Which tokens those are: drawn at random, as llama-bench's, or greedy: the likeliest ones. Figures of
    /// the first are the report's.
    #[arg(long, value_delimiter = ',', default_value = "drawn", value_name = "TOKENS")]
    decode: Vec<Tokens>,
    /// Times that each is measured, after one time that is not.
    #[arg(long, short = 'r', default_value_t = 3)]
    repeats: usize,
    /// Also write the table as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// What follows the prompt when tokens are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Tokens {
    /// Tokens drawn from the whole vocabulary: experts change as they do in a text that goes on. What
    /// llama-bench decodes.
    Drawn,
    /// The likeliest token each time. A model without training soon repeats itself.
    Greedy,
}

/// One test, the median of its repeats by time.
#[derive(Debug, Clone, Serialize)]
struct Row {
    test: String,
    tokens_per_s: f64,
    bytes_read_per_token: f64,
    /// Of these, read while nobody waited for them; and those of them that were of no use.
    bytes_ahead_per_token: f64,
    bytes_in_vain_per_token: f64,
    hit_rate: f64,
    exposed_io_share: f64,
    disk_busy_share: f64,
    compute_share: f64,
}

impl Row {
    fn new(test: String, passes: &Passes) -> Self {
        Self {
            test,
            tokens_per_s: passes.tokens_per_s(),
            bytes_read_per_token: passes.per_token(passes.bytes_read),
            bytes_ahead_per_token: passes.per_token(passes.bytes_ahead),
            bytes_in_vain_per_token: passes.per_token(passes.bytes_in_vain),
            hit_rate: passes.hit_rate(),
            exposed_io_share: passes.share(passes.exposed_io),
            disk_busy_share: passes.share(passes.disk_busy),
            compute_share: passes.share(passes.busy),
        }
    }
}

#[derive(Debug, Serialize)]
struct Report<'a> {
    /// Of the longest prompt.
    prompt_tokens_per_s: f64,
    decode_tokens_per_s: f64,
    bytes_read_per_token: f64,
    hit_rate: f64,
    exposed_io_share: f64,
    peak_rss_bytes: u64,
    /// What was foretold of decoding; None where this machine was not measured.
    forecast: Option<Forecast>,
    rows: &'a [Row],
    settings: &'a Settings,
}

impl BenchArgs {
    /// Runs the command.
    ///
    /// # Errors
    /// As [`Generator::open`] and [`Generator::run`].
    pub fn run(self) -> Result<()> {
        if self.repeats == 0 {
            return Err(Error::config("repeats must be at least 1"));
        }
        let mut generator = Generator::open(&self.model.options(1)?)?;
        announce(&generator)?;
        self.fill(&mut generator)?;
        let mut rows = Vec::new();
        for length in self.prompts.iter().copied().filter(|length| *length > 0) {
            let passes = self.median(&mut generator, length, Tokens::Drawn, 0)?;
            rows.push(Row::new(format!("prompt {length}"), &passes));
        }
        let prompt = rows.last().map_or(0.0, |row: &Row| row.tokens_per_s);
        let mut decode = None;
        for kind in self.decode.iter().copied().filter(|_| self.tokens > 0) {
            let passes = self.median(&mut generator, 1, kind, self.tokens)?;
            let name = match kind {
                Tokens::Drawn => "decode",
                Tokens::Greedy => "greedy",
            };
            rows.push(Row::new(format!("{name} {}", self.tokens), &passes));
            decode.get_or_insert(passes);
        }
        let decode = decode.unwrap_or_default();
        output::print(&table(&rows))?;
        let settings = generator.settings().clone();
        let work = generator.workload().clone();
        generator.finish()?;
        let forecast = prediction::show(&prediction::Run {
            model: &self.model.model,
            work: &work,
            threads: settings.effective.threads,
            decode: &decode,
            positions: self.tokens as f64 / 2.0,
        })?;
        if let Some(path) = &self.json {
            let report = Report {
                prompt_tokens_per_s: prompt,
                decode_tokens_per_s: decode.tokens_per_s(),
                bytes_read_per_token: decode.per_token(decode.bytes_read),
                hit_rate: decode.hit_rate(),
                exposed_io_share: decode.share(decode.exposed_io),
                peak_rss_bytes: peak_memory()?,
                forecast,
                rows: &rows,
                settings: &settings,
            };
            output::write_json(path, &report)?;
        }
        Ok(())
    }

    /// Reads prompts until every expert is in memory, where all have room: what is measured then is a
    /// resident model.
    fn fill(&self, generator: &mut Generator) -> Result<()> {
        let effective = &generator.settings().effective;
        if effective.slots < effective.blocks {
            return Ok(());
        }
        let (length, vocab) =
            (effective.chunk.min(effective.context - 1), generator.config().vocab);
        for nth in 0..FILLS {
            let text = draws(!nth, length.max(1), vocab as u64);
            let job = generator.job(text, Sampling::greedy(), 0);
            generator.run(vec![job], |_| Ok(()))?;
            if generator.take_figures()?.prompt.misses == 0 {
                break;
            }
        }
        Ok(())
    }

    fn median(
        &self,
        generator: &mut Generator,
        length: usize,
        tokens: Tokens,
        most: usize,
    ) -> Result<Passes> {
        let mut measured = Vec::with_capacity(self.repeats);
        for repeat in 0..=self.repeats {
            let vocab = generator.config().vocab as u64;
            let mut text = draws(repeat as u64, length + most, vocab);
            let given = text.split_off(length);
            let mut job = generator.job(text, Sampling::greedy(), most);
            if tokens == Tokens::Drawn {
                job.given = given;
            }
            job.ends.clear();
            generator.take_figures()?;
            generator.run(vec![job], |_| Ok(()))?;
            let figures = generator.take_figures()?;
            if repeat > 0 {
                measured.push(if most > 0 { figures.decode } else { figures.all() });
            }
        }
        measured.sort_by(|a, b| a.seconds.total_cmp(&b.seconds));
        Ok(measured[measured.len() / 2])
    }
}

/// Token ids that differ from repeat to repeat, so that no cache of keys and values serves them.
fn draws(seed: u64, length: usize, vocab: u64) -> Vec<u32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut draw = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 33) % vocab
    };
    (0..length).map(|_| draw() as u32).collect()
}

fn table(rows: &[Row]) -> String {
    let mut text = format!(
        "{:<14} {:>10} {:>12} {:>8} {:>10} {:>10} {:>10}\n",
        "test", "tokens/s", "read/token", "hits", "waiting", "disk busy", "computing"
    );
    for row in rows {
        text += &format!(
            "{:<14} {:>10.2} {:>9.2} MB {:>7.1}% {:>9.1}% {:>9.1}% {:>9.1}%\n",
            row.test,
            row.tokens_per_s,
            row.bytes_read_per_token * 1e-6,
            100.0 * row.hit_rate,
            100.0 * row.exposed_io_share,
            100.0 * row.disk_busy_share,
            100.0 * row.compute_share,
        );
    }
    text
}
