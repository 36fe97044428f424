//! Batches are what the data, the seed and the step say.

use super::*;
use crate::train::data::{FileSpec, Format};
use std::path::{Path, PathBuf};

const SEQ: usize = 16;

fn spec(dir: &Path, files: &[PathBuf]) -> DataSpec {
    DataSpec {
        files: files.iter().map(FileSpec::new).collect(),
        batch: 4,
        seq: SEQ,
        validation: 0.1,
        shuffle: true,
        seed: 7,
        cache: dir.join("data"),
        threads: 2,
        vocab: 259,
    }
}

fn open(spec: DataSpec) -> Result<TextSource> {
    TextSource::open(spec, &Tokenizer::bytes()?, None, &mut |_| {})
}

fn write(dir: &Path, name: &str, text: &str) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, text).unwrap();
    path
}

/// A text in which each sequence of [`SEQ`] tokens says its own number.
fn numbered(letter: char, sequences: usize) -> String {
    (0..sequences).map(|i| format!("{letter}{i:0>14}\n")).collect()
}

fn rows(batch: &Batch) -> Vec<String> {
    let text = |row: &[i64]| row.iter().map(|&id| id as u8 as char).collect::<String>();
    batch.ids.chunks(batch.seq).map(text).collect()
}

#[test]
fn an_epoch_sees_every_sequence_once_and_validation_none_of_them() {
    let dir = tempfile::tempdir().unwrap();
    let file = write(dir.path(), "a.txt", &numbered('a', 60));
    let mut source = open(spec(dir.path(), &[file])).unwrap();
    // 60 * 16 bytes and eos: 60 sequences with their last target.
    assert_eq!((source.train_sequences(), source.validation_sequences()), (54, 6));
    let mut seen: Vec<String> = Vec::new();
    let mut index = 0;
    while seen.len() < 54 {
        index += 1;
        seen.extend(rows(&source.batch(index).unwrap()));
    }
    let first: Vec<String> = seen[..54].to_vec();
    let mut all = first.clone();
    for i in 0..source.validation_batches() {
        all.extend(rows(&source.validation_batch(i).unwrap()));
    }
    all.sort();
    assert_eq!(all.concat(), numbered('a', 60));
    // The next epoch has another order.
    let second: Vec<String> = (0..54)
        .map(|i| rows(&source.batch((54 + i) / 4 + 1).unwrap())[(54 + i as usize) % 4].clone())
        .collect();
    assert_ne!(first, second);
    let (mut a, mut b) = (first, second);
    a.sort();
    b.sort();
    assert_eq!(a, b);
}

#[test]
fn targets_are_the_next_tokens() {
    let dir = tempfile::tempdir().unwrap();
    let file = write(dir.path(), "a.txt", &numbered('a', 60));
    let mut unshuffled = spec(dir.path(), &[file]);
    unshuffled.shuffle = false;
    unshuffled.validation = 0.0;
    let mut source = open(unshuffled).unwrap();
    let batch = source.batch(1).unwrap();
    assert_eq!(batch.ids[1..], batch.targets[..batch.targets.len() - 1]);
    assert_eq!(batch.total_targets(), 64);
    let last = source.batch(15).unwrap();
    assert_eq!(last.targets[63], 257, "the text ends with eos");
    assert_eq!(batch.rows(1, 3).ids, batch.ids[16..48]);
    assert_eq!(source.validation_batches(), 0);
}

#[test]
fn a_batch_depends_on_the_step_alone() {
    let dir = tempfile::tempdir().unwrap();
    let a = write(dir.path(), "a.txt", &numbered('a', 40));
    let b = write(dir.path(), "b.txt", &numbered('b', 90));
    let spec = spec(dir.path(), &[a, b]);
    let mut source = open(spec.clone()).unwrap();
    let whole: Vec<Batch> = (1..=50).map(|s| source.batch(s).unwrap()).collect();
    // Opened again, from the token files, in another order.
    let mut again = open(spec.clone()).unwrap();
    assert_eq!(again.identity(), source.identity());
    for step in [50, 3, 27, 1] {
        assert_eq!(again.batch(step).unwrap(), whole[step as usize - 1]);
    }
    let one_thread = DataSpec { threads: 1, cache: dir.path().join("other"), ..spec };
    assert_eq!(open(one_thread).unwrap().batch(9).unwrap(), whole[8]);
}

#[test]
fn weights_say_how_often_a_text_is_seen() {
    let dir = tempfile::tempdir().unwrap();
    let a = write(dir.path(), "a.txt", &numbered('a', 100));
    let b = write(dir.path(), "b.txt", &numbered('b', 100));
    let mut weighted = spec(dir.path(), &[a, b]);
    weighted.files[1].weight = 3.0;
    let mut source = open(weighted).unwrap();
    let seen: Vec<String> = (1..=60).flat_map(|s| rows(&source.batch(s).unwrap())).collect();
    let b = seen.iter().filter(|row| row.starts_with('b')).count();
    assert!((b as i64 - 180).abs() <= 2, "{b} of {}", seen.len());
    // Each text's own epochs stay whole: 60 sequences of a are 60 different ones.
    let mut a: Vec<&String> = seen.iter().filter(|row| row.starts_with('a')).collect();
    let count = a.len();
    a.sort();
    a.dedup();
    assert_eq!(a.len(), count);
}

#[test]
fn lines_are_documents_held_out_as_a_whole() {
    let dir = tempfile::tempdir().unwrap();
    let lines: String =
        (0..100).map(|i| format!("{{\"text\": \"document {i:03} has its text\"}}\n")).collect();
    let file = write(dir.path(), "a.jsonl", &lines);
    let mut unshuffled = spec(dir.path(), &[file]);
    unshuffled.shuffle = false;
    let mut source = open(unshuffled).unwrap();
    let mut held_out = String::new();
    for i in 0..source.validation_batches() {
        held_out += &rows(&source.validation_batch(i).unwrap()).concat();
    }
    assert!(held_out.contains("document 009") && held_out.contains("document 019"));
    let steps = source.train_sequences() / 4;
    let train: String = (1..=steps).flat_map(|s| rows(&source.batch(s).unwrap())).collect();
    assert!(train.contains("document 008") && !train.contains("document 009"));
}

fn refusal(change: impl FnOnce(&Path, &mut DataSpec)) -> String {
    let dir = tempfile::tempdir().unwrap();
    let file = write(dir.path(), "a.txt", &numbered('a', 60));
    let mut spec = spec(dir.path(), &[file]);
    change(dir.path(), &mut spec);
    let e = open(spec).unwrap_err();
    assert_eq!(e.exit_status(), 2);
    e.to_string().replace(&dir.path().display().to_string(), "DIR")
}

#[test]
fn refusals_name_the_thing_and_the_remedy() {
    let empty = refusal(|dir, spec| {
        std::fs::write(dir.join("a.txt"), "").unwrap();
        spec.seq = 4;
    });
    insta::assert_snapshot!(empty, @"data file DIR/a.txt is empty (key=data.files)");
    let missing = refusal(|dir, spec| spec.files[0].path = dir.join("b.txt"));
    insta::assert_snapshot!(missing, @"data file DIR/b.txt does not exist: relative paths start at the working directory (key=data.files)");
    let short = refusal(|_, spec| spec.seq = 4096);
    insta::assert_snapshot!(short, @"data file DIR/a.txt is shorter than one sequence: give more text, or set train.seq to less than 961 (tokens=961, seq=4096)");
    let vocab = refusal(|_, spec| spec.vocab = 256);
    insta::assert_snapshot!(vocab, @"the tokenizer has 259 tokens and the model a vocabulary of 256: use the model's own tokenizer, or set model.vocab to 259 or more (key=data.tokenizer)");
    let weight = refusal(|_, spec| spec.files[0].weight = -1.0);
    insta::assert_snapshot!(weight, @"the weight of DIR/a.txt must be a positive number (key=data.files)");
    let bytes = refusal(|dir, _| std::fs::write(dir.join("a.txt"), b"ok\n\xff\n").unwrap());
    insta::assert_snapshot!(bytes, @"DIR/a.txt:2 is not UTF-8: convert the file first");
    let chat = refusal(|dir, spec| {
        let line = r#"{"messages": [{"role": "user", "content": "hi"}]}"#;
        std::fs::write(dir.join("a.txt"), line).unwrap();
        spec.files[0].format = Format::Auto;
    });
    insta::assert_snapshot!(chat, @"DIR/a.txt holds chats, and there is no chat template: set model.from or data.tokenizer to a folder whose tokenizer_config.json has a chat_template (or that holds chat_template.jinja)");
}

#[test]
fn data_that_changed_is_tokenised_again() {
    let dir = tempfile::tempdir().unwrap();
    let file = write(dir.path(), "a.txt", &numbered('a', 60));
    let spec = spec(dir.path(), std::slice::from_ref(&file));
    let before = open(spec.clone()).unwrap().identity();
    std::fs::write(&file, numbered('b', 60)).unwrap();
    assert_ne!(open(spec).unwrap().identity(), before);
}

#[test]
fn the_ledger_says_where_the_tokens_are() {
    let dir = tempfile::tempdir().unwrap();
    let file = write(dir.path(), "a.txt", &numbered('a', 60));
    let source = open(spec(dir.path(), &[file])).unwrap();
    let mut ledger = Ledger::default();
    source.ledger(&mut ledger);
    assert_eq!(ledger.lines[0].note, "961 tokens, held in memory");
    assert_eq!((source.disk_bytes(), ledger.total()), (961 * 2, 961 * 2 + 4 * 17 * 24));
}
