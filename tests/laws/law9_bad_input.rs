//! Law 9: bad input ends in a clear error that names the thing and the remedy, with exit status 2
//! for what was asked wrongly and 1 for what went wrong, and loses nothing committed.

use crate::common::{losses, metrics, semoe, tiny, train};
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// A folder with the tiny configuration, and the messages of what was refused in it.
struct Book {
    dir: tempfile::TempDir,
    config: PathBuf,
    text: String,
}

impl Book {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { config: tiny(dir.path()), dir, text: String::new() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Runs a command that must fail, and notes exit status and message under `title`.
    fn refuse(&mut self, title: &str, args: &[&str]) {
        let output = semoe(args);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        let error = text.lines().find(|line| line.starts_with("error: "));
        let error = error.unwrap_or_else(|| panic!("{title}: no error in {text:?}"));
        let error = without_places(&error.replace(self.dir.path().to_str().unwrap(), "DIR"));
        let status = output.status.code().unwrap();
        writeln!(self.text, "{title}\n  {status} {error}").unwrap();
    }

    /// Starts a new run with overrides, which must be refused without a trace.
    fn refuse_new(&mut self, title: &str, sets: &[&str]) {
        let (config, run) = (self.config.clone(), self.path("refused"));
        let mut args = vec!["train", config.to_str().unwrap(), "--run", run.to_str().unwrap()];
        sets.iter().for_each(|set| args.extend(["--set", set]));
        self.refuse(title, &args);
        assert!(!run.exists(), "{title}: something was left behind");
    }

    fn refuse_resume(&mut self, title: &str, run: &Path, sets: &[&str]) {
        let config = self.config.clone();
        let mut args =
            vec!["train", config.to_str().unwrap(), "--run", run.to_str().unwrap(), "--resume"];
        sets.iter().for_each(|set| args.extend(["--set", set]));
        self.refuse(title, &args);
    }

    /// A run that goes on is as whole as one that nobody harmed.
    fn goes_on(&self, run: &Path, extra: &[&str], lines: usize) {
        let mut args = vec!["train", self.config.to_str().unwrap(), "--run"];
        args.extend([run.to_str().unwrap(), "--resume"]);
        args.extend(extra);
        let output = semoe(&args);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(metrics(run).len(), lines);
    }
}

/// Which slot a block has, and which is read first, depends on the order in which threads finish.
fn without_places(text: &str) -> String {
    let mut text = text.to_owned();
    for key in ["block=", "offset=", "key=[", "version="] {
        let mut parts = text.split(key);
        let mut out = parts.next().unwrap_or_default().to_owned();
        for part in parts {
            let rest = part.find([',', ')', ']']).map_or("", |at| &part[at..]);
            out += key;
            out += "N";
            out += rest;
        }
        text = out;
    }
    text
}

/// A copy of a run folder to do harm to.
fn copy(from: &Path, to: &Path) -> PathBuf {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
    to.to_owned()
}

#[test]
fn what_is_asked_wrongly_is_refused_before_any_work() {
    let mut book = Book::new();
    book.refuse_new("an unknown key", &["storage.hots=1MiB"]);
    book.refuse_new("a wrong type", &["train.steps=many"]);
    book.refuse_new("no steps", &["train.steps=0"]);
    book.refuse_new("a device that is not there", &["train.device=cuda"]);
    book.refuse_new("a budget that cannot work", &["storage.host=100KiB"]);
    book.refuse_new("sequences longer than the model allows", &["model.max_position=16"]);
    book.refuse_new("a vocabulary smaller than the tokenizer's", &["model.vocab=100"]);
    book.refuse_new("data that is missing", &["data.files=[\"nowhere.txt\"]"]);
    let empty = book.path("empty.txt");
    std::fs::write(&empty, "").unwrap();
    book.refuse_new("data that is empty", &[&format!("data.files=[{empty:?}]")]);
    let long = ["train.seq=1000000", "model.max_position=1000000"];
    book.refuse_new("data shorter than a sequence", &long);

    // A checkpoint whose file ends early, and one whose header promises too much.
    let model = copy(&crate::common::fixture("olmoe"), &book.path("model"));
    let tensors = model.join("model.safetensors");
    let text = std::fs::read_to_string(&book.config).unwrap();
    let (_, rest) = text.split_once("[data]").unwrap();
    let text = format!("name = \"tiny\"\n[model]\nfrom = {model:?}\n[data]{rest}");
    std::fs::write(&book.config, text).unwrap();
    let bytes = std::fs::read(&tensors).unwrap();
    std::fs::write(&tensors, &bytes[..bytes.len() / 2]).unwrap();
    book.refuse_new("a truncated checkpoint", &[]);
    let mut hostile = bytes;
    hostile[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    std::fs::write(&tensors, hostile).unwrap();
    book.refuse_new("a hostile checkpoint", &[]);
    insta::assert_snapshot!("asked_wrongly", book.text);
}

#[test]
fn a_run_goes_on_as_what_it_is_or_not_at_all() {
    let mut book = Book::new();
    let words = std::fs::read_to_string("tests/fixtures/text/psalms.txt").unwrap();
    let data = book.path("words.txt");
    std::fs::write(&data, &words).unwrap();
    let text = std::fs::read_to_string(&book.config).unwrap();
    let text = text.replace("tests/fixtures/text/psalms.txt", data.to_str().unwrap());
    std::fs::write(&book.config, text).unwrap();
    let run = book.path("run");
    book.refuse_resume("a resume of nothing", &run, &[]);
    let config = book.config.clone();
    let args = ["train", config.to_str().unwrap(), "--run", run.to_str().unwrap()];
    assert!(semoe(&args).status.success());
    let before = losses(&run);

    book.refuse("a run folder that is taken", &args);
    book.refuse_resume("another configuration", &run, &["train.seed=7", "train.steps=6"]);
    let keeps = ["storage.checkpoints=2", "train.keep_every=4", "train.commit_every=2"];
    book.refuse_resume("checkpoints that the store has no room for", &run, &keeps);
    std::fs::write(&data, words.replace("LORD", "KING")).unwrap();
    book.refuse_resume("other data", &run, &["train.steps=6"]);
    assert!(!run.join("changes.jsonl").exists());
    std::fs::remove_dir_all(copy(&run, &book.path("early")).join("store")).unwrap();
    let early = book.path("early");
    book.refuse_resume("a run that never committed", &early, &[]);
    insta::assert_snapshot!("other_runs", book.text);

    let six = ["--set", "train.steps=6", "--set", "storage.host=900KiB"];
    let allowed = [&six[..], &["--allow-change", "data.files"]].concat();
    book.goes_on(&copy(&run, &book.path("allowed")), &allowed, 6);
    let changes = std::fs::read_to_string(book.path("allowed/changes.jsonl")).unwrap();
    assert!(changes.contains("\"data.files\""), "{changes}");
    std::fs::write(&data, words).unwrap();
    book.goes_on(&run, &six, 6);
    assert_eq!(losses(&run)[..5], before);
}

#[test]
fn a_flipped_bit_is_found_and_named() {
    let dir = tempfile::tempdir().unwrap();
    let run = train(dir.path(), "run", &[]);
    let file = run.join("store/weights.dat");
    let mut bytes = std::fs::read(&file).unwrap();
    for at in (1000..bytes.len()).step_by(4096) {
        bytes[at] ^= 4;
    }
    std::fs::write(&file, bytes).unwrap();
    let output = semoe(&["export", run.to_str().unwrap()]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("checksum") && text.contains("weights.dat"), "{text}");
}

#[test]
fn a_truncated_data_file_is_found_and_named() {
    let dir = tempfile::tempdir().unwrap();
    let run = train(dir.path(), "run", &[]);
    let file = run.join("store/weights.dat");
    let len = std::fs::metadata(&file).unwrap().len();
    std::fs::OpenOptions::new().write(true).open(&file).unwrap().set_len(len / 2).unwrap();
    let output = semoe(&["eval", run.to_str().unwrap()]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_ne!(output.status.code(), Some(0), "{text}");
    assert!(text.contains("weights.dat"), "{text}");
}
