//! How much of a file is in the page cache.

use memmap2::MmapOptions;
use std::fs::File;
use std::path::Path;

/// Bytes that are in the page cache of the files below `dir` that `counts`.
pub fn cached_bytes(dir: &Path, counts: &dyn Fn(&Path) -> bool) -> u64 {
    let mut bytes = 0;
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        bytes += match path.is_dir() {
            true => cached_bytes(&path, counts),
            false if counts(&path) => of_file(&path),
            false => 0,
        };
    }
    bytes
}

fn of_file(path: &Path) -> u64 {
    let file = File::open(path).unwrap();
    if file.metadata().unwrap().len() == 0 {
        return 0;
    }
    // SAFETY: the file is not changed while it is mapped, and its bytes are not looked at.
    let map = unsafe { MmapOptions::new().map(&file) }.unwrap();
    let mut pages = vec![0u8; map.len().div_ceil(4096)];
    // SAFETY: the range is mapped, and there is a byte for each of its pages.
    let failed = unsafe { libc::mincore(map.as_ptr() as *mut _, map.len(), pages.as_mut_ptr()) };
    assert_eq!(failed, 0, "{}", path.display());
    pages.iter().filter(|page| **page & 1 == 1).count() as u64 * 4096
}

#[test]
fn pages_that_are_cached_are_seen() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("a"), vec![1; 100_000]).unwrap();
    assert_eq!(cached_bytes(dir.path(), &|_| true), 25 * 4096);
    assert_eq!(cached_bytes(dir.path(), &|file| file.ends_with("b")), 0);
}
