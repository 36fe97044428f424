//! `semoe perplexity`: how well a checkpoint foretells a text, to compare what it is encoded in.

use super::model::{ModelArgs, announce};
use super::output;
use crate::base::{Error, Result};
use crate::infer::generator::Generator;
use crate::infer::perplexity::{Perplexity, perplexity};
use crate::infer::settings::Settings;
use crate::train::data::files::TextFile;
use clap::Args;
use serde::Serialize;
use std::path::PathBuf;
use std::time::Instant;

#[derive(Debug, Args)]
pub struct PerplexityArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// The text: UTF-8, plain or zstd-compressed.
    #[arg(value_name = "FILE")]
    text: PathBuf,
    /// Tokens of a window; windows know nothing of one another.
    #[arg(long, default_value_t = 256)]
    window: usize,
    /// Leave out so many tokens at the beginning.
    #[arg(long, default_value_t = 0)]
    skip: usize,
    /// Take at most so many tokens [default: all].
    #[arg(long)]
    most: Option<usize>,
    /// Also write the figures as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Debug, Serialize)]
struct Report<'a> {
    #[serde(flatten)]
    found: Perplexity,
    loss: f64,
    perplexity: f64,
    tokens_per_s: f64,
    settings: &'a Settings,
}

impl PerplexityArgs {
    /// Runs the command.
    ///
    /// # Errors
    /// As [`Generator::open`] and [`perplexity`]; `Io` and `Input` for a text that cannot be read.
    pub fn run(self) -> Result<()> {
        let mut options = self.model.options(1)?;
        if options.context == 0 {
            options.context = self.window;
        }
        let mut text = String::new();
        let mut file = TextFile::open(&self.text)?;
        while let Some(piece) = file.next_piece()? {
            text.push_str(&piece);
        }
        let mut generator = Generator::open(&options)?;
        announce(&generator)?;
        let ids = generator.tokenizer()?.encode(&text)?;
        let end = self.most.map_or(ids.len(), |most| ids.len().min(self.skip.saturating_add(most)));
        let ids = ids.get(self.skip..end).ok_or_else(|| {
            Error::input("the text ends before the tokens that are left out")
                .with("tokens", ids.len())
                .with("skip", self.skip)
        })?;
        let (bar, began) = (super::run::bar("windows"), Instant::now());
        let found = perplexity(&mut generator, ids, self.window, |done, all| {
            bar.set_length(all as u64);
            bar.set_position(done as u64);
            Ok(())
        })?;
        bar.finish_and_clear();
        let settings = generator.settings().clone();
        let tokens_per_s = found.tokens as f64 / began.elapsed().as_secs_f64();
        generator.finish()?;
        output::print(&format!(
            "perplexity {:.4} ({:.4} nats a token) over {} tokens in windows of {}, {tokens_per_s:.0} \
             tokens/s\n",
            found.value(),
            found.loss(),
            found.tokens,
            self.window
        ))?;
        let Some(path) = &self.json else { return Ok(()) };
        let (loss, perplexity) = (found.loss(), found.value());
        output::write_json(
            path,
            &Report { found, loss, perplexity, tokens_per_s, settings: &settings },
        )
    }
}
