//! The program's own files in the page cache: itself and its libraries.
//!
//! Law: a memory cgroup charges a page of a file to whoever brought it in first, used or not. Where the
//! system reads megabytes around each page fault, a start of the program brings in most of libtorch,
//! of which a run touches a small part.

use super::behind::give_back;
use rustix::mm::{Advice, madvise};
use std::collections::BTreeSet;
use std::ffi::c_void;
use std::fs::File;
use std::path::PathBuf;

/// A range of addresses at which a file is mapped.
#[derive(Debug, PartialEq, Eq)]
struct Mapping {
    start: usize,
    len: usize,
    /// Whether it is run: files of which nothing is are somebody's data.
    runs: bool,
    path: PathBuf,
}

impl Mapping {
    /// Of a line of /proc/self/maps; None for memory without a file.
    fn parse(line: &str) -> Option<Self> {
        // Addresses, permissions, offset, device, inode, path: which may hold blanks.
        let mut fields = line.splitn(6, ' ');
        let (start, end) = fields.next()?.split_once('-')?;
        let runs = fields.next()?.contains('x');
        let path = fields.nth(3)?.trim_start();
        let [start, end] = [start, end].map(|at| usize::from_str_radix(at, 16));
        let (start, end) = (start.ok()?, end.ok()?);
        let is_file = path.starts_with('/') && !path.ends_with(" (deleted)");
        is_file.then(|| Self { start, len: end.saturating_sub(start), runs, path: path.into() })
    }
}

/// The mappings of the program and its libraries among those of /proc/self/maps.
fn own(maps: &str) -> Vec<Mapping> {
    let all = || maps.lines().filter_map(Mapping::parse);
    let run: BTreeSet<PathBuf> = all().filter(|m| m.runs).map(|m| m.path).collect();
    all().filter(|mapping| run.contains(&mapping.path)).collect()
}

/// Gives back the pages of the program's files that were read around others and that nothing has used;
/// from now on a page fault brings in its page alone (seen on Linux 6.18: except in code, around which
/// it reads as before). Where the system does not tell or takes no advice the pages stay, and nothing
/// else changes.
pub fn give_back_unused() {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let mappings = own(&maps);
    for mapping in &mappings {
        // SAFETY: the advice changes how pages come in and never what they hold; a range that was
        // unmapped meanwhile is an error, which changes nothing.
        let _ = unsafe { madvise(mapping.start as *mut c_void, mapping.len, Advice::Random) };
    }
    let paths: BTreeSet<PathBuf> = mappings.into_iter().map(|mapping| mapping.path).collect();
    for file in paths.into_iter().filter_map(|path| File::open(path).ok()) {
        // Pages that are mapped stay.
        give_back(&file, None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn mappings_of_files_are_found_in_what_the_system_tells() {
        let line =
            "7f12a000-7f12c000 r-xp 00001000 fe:00 1234                       /usr/lib/a b.so";
        let (start, path) = (0x7f12_a000, PathBuf::from("/usr/lib/a b.so"));
        assert_eq!(Mapping::parse(line), Some(Mapping { start, len: 0x2000, runs: true, path }));
        for other in [
            "7ffd1000-7ffd2000 rw-p 00000000 00:00 0                          [stack]",
            "7f12a000-7f12c000 rw-p 00000000 00:00 0 ",
            "7f12a000-7f12c000 rw-s 00000000 00:01 7                          /dev/zero (deleted)",
            "",
        ] {
            assert_eq!(Mapping::parse(other), None, "{other}");
        }
    }

    #[test]
    fn data_that_somebody_maps_is_left_alone() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&[7; 8192]).unwrap();
        // SAFETY: nobody changes the file while it is mapped.
        let data = unsafe { memmap2::Mmap::map(file.as_file()) }.unwrap();
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let is_data = |mapping: &Mapping| mapping.path == file.path();
        assert!(maps.lines().filter_map(Mapping::parse).any(|mapping| is_data(&mapping)));
        let own = own(&maps);
        assert!(!own.iter().any(is_data));
        let torch: Vec<&Mapping> =
            own.iter().filter(|m| m.path.ends_with("libtorch_cpu.so")).collect();
        assert!(torch.iter().any(|m| m.runs) && torch.iter().any(|m| !m.runs));
        give_back_unused();
        assert!(data.iter().all(|byte| *byte == 7));
    }
}
