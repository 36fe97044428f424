//! A disk that is too small is refused with the figure that would work; one that fills while a run
//! is under way ends the run with a clear error, and nothing committed is lost.
//!
//! The disks are small file systems of their own, which takes the right to mount. Without it the
//! limit on the size of files (`ulimit -f`) stands in, and the test says so.

use crate::common::{TINY, losses, metrics, semoe};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

/// Steps of a run: so many that it lasts while something happens beside it.
const STEPS: usize = 100;

/// A mounted file system of its own, unmounted when dropped.
struct Disk {
    path: PathBuf,
}

impl Disk {
    /// A file system in memory with so many bytes.
    fn in_memory(at: &Path, bytes: u64) -> Option<Self> {
        let size = format!("size={bytes}");
        Self::mount(at, &["-t", "tmpfs", "-o", &size, "tmpfs"])
    }

    /// ext4 in a file, where O_DIRECT works.
    fn in_a_file(at: &Path, bytes: u64) -> Option<Self> {
        let image = at.with_extension("image");
        File::create(&image).unwrap().set_len(bytes).unwrap();
        let image = image.to_str().unwrap();
        if !quiet(Command::new("mkfs.ext4").args(["-q", "-m", "0", image])) {
            return None;
        }
        Self::mount(at, &["-o", "loop", image])
    }

    fn mount(at: &Path, args: &[&str]) -> Option<Self> {
        std::fs::create_dir_all(at).unwrap();
        let mounted = quiet(Command::new("mount").args(args).arg(at));
        mounted.then(|| Self { path: at.to_owned() })
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        quiet(Command::new("umount").arg("-l").arg(&self.path));
    }
}

/// Whether a command that may be missing succeeded.
fn quiet(command: &mut Command) -> bool {
    let silent = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    silent.status().is_ok_and(|status| status.success())
}

fn say(text: &str) {
    // Not captured: what a test could not do is always seen.
    std::io::stderr().write_all(format!("full_disk: {text}\n").as_bytes()).unwrap();
}

fn config_in(dir: &Path) -> PathBuf {
    let path = dir.join("long.toml");
    let text = TINY.replace("steps = 5", &format!("steps = {STEPS}")).replace("64MiB", "900KiB");
    std::fs::write(&path, text).unwrap();
    path
}

fn command(config: &Path, run: &Path, resume: bool) -> Vec<String> {
    let program = env!("CARGO_BIN_EXE_semoe");
    let mut words = vec![program, "train", config.to_str().unwrap(), "--run"];
    words.push(run.to_str().unwrap());
    words.extend(resume.then_some("--resume"));
    words.into_iter().map(str::to_owned).collect()
}

fn spawn(words: &[String]) -> Child {
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Losses of the run that nothing happens to.
fn unbroken() -> &'static Vec<(String, String)> {
    static LOSSES: OnceLock<Vec<(String, String)>> = OnceLock::new();
    LOSSES.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("unbroken");
        let output = spawn(&command(&config_in(dir.path()), &run, false)).wait_with_output();
        assert!(output.unwrap().status.success());
        losses(&run)
    })
}

/// Waits until a run has written so many steps.
fn wait_for_steps(child: &mut Child, run: &Path, steps: usize) {
    let lines = || std::fs::read_to_string(run.join("metrics.jsonl")).unwrap_or_default();
    while lines().lines().count() < steps {
        assert!(child.try_wait().unwrap().is_none(), "the run ended by itself");
        std::thread::yield_now();
    }
}

/// Ends the run and gives its exit status and error.
fn failure(child: Child) -> (Option<i32>, String) {
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let error = text.lines().find(|line| line.starts_with("error: ")).map(str::to_owned);
    (output.status.code(), error.unwrap_or(text))
}

fn resumes_as_if_nothing_had_happened(config: &Path, run: &Path) {
    let check = semoe(&["store", "check", run.to_str().unwrap()]);
    assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stderr));
    let output = spawn(&command(config, run, true)).wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(&losses(run), unbroken());
}

#[test]
fn a_disk_that_is_too_small_is_refused_with_the_figure_that_works() {
    let dir = tempfile::tempdir().unwrap();
    let config = config_in(dir.path());
    let start = |disk: &Path| {
        let mut words = command(&config, &dir.path().join("run"), false);
        let store = format!("storage.dir={:?}", disk.join("store"));
        words.extend(["--set", "train.steps=1", "--set", &store].map(str::to_owned));
        failure(spawn(&words))
    };
    let Some(small) = Disk::in_memory(&dir.path().join("small"), 4 << 20) else {
        say("no right to mount: files are limited to 1 MiB instead");
        let run = dir.path().join("run");
        let (status, error) = failure(spawn(&limited(&command(&config, &run, false))));
        assert_eq!(status, Some(1), "{error}");
        assert!(error.contains(".dat"), "{error}");
        return assert!(!run.exists(), "something was left behind");
    };
    let (status, error) = start(&small.path);
    assert_eq!(status, Some(2), "{error}");
    let (_, rest) = error.split_once("the store needs ").unwrap();
    let (figure, _) = rest.split_once(" MiB").unwrap();
    assert!(!dir.path().join("run").exists(), "something was left behind");
    // The figure is rounded to a tenth.
    let bytes = ((figure.parse::<f64>().unwrap() + 0.1) * 1048576.0) as u64;
    let enough = Disk::in_memory(&dir.path().join("enough"), bytes).unwrap();
    let (status, error) = start(&enough.path);
    assert_eq!(status, Some(0), "{error}");
}

/// The same command with every file limited to 1 MiB.
fn limited(words: &[String]) -> Vec<String> {
    let script = "trap '' XFSZ; ulimit -f 2048; exec \"$@\"";
    let mut all: Vec<String> = ["sh", "-c", script, "sh"].map(str::to_owned).into();
    all.extend_from_slice(words);
    all
}

#[test]
fn a_disk_that_fills_while_running_loses_nothing_committed() {
    let dir = tempfile::tempdir().unwrap();
    let config = config_in(dir.path());
    let at = dir.path().join("disk");
    let disk = Disk::in_a_file(&at, 48 << 20).or_else(|| {
        say("no right to mount a file: trying a file system in memory");
        Disk::in_memory(&at, 48 << 20)
    });
    let Some(disk) = disk else {
        say("no right to mount: files are limited to 1 MiB instead");
        let run = dir.path().join("run");
        let mut child = spawn(&command(&config, &run, false));
        wait_for_steps(&mut child, &run, 6);
        child.kill().unwrap();
        child.wait().unwrap();
        let (status, error) = failure(spawn(&limited(&command(&config, &run, true))));
        assert_eq!(status, Some(1), "{error}");
        assert!(error.contains("writing") || error.contains("cannot write"), "{error}");
        return resumes_as_if_nothing_had_happened(&config, &run);
    };
    let run = disk.path.join("run");
    let mut child = spawn(&command(&config, &run, false));
    wait_for_steps(&mut child, &run, 6);
    let hog = disk.path.join("hog");
    let mut file = File::create(&hog).unwrap();
    for bytes in [1 << 20, 4096, 1] {
        while file.write_all(&vec![1; bytes]).is_ok() {}
    }
    let (status, error) = failure(child);
    assert_eq!(status, Some(1), "{error}");
    assert!(error.contains("the disk is full; make room on it"), "{error}");
    assert!(error.contains(run.to_str().unwrap()), "{error}");
    let steps = metrics_that_are_whole(&run);
    assert!((6..STEPS).contains(&steps), "{steps} steps");
    drop(file);
    std::fs::remove_file(&hog).unwrap();
    resumes_as_if_nothing_had_happened(&config, &run);
}

fn metrics_that_are_whole(run: &Path) -> usize {
    let text = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    text.matches('\n').count()
}

#[test]
fn a_store_opened_twice_is_refused_and_the_first_run_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let config = config_in(dir.path());
    let run = dir.path().join("run");
    let mut first = spawn(&command(&config, &run, false));
    wait_for_steps(&mut first, &run, 1);
    let path = run.to_str().unwrap();
    let mut messages = String::new();
    for words in [
        &["train", config.to_str().unwrap(), "--run", path, "--resume"][..],
        &["train", config.to_str().unwrap(), "--run", path],
        &["eval", path],
        &["export", path],
        &["sample", path],
        &["store", "ls", path],
        &["store", "check", path],
        &["store", "gc", path],
    ] {
        let output = semoe(words);
        let text = String::from_utf8_lossy(&output.stderr);
        let text = text.replace(dir.path().to_str().unwrap(), "DIR");
        let verb = words[..if words[0] == "store" { 2 } else { 1 }].join(" ");
        messages += &format!("{verb}: {} {text}", output.status.code().unwrap());
    }
    assert!(first.try_wait().unwrap().is_none(), "the run ended before it was looked at");
    insta::assert_snapshot!("opened_twice", messages);
    let output = first.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(&losses(&run), unbroken());
    assert_eq!(metrics(&run).len(), STEPS);
}
