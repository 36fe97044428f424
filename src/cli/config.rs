//! `semoe config show|schema|reference`: what a configuration means, and what one may say.

use super::{ConfigFile, output};
use crate::base::Result;
use crate::config::{reference, schema};
use clap::{Args, Subcommand};

#[derive(Debug, Args)]
pub struct ConfigArgs {
    #[command(subcommand)]
    command: ConfigCommand,
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Print the whole effective configuration, defaults included, as TOML.
    Show(ConfigFile),
    /// Print the JSON schema that editors use (committed as configs/schema.json).
    Schema,
    /// Print the reference of all keys as Markdown (committed as docs/configuration.md).
    Reference,
}

impl ConfigArgs {
    /// Runs the command.
    ///
    /// # Errors
    /// `Config` when the file is refused.
    pub fn run(self) -> Result<()> {
        match self.command {
            ConfigCommand::Show(file) => output::print(&file.load()?.to_toml()?),
            ConfigCommand::Schema => output::print(&schema::text()),
            ConfigCommand::Reference => output::print(&reference::markdown()),
        }
    }
}
