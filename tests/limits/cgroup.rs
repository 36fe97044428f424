//! A memory cgroup for one process, of version 1 or 2.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Removed when dropped; the process in it must have ended.
pub struct Cgroup {
    dir: PathBuf,
    peak: &'static str,
}

impl Cgroup {
    /// A group of at most `bytes`; the reason where none can be made.
    pub fn new(name: &str, bytes: u64) -> Result<Self, String> {
        let name = format!("semoe-{name}-{}", std::process::id());
        let first = Path::new("/sys/fs/cgroup/memory");
        let (dir, limit, peak) = if first.join("memory.limit_in_bytes").exists() {
            (first.join(name), "memory.limit_in_bytes", "memory.max_usage_in_bytes")
        } else {
            (Path::new("/sys/fs/cgroup").join(name), "memory.max", "memory.peak")
        };
        fs::create_dir(&dir).map_err(|e| format!("{}: {e}", dir.display()))?;
        let group = Self { dir, peak };
        fs::write(group.dir.join(limit), bytes.to_string()).map_err(|e| format!("{limit}: {e}"))?;
        fs::read_to_string(group.dir.join(peak)).map_err(|e| format!("{peak}: {e}"))?;
        Ok(group)
    }

    /// `command`, started in the group.
    pub fn enter(&self, command: &Command) -> Command {
        let mut shell = Command::new("sh");
        let script = format!("echo $$ > {}/cgroup.procs && exec \"$@\"", self.dir.display());
        shell.args(["-c", &script, "sh"]).arg(command.get_program()).args(command.get_args());
        shell
    }

    /// Counts the most from now on, where the system can.
    pub fn forget_peak(&self) {
        // Version 2 forgets for one open file only.
        drop(fs::write(self.dir.join(self.peak), "0"));
    }

    /// Bytes of page cache that are charged now.
    pub fn cached(&self) -> u64 {
        let stat = fs::read_to_string(self.dir.join("memory.stat")).unwrap();
        let mut lines = stat.lines().filter_map(|line| line.split_once(' '));
        let cache = lines.find(|(name, _)| ["cache", "file"].contains(name)).unwrap();
        cache.1.parse().unwrap()
    }

    /// The most bytes that were charged: anonymous memory, page cache, and the kernel's.
    pub fn peak(&self) -> u64 {
        fs::read_to_string(self.dir.join(self.peak)).unwrap().trim().parse().unwrap()
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.dir);
    }
}
