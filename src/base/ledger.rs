//! The one account of memory: what a run will hold at most, line by line, in bytes.

use super::units::Bytes;
use serde::Serialize;
use std::fmt;

/// One line of the account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Line {
    /// What the memory is for, such as `expert weights slots`.
    pub name: String,
    pub bytes: u64,
    /// How the figure comes about, for the reader.
    pub note: String,
}

/// An upper bound on the memory of a run. An allocation outside it is a bug.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Ledger {
    pub lines: Vec<Line>,
}

impl Ledger {
    pub fn add(&mut self, name: impl Into<String>, bytes: u64, note: impl Into<String>) {
        self.lines.push(Line { name: name.into(), bytes, note: note.into() });
    }

    pub fn total(&self) -> u64 {
        self.lines.iter().map(|line| line.bytes).sum()
    }
}

impl fmt::Display for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.lines {
            let size = Bytes(line.bytes).to_string();
            writeln!(f, "  {:<22} {size:>11}  {}", line.name, line.note)?;
        }
        let total = Bytes(self.total()).to_string();
        write!(f, "  {:<22} {total:>11}", "total")
    }
}
