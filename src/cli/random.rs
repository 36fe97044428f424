//! `semoe random-checkpoint`: a checkpoint of random weights in the shape of a real one.

use super::output;
use crate::base::units::Bytes;
use crate::base::{Error, Result};
use crate::model::config::{ModelConfig, Precision};
use crate::model::random::{Draw, write};
use crate::text::tokenizer::Tokenizer;
use clap::{Args, ValueEnum};
use std::path::PathBuf;

/// Shapes to choose from.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Shape {
    /// Hidden 2048, 16 layers of 64 experts of width 1024, 8 a token: 13.8 GB in bf16.
    #[value(name = "olmoe-1b-7b")]
    Olmoe1b7b,
    /// Hidden 256, 4 layers of 16 experts of width 256, 4 a token: 28 MB in bf16.
    Small,
}

#[derive(Debug, Args)]
pub struct RandomArgs {
    /// The folder to write.
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    #[arg(long, value_enum, default_value_t = Shape::Olmoe1b7b)]
    shape: Shape,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Standard deviation of the weights.
    #[arg(long, default_value_t = 0.02)]
    std: f64,
    /// The embedding's standard deviation is so many times that of the others.
    #[arg(long, default_value_t = 32.0)]
    embedding: f64,
    /// Rows of a router are scaled by exp(SKEW * N(0,1)).
    #[arg(long, default_value_t = 0.5)]
    skew: f64,
    /// Largest size of one file.
    #[arg(long, default_value = "4GiB", value_name = "SIZE")]
    shard: String,
}

impl RandomArgs {
    /// Runs the command.
    ///
    /// # Errors
    /// As [`write()`].
    pub fn run(self) -> Result<()> {
        let shard: Bytes = self.shard.parse().map_err(Error::config)?;
        let config = self.shape.config();
        let draw =
            Draw { seed: self.seed, std: self.std, embedding: self.embedding, skew: self.skew };
        let bar = super::run::bar("layers");
        write(&self.dir, &config, &draw, Precision::Bf16, shard.0, |done, all| {
            bar.set_length(all as u64);
            bar.set_position(done as u64);
        })?;
        Tokenizer::bytes()?.save(&self.dir)?;
        bar.finish_and_clear();
        output::print(&format!("written to {}\n", self.dir.display()))
    }
}

impl Shape {
    fn config(self) -> ModelConfig {
        match self {
            Self::Olmoe1b7b => ModelConfig::olmoe_1b_7b(),
            Self::Small => ModelConfig {
                vocab: 512,
                hidden: 256,
                layers: 4,
                heads: 4,
                kv_heads: 4,
                head_dim: 64,
                experts: 16,
                top_k: 4,
                expert_width: 256,
                ..ModelConfig::olmoe_1b_7b()
            },
        }
    }
}
