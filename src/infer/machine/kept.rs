//! The figures in the user's cache.
//!
//! Law: figures count only for the program and the processor that they were measured with.

use super::{Identity, Machine};
use crate::base::file::write_whole;
use crate::base::{Error, Result};
use crate::infer::opening::user_folder;
use std::path::{Path, PathBuf};

/// Where they are kept: `machine.json` in [`user_folder`].
///
/// # Errors
/// `Config` for a user without a cache.
pub fn file() -> Result<PathBuf> {
    let folder = user_folder().ok_or_else(|| {
        Error::config("there is no cache to keep figures in: set XDG_CACHE_HOME or HOME")
    })?;
    Ok(folder.join("machine.json"))
}

/// The figures that were kept; None where there are none, or where they are damaged or of
/// another program or processor: they are to be measured then.
pub fn load() -> Option<Machine> {
    load_from(&file().ok()?)
}

fn load_from(path: &Path) -> Option<Machine> {
    let text = std::fs::read_to_string(path).ok()?;
    let machine: Machine = serde_json::from_str(&text).ok()?;
    (machine.identity == Identity::here()).then_some(machine)
}

/// Keeps figures in place of earlier ones; gives the file.
///
/// # Errors
/// As [`file()`]; `Io` when it cannot be written.
pub fn save(machine: &Machine) -> Result<PathBuf> {
    let path = file()?;
    save_to(&path, machine)?;
    Ok(path)
}

fn save_to(path: &Path, machine: &Machine) -> Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)
            .map_err(|e| Error::io(format!("cannot make {}", folder.display()), e))?;
    }
    let text = serde_json::to_string_pretty(machine)
        .map_err(|e| Error::bug("figures have no JSON form").from_source(e))?;
    write_whole(path, text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::infer::machine::example;

    #[test]
    fn figures_are_read_back_unless_they_are_of_another_machine_or_damaged() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("semoe").join("machine.json");
        assert_eq!(load_from(&path), None);
        let machine = example();
        save_to(&path, &machine).unwrap();
        assert_eq!(load_from(&path), Some(machine.clone()));
        let mut other = machine;
        other.identity.threads += 1;
        save_to(&path, &other).unwrap();
        assert_eq!(load_from(&path), None);
        std::fs::write(&path, "{").unwrap();
        assert_eq!(load_from(&path), None);
    }
}
