//! `semoe store ls|check|gc PATH`: what a store holds, whether it is sound, giving space back.

use super::output;
use crate::base::{Error, Result};
use crate::storage::store::{Store, StoreOptions};
use clap::{Args, Subcommand};
use serde::Serialize;
use std::fmt::Display;
use std::path::{Path, PathBuf};

#[derive(Debug, Args)]
pub struct StoreArgs {
    #[command(subcommand)]
    command: StoreCommand,
}

#[derive(Debug, Subcommand)]
enum StoreCommand {
    /// List the last commit, the named checkpoints, and the slots of each part.
    Ls(Target),
    /// Read every committed block and compare checksums; exit status 1 when one is damaged.
    Check(Target),
    /// Give back what neither the last commit nor a named checkpoint refers to.
    Gc {
        #[command(flatten)]
        target: Target,
        /// Drop this named checkpoint first; may be given several times.
        #[arg(long = "drop", value_name = "NAME")]
        drop: Vec<String>,
    },
}

#[derive(Debug, Args)]
struct Target {
    /// A run folder, its store, or the store of one of its ranks.
    #[arg(value_name = "PATH")]
    path: PathBuf,
    /// Write the report to FILE as JSON as well.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// What was found in one store.
#[derive(Debug, Serialize)]
struct Found<T> {
    store: PathBuf,
    #[serde(flatten)]
    report: T,
}

impl StoreArgs {
    /// Runs the command.
    ///
    /// # Errors
    /// `Input` where there is no store, `Busy` while a run uses it, `Corrupt` when it is damaged.
    pub fn run(self) -> Result<()> {
        match self.command {
            StoreCommand::Ls(target) => target.each(|store| Ok(store.list())).map(drop),
            StoreCommand::Check(target) => {
                let reports = target.each(Store::check)?;
                let damaged: usize = reports.iter().map(|found| found.report.damaged.len()).sum();
                if damaged == 0 {
                    return Ok(());
                }
                Err(Error::corrupt(format!(
                    "{damaged} blocks of {} are damaged: go back to a named checkpoint or restore \
                     the store from a copy",
                    target.path.display()
                )))
            }
            StoreCommand::Gc { target, drop: names } => {
                let reclaimed = target.each(|store| {
                    names.iter().try_for_each(|name| store.drop_checkpoint(name))?;
                    store.gc()
                });
                reclaimed.map(drop)
            }
        }
    }
}

impl Target {
    /// Opens each store of the path in turn, does `work`, and prints what it found.
    fn each<T>(&self, work: impl Fn(&Store) -> Result<T>) -> Result<Vec<Found<T>>>
    where
        T: Display + Serialize,
    {
        let stores = stores_in(&self.path)?;
        let mut all = Vec::new();
        for dir in stores {
            let store = Store::open(&dir, &StoreOptions::default())?;
            let report = work(&store)?;
            output::print(&format!("{}\n{}\n", dir.display(), report.to_string().trim_end()))?;
            all.push(Found { store: dir, report });
        }
        if let Some(file) = &self.json {
            output::write_json(file, &all)?;
        }
        Ok(all)
    }
}

/// The stores that `path` means: itself, that of a run, or those of its ranks.
fn stores_in(path: &Path) -> Result<Vec<PathBuf>> {
    for dir in [path.to_owned(), path.join("store")] {
        if Store::is_in(&dir) {
            return Ok(vec![dir]);
        }
        let rank = |n: usize| dir.join(format!("rank{n}"));
        let ranks: Vec<PathBuf> = (0..).map(rank).take_while(|dir| Store::is_in(dir)).collect();
        if !ranks.is_empty() {
            return Ok(ranks);
        }
    }
    Err(Error::input(format!(
        "{} holds no store: give a run folder or the folder of a store",
        path.display()
    )))
}
