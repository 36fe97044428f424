//! Law 9: bad input ends in a clear error that names the thing and the remedy, with exit status 2
//! for what was asked wrongly and 1 for what went wrong, and loses nothing committed.

use crate::common::{losses, metrics, semoe, tiny, train};
use semoe::base::{Part, checksum};
use semoe::storage::index::SledIndex;
use semoe::storage::store::{Store, StoreOptions};
use std::fmt::Write;
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
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

/// Flips a bit in each block of a part that the last commit of a run has.
fn flip_all(run: &Path, part: Part) {
    let store = Store::open(&run.join("store"), &StoreOptions::default()).unwrap();
    for (_, located) in store.last_commit().unwrap().blocks().filter(|(b, _)| b.part == part) {
        let file = store.files().into_iter().find(|file| file.id == located.extent.file).unwrap();
        flip(&file.path, located.extent.offset + 1000);
    }
}

fn flip(file: &Path, offset: u64) {
    let file = OpenOptions::new().read(true).write(true).open(file).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 4], offset).unwrap();
}

/// Makes the entry of a block point beyond its file, with a checksum that fits.
fn point_outside(run: &Path) {
    let index = SledIndex::open(&run.join("store/index"), 1 << 20).unwrap();
    let entries = index.scan().unwrap();
    let (key, mut value) = entries.into_iter().find(|(key, _)| key[0] == b'b').unwrap();
    value[2..10].copy_from_slice(&(1u64 << 40).to_le_bytes());
    let crc = checksum::crc32c_append(checksum::crc32c(&key), &value[..30]);
    value[30..34].copy_from_slice(&crc.to_le_bytes());
    index.insert(&key, &value).unwrap();
    index.flush().unwrap();
}

#[test]
fn damage_is_found_and_named() {
    let mut book = Book::new();
    let run = train(book.dir.path(), "run", &["data.validation=0.1"]);
    let before = losses(&run);
    let harmed = |book: &Book, name: &str| copy(&run, &book.path(name));
    let six = ["train.steps=6", "data.validation=0.1"];

    let cut = harmed(&book, "cut");
    let weights = cut.join("store/weights.dat");
    let len = std::fs::metadata(&weights).unwrap().len();
    OpenOptions::new().write(true).open(&weights).unwrap().set_len(len / 2).unwrap();
    book.refuse_resume("a truncated data file, to go on", &cut, &six);
    book.refuse("a truncated data file, to evaluate", &["eval", cut.to_str().unwrap()]);

    let flipped = harmed(&book, "flipped");
    flip_all(&flipped, Part::Weights);
    book.refuse_resume("flipped bits, to go on", &flipped, &six);
    book.refuse("flipped bits, to export", &["export", flipped.to_str().unwrap()]);
    book.refuse("flipped bits, to check", &["store", "check", flipped.to_str().unwrap()]);

    let dense = harmed(&book, "dense");
    flip_all(&dense, Part::Dense);
    book.refuse_resume("a flipped bit in the dense state", &dense, &six);

    let outside = harmed(&book, "outside");
    point_outside(&outside);
    book.refuse_resume("an index that points outside its file", &outside, &six);

    let index = harmed(&book, "index");
    let db = index.join("store/index/db");
    std::fs::write(&db, vec![7; std::fs::metadata(&db).unwrap().len() as usize]).unwrap();
    book.refuse_resume("an index of rubbish", &index, &six);

    let manifest = harmed(&book, "manifest");
    std::fs::write(manifest.join("store/store.json"), "{").unwrap();
    book.refuse_resume("a damaged manifest", &manifest, &six);

    let lines = harmed(&book, "lines");
    let text = std::fs::read_to_string(lines.join("metrics.jsonl")).unwrap();
    std::fs::write(lines.join("metrics.jsonl"), text.replacen("\"step\":2", "\"step\":", 1))
        .unwrap();
    book.refuse_resume("a damaged line of metrics", &lines, &six);

    let tokens = harmed(&book, "tokens");
    let named = |path: &Path| path.to_str().unwrap().ends_with(".train.tokens");
    let files = std::fs::read_dir(tokens.join("data")).unwrap().map(|entry| entry.unwrap().path());
    let file = files.into_iter().find(|path| named(path)).unwrap();
    flip(&file, 100);
    book.refuse_resume("a damaged token file", &tokens, &six);
    std::fs::remove_file(&file).unwrap();
    for file in std::fs::read_dir(tokens.join("data")).unwrap() {
        std::fs::remove_file(file.unwrap().path()).unwrap();
    }
    let goes_on = ["--set", six[0], "--set", six[1]];
    book.goes_on(&tokens, &goes_on, 6);

    book.goes_on(&run, &goes_on, 6);
    assert_eq!(losses(&run)[..5], before);
    assert_eq!(losses(&run), losses(&tokens));
    let name = |path: PathBuf| path.file_stem().unwrap().to_str().unwrap().to_owned();
    insta::assert_snapshot!("damage", book.text.replace(&name(file.with_extension("")), "NAME"));
}

/// A state is compared by the update that uses it up, wherever that runs, and none of it is kept.
#[test]
fn a_flipped_bit_in_an_optimizer_state_ends_the_run_and_nothing_is_lost() {
    let mut book = Book::new();
    let run = train(book.dir.path(), "run", &["storage.host=864KiB"]);
    let six = ["--set", "train.steps=6"];
    let whole = copy(&run, &book.path("whole"));
    book.goes_on(&whole, &six, 6);
    let variants: [(&str, &[&str]); 3] = [
        ("memory", &["storage.host=1GiB"]),
        ("streamed", &["storage.host=432KiB"]),
        ("thread", &["storage.host=432KiB", "actors.optimizer.place=thread"]),
    ];
    for (name, sets) in variants {
        let harmed = copy(&run, &book.path(name));
        flip_all(&harmed, Part::State);
        book.text.clear();
        book.refuse_resume(name, &harmed, &[&["train.steps=6"], sets].concat());
        let told =
            format!("{name}\n  1 error: a block is not what was written: its checksum differs");
        assert!(book.text.starts_with(&told), "{}", book.text);
        assert!(book.text.contains("(block=N, file=DIR/"), "{}", book.text);
        assert!(book.text.contains("store/state.dat, offset=N, version=N"), "{}", book.text);

        flip_all(&harmed, Part::State);
        let extra: Vec<&str> = sets.iter().flat_map(|set| ["--set", set]).collect();
        book.goes_on(&harmed, &[&six[..], &extra].concat(), 6);
        assert_eq!(losses(&harmed), losses(&whole), "{name}");
        let checked = semoe(&["store", "check", harmed.to_str().unwrap()]);
        assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
    }
}
