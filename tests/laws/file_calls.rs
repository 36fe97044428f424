//! What this process asks of the files under one folder, call by call: writes, lengths, names,
//! syncs. The C library's functions stand here a second time, in front of the real ones, note what
//! they are asked while a recording is on, and pass it to the kernel.
//!
//! `sync_file_range` is not among them: it makes nothing durable.

use std::ffi::{CStr, OsString};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

/// A call; paths are relative to the recorded folder, and empty for itself.
#[derive(Debug, Clone, PartialEq)]
pub enum Call {
    /// Made, or emptied if it was there.
    Create(PathBuf),
    Rename(PathBuf, PathBuf),
    Remove(PathBuf),
    SetLen(PathBuf, u64),
    /// The number names the write until it ends.
    Write(u64, PathBuf, u64, Vec<u8>),
    WriteEnded(u64),
    /// A file or a folder is being synced: what had ended by now is durable once the sync ends.
    Sync(u64, PathBuf),
    SyncEnded(u64),
}

struct Recording {
    root: PathBuf,
    calls: Vec<Call>,
    names: u64,
}

static ON: AtomicBool = AtomicBool::new(false);
static RECORDING: Mutex<Option<Recording>> = Mutex::new(None);

/// Records what is asked of files under `root` from now on.
pub fn start(root: &Path) {
    let recording = Recording { root: root.to_owned(), calls: Vec::new(), names: 0 };
    *RECORDING.lock().unwrap_or_else(PoisonError::into_inner) = Some(recording);
    ON.store(true, Ordering::SeqCst);
}

/// Calls so far.
pub fn count() -> usize {
    let recording = RECORDING.lock().unwrap_or_else(PoisonError::into_inner);
    recording.as_ref().map_or(0, |recording| recording.calls.len())
}

/// Ends the recording.
pub fn stop() -> Vec<Call> {
    ON.store(false, Ordering::SeqCst);
    let recording = RECORDING.lock().unwrap_or_else(PoisonError::into_inner).take();
    recording.map(|recording| recording.calls).unwrap_or_default()
}

/// Notes a call on `path` if it is recorded; returns the name that `make` was given.
fn note(path: &Path, make: impl FnOnce(u64, PathBuf) -> Call) -> Option<u64> {
    let mut recording = RECORDING.lock().unwrap_or_else(PoisonError::into_inner);
    let recording = recording.as_mut()?;
    let inside = path.strip_prefix(&recording.root).ok()?.to_owned();
    recording.names += 1;
    recording.calls.push(make(recording.names, inside));
    Some(recording.names)
}

fn end(name: Option<u64>, make: impl FnOnce(u64) -> Call) {
    let mut recording = RECORDING.lock().unwrap_or_else(PoisonError::into_inner);
    if let (Some(recording), Some(name)) = (recording.as_mut(), name) {
        recording.calls.push(make(name));
    }
}

fn is_on() -> bool {
    ON.load(Ordering::Relaxed)
}

fn path_of(fd: i32) -> PathBuf {
    std::fs::read_link(format!("/proc/self/fd/{fd}")).unwrap_or_default()
}

/// # Safety
/// `path` is null or a C string.
unsafe fn text(path: *const libc::c_char) -> PathBuf {
    if path.is_null() {
        return PathBuf::new();
    }
    // SAFETY: not null, so a C string, as this function's caller promises.
    PathBuf::from(OsString::from_vec(unsafe { CStr::from_ptr(path) }.to_bytes().to_vec()))
}

/// # Safety
/// `bytes` has `len` bytes.
unsafe fn record_write(
    fd: i32,
    bytes: *const libc::c_void,
    len: usize,
    offset: i64,
) -> Option<u64> {
    // SAFETY: as this function's caller promises.
    let bytes = unsafe { std::slice::from_raw_parts(bytes.cast::<u8>(), len) };
    note(&path_of(fd), |name, path| Call::Write(name, path, offset as u64, bytes.to_vec()))
}

/// The kernel's answer in the C library's way.
macro_rules! kernel {
    ($call:ident, $($argument:expr),*) => {
        // SAFETY: the arguments are those that the caller of the C function gave, which promised
        // what the system call needs.
        unsafe { libc::syscall(libc::$call, $($argument),*) }
    };
}

/// # Safety
/// As the C function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pwrite64(
    fd: i32,
    bytes: *const libc::c_void,
    len: usize,
    offset: i64,
) -> isize {
    // SAFETY: the caller gives `len` readable bytes.
    let name = is_on().then(|| unsafe { record_write(fd, bytes, len, offset) }).flatten();
    let moved = kernel!(SYS_pwrite64, fd, bytes, len, offset) as isize;
    end(name, Call::WriteEnded);
    moved
}

/// # Safety
/// As the C function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn write(fd: i32, bytes: *const libc::c_void, len: usize) -> isize {
    if !is_on() {
        return kernel!(SYS_write, fd, bytes, len) as isize;
    }
    let path = path_of(fd);
    let appends = kernel!(SYS_fcntl, fd, libc::F_GETFL) as i32 & libc::O_APPEND != 0;
    let whence = if appends { libc::SEEK_END } else { libc::SEEK_CUR };
    let offset = match path.is_absolute() {
        true => kernel!(SYS_lseek, fd, 0, whence).max(0),
        false => 0,
    };
    // SAFETY: the caller gives `len` readable bytes.
    let name = unsafe { record_write(fd, bytes, len, offset) };
    let moved = kernel!(SYS_write, fd, bytes, len) as isize;
    end(name, Call::WriteEnded);
    moved
}

fn synced(fd: i32, sync: impl FnOnce() -> i32) -> i32 {
    let name = is_on().then(|| note(&path_of(fd), Call::Sync)).flatten();
    let result = sync();
    end(name, Call::SyncEnded);
    result
}

/// # Safety
/// As the C function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fsync(fd: i32) -> i32 {
    synced(fd, || kernel!(SYS_fsync, fd) as i32)
}

/// # Safety
/// As the C function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fdatasync(fd: i32) -> i32 {
    synced(fd, || kernel!(SYS_fdatasync, fd) as i32)
}

/// # Safety
/// As the C function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ftruncate64(fd: i32, len: i64) -> i32 {
    if is_on() {
        note(&path_of(fd), |_, path| Call::SetLen(path, len as u64));
    }
    kernel!(SYS_ftruncate, fd, len) as i32
}

/// # Safety
/// As the C function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fallocate(fd: i32, mode: i32, offset: i64, len: i64) -> i32 {
    if is_on() {
        note(&path_of(fd), |_, path| Call::SetLen(path, (offset + len) as u64));
    }
    kernel!(SYS_fallocate, fd, mode, offset, len) as i32
}

/// # Safety
/// As the C function; the mode is read whether or not it is given.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn open64(path: *const libc::c_char, flags: i32, mode: u32) -> i32 {
    if is_on() && flags & (libc::O_CREAT | libc::O_TRUNC) != 0 {
        // SAFETY: the caller gives a C string.
        let path = unsafe { text(path) };
        if flags & libc::O_TRUNC != 0 || !path.exists() {
            note(&path, |_, path| Call::Create(path));
        }
    }
    kernel!(SYS_openat, libc::AT_FDCWD, path, flags, mode) as i32
}

/// # Safety
/// As the C function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rename(from: *const libc::c_char, to: *const libc::c_char) -> i32 {
    if is_on() {
        // SAFETY: the caller gives C strings.
        let (from, to) = unsafe { (text(from), text(to)) };
        let mut recording = RECORDING.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(recording) = recording.as_mut()
            && let (Ok(from), Ok(to)) =
                (from.strip_prefix(&recording.root), to.strip_prefix(&recording.root))
        {
            let call = Call::Rename(from.to_owned(), to.to_owned());
            recording.calls.push(call);
        }
    }
    kernel!(SYS_rename, from, to) as i32
}

/// # Safety
/// As the C function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unlink(path: *const libc::c_char) -> i32 {
    if is_on() {
        // SAFETY: the caller gives a C string.
        note(&unsafe { text(path) }, |_, path| Call::Remove(path));
    }
    kernel!(SYS_unlink, path) as i32
}
