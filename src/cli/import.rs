//! `semoe import`: repacks a checkpoint so that each expert is one aligned block.

use super::output;
use crate::base::{Error, Result};
use crate::model::checkpoint::{Source, store};
use crate::model::kernels::linear::Encoding;
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use std::path::PathBuf;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Experts {
    Bf16,
    /// Eight bits, a scale an output row.
    Int8,
    /// Four bits, a scale and a zero a group.
    Int4,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Dense {
    Bf16,
    /// Eight bits, a scale an output row.
    Int8,
}

#[derive(Debug, Args)]
pub struct ImportArgs {
    /// A Hugging Face folder or a .gguf file.
    #[arg(value_name = "DIR")]
    from: PathBuf,
    /// The folder to write. An import that was stopped there goes on.
    #[arg(long, value_name = "STORE")]
    to: PathBuf,
    /// Encoding of the routed experts [default: as they are].
    #[arg(long, value_enum)]
    experts: Option<Experts>,
    /// Weights that share a scale and a zero in int4 [default: 64].
    #[arg(long, value_parser = ["32", "64", "128"])]
    group: Option<String>,
    /// Encoding of the other matrices [default: as they are].
    #[arg(long, value_enum)]
    dense: Option<Dense>,
}

impl ImportArgs {
    /// Runs the command.
    ///
    /// # Errors
    /// As [`store::import`], and a group without int4.
    pub fn run(self) -> Result<()> {
        let options = self.options()?;
        let source = Source::open(&self.from)?;
        let bar = ProgressBar::new(0);
        // The template is a constant; a wrong one would only lose the style.
        let style = "{bar:24.cyan/white} {bytes}/{total_bytes} {binary_bytes_per_sec} {eta}";
        if let Ok(style) = ProgressStyle::with_template(style) {
            bar.set_style(style);
        }
        let imported = store::import(&source, &self.to, &options, |done, total| {
            bar.set_length(total);
            bar.set_position(done);
        })?;
        bar.finish_and_clear();
        let mut text = format!("{:.2} GB in {}\n", imported.bytes as f64 / 1e9, self.to.display());
        text += "error introduced (relative RMS)\n";
        for layer in &imported.layers {
            text += &format!("  experts of layer {:>3}  {:.5}\n", layer.layer, layer.relative_rms);
        }
        text += &format!("  dense               {:.5}\n", imported.dense);
        output::print(&text)
    }

    fn options(&self) -> Result<store::Options> {
        let group = match self.group.as_deref() {
            Some(_) if self.experts != Some(Experts::Int4) => {
                return Err(Error::config("--group belongs to --experts int4"));
            }
            Some("32") => 32,
            Some("128") => 128,
            _ => 64,
        };
        let experts = self.experts.map(|form| match form {
            Experts::Bf16 => Encoding::Bf16,
            Experts::Int8 => Encoding::Int8,
            Experts::Int4 => Encoding::Int4 { group },
        });
        let dense = self.dense.map(|form| match form {
            Dense::Bf16 => Encoding::Bf16,
            Dense::Int8 => Encoding::Int8,
        });
        Ok(store::Options { experts, dense })
    }
}
