//! Opening data files with O_DIRECT, and reserving their space.
//!
//! Law: the space of a data file is reserved before its store exists, so that no later write of
//! a block can meet a full disk.

use super::options::DirectChoice;
use super::{DataFile, IoOp, transfer_error};
use crate::base::{Error, ErrorKind, Result};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

/// Opens every file for reading and, unless it is somebody else's, writing. Gives the handles, whether all of them bypass the
/// page cache, and why not where that was wanted.
///
/// # Errors
/// `Io` for a file that cannot be opened; `Config` where O_DIRECT was demanded and is not there.
pub(super) fn open_all(
    files: &[DataFile],
    choice: DirectChoice,
) -> Result<(Vec<Arc<File>>, bool, Option<String>)> {
    if choice == DirectChoice::Off {
        return Ok((open_each(files, false)?, false, None));
    }
    let refusal = files.iter().find_map(|file| why_not_direct(&file.path));
    let why = match refusal {
        None => match open_each(files, true) {
            Ok(handles) => return Ok((handles, true, None)),
            Err(e) => e.to_string(),
        },
        Some(why) => why,
    };
    if choice == DirectChoice::On {
        return Err(Error::config(
            "O_DIRECT cannot be had: set direct to \"auto\" or move the files to another disk",
        )
        .with("why", why));
    }
    let note = format!("O_DIRECT cannot be had ({why}): transfers go through the page cache");
    Ok((open_each(files, false)?, false, Some(note)))
}

fn open_each(files: &[DataFile], direct: bool) -> Result<Vec<Arc<File>>> {
    let flags = if direct { libc::O_DIRECT } else { 0 };
    files
        .iter()
        .map(|file| {
            OpenOptions::new()
                .read(true)
                .write(!file.read_only)
                .custom_flags(flags | libc::O_CLOEXEC)
                .open(&file.path)
                .map(Arc::new)
                .map_err(|e| Error::io(format!("cannot open {}", file.path.display()), e))
        })
        .collect()
}

/// tmpfs takes the flag since Linux 6.6 and ignores it: its files are memory either way.
fn why_not_direct(path: &Path) -> Option<String> {
    const TMPFS_MAGIC: i64 = 0x0102_1994;
    let kind = file_system(path).ok()?.f_type as i64;
    (kind == TMPFS_MAGIC).then(|| format!("{} is on tmpfs, which is memory", path.display()))
}

fn file_system(path: &Path) -> io::Result<libc::statfs> {
    use std::os::unix::ffi::OsStrExt;
    let name = std::ffi::CString::new(path.as_os_str().as_bytes())?;
    let mut stat = std::mem::MaybeUninit::<libc::statfs>::zeroed();
    // SAFETY: `name` ends in a zero byte and `stat` has room for the answer.
    if unsafe { libc::statfs(name.as_ptr(), stat.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: zeroed before and filled by the call that succeeded; all fields are integers.
    Ok(unsafe { stat.assume_init() })
}

/// Bytes that an unprivileged user may still write to the file system that holds `path`.
///
/// # Errors
/// `Io` if the file system cannot be asked.
pub fn free_space(path: &Path) -> Result<u64> {
    let stat = file_system(path).map_err(|e| {
        Error::io(format!("cannot ask for the free space of {}", path.display()), e)
    })?;
    Ok(stat.f_bavail.saturating_mul(stat.f_bsize as u64))
}

/// Creates `file` with its whole length reserved on disk, and makes that durable.
///
/// # Errors
/// `Budget` with the figure that is needed if the disk has no room; `Io` otherwise.
pub(crate) fn create_reserved(file: &DataFile) -> Result<()> {
    let path = file.path.display();
    let handle = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(&file.path)
        .map_err(|e| Error::io(format!("cannot create {path}"), e))?;
    let len = libc::off_t::try_from(file.len)
        .map_err(|_| Error::config("a data file would be too long").with("bytes", file.len))?;
    // SAFETY: the descriptor is open for writing; the call touches no memory.
    let failed = unsafe { libc::fallocate(handle.as_raw_fd(), 0, 0, len) } != 0;
    if failed {
        let e = io::Error::last_os_error();
        match e.raw_os_error() {
            Some(libc::ENOSPC | libc::EDQUOT) => {
                return Err(Error::new(
                    ErrorKind::Budget,
                    format!("the disk is too small for {path}: free {} bytes there", file.len),
                )
                .from_source(e));
            }
            // A file system that cannot reserve (some network ones): the length is set, and a
            // full disk shows later, as an error of the write that meets it.
            Some(libc::EOPNOTSUPP | libc::ENOSYS) => handle
                .set_len(file.len)
                .map_err(|e| Error::io(format!("cannot set the length of {path}"), e))?,
            _ => return Err(transfer_error(IoOp::Write, file, 0, file.len, e)),
        }
    }
    handle.sync_all().map_err(|e| Error::io(format!("cannot sync {path}"), e))
}
