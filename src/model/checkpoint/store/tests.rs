//! What an import writes and an export gives back.

use super::import::import_syncing;
use super::*;
use crate::model::checkpoint::tests::{FAMILIES, Raw, fixture};
use crate::model::checkpoint::{Source, export};
use crate::model::kernels::linear::Encoding;
use std::path::PathBuf;
use std::process::Command;

fn bf16_folder(family: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let mut raw = Raw::of(&fixture(family));
    raw.round_to_bf16();
    raw.write(&fixture(family), dir.path());
    dir
}

#[test]
fn bf16_in_and_out_is_byte_identical_for_every_family() {
    for family in FAMILIES {
        let from = bf16_folder(family);
        let work = tempfile::tempdir().unwrap();
        let (store, out) = (work.path().join("store"), work.path().join("out"));
        let source = Source::open(from.path()).unwrap();
        let imported = import(&source, &store, &Options::default(), |_, _| {}).unwrap();
        assert!(imported.layers.iter().all(|layer| layer.relative_rms == 0.0));
        let opened = Source::open(&store).unwrap();
        let moe = opened.config().layers - 1;
        let [block] = opened.pieces(moe, 1) else { panic!("an expert is one block") };
        assert!(block.offset % 4096 == 0 && block.len % 4096 == 0);
        export(&opened, &out, 300_000, |_, _| {}).unwrap();
        let (before, after) = (Raw::of(from.path()), Raw::of(&out));
        let skipped = |name: &str| crate::model::family::is_skipped(opened.config(), name);
        for (name, tensor) in before.0.iter().filter(|(name, _)| !skipped(name)) {
            assert!(after.0[name] == *tensor, "{family} {name}");
        }
        assert_eq!(
            std::fs::read(from.path().join("config.json")).unwrap(),
            std::fs::read(out.join("config.json")).unwrap()
        );
        assert!(out.join("model.safetensors.index.json").exists());
    }
}

#[test]
fn quantised_experts_state_their_error_and_export_as_bf16() {
    let source = Source::open(&fixture("gpt_oss")).unwrap();
    let cases = [(Encoding::Int8, 0.02), (Encoding::Int4 { group: 32 }, 0.15)];
    for (encoding, bound) in cases {
        let work = tempfile::tempdir().unwrap();
        let store = work.path().join("store");
        let options = Options { experts: Some(encoding), dense: Some(Encoding::Int8) };
        let imported = import(&source, &store, &options, |_, _| {}).unwrap();
        assert_eq!(imported.layers.len(), 3);
        for layer in &imported.layers {
            assert!(layer.relative_rms > 1e-4 && layer.relative_rms < bound, "{layer:?}");
        }
        assert!(imported.dense > 1e-4 && imported.dense < 0.02, "{}", imported.dense);
        let opened = Source::open(&store).unwrap();
        assert_eq!(opened.layout(1, 1).unwrap().down.encoding, encoding);
        let pieces = opened.read_expert(1, 1).unwrap();
        let pieces: Vec<&[u8]> = pieces.iter().map(|piece| &**piece).collect();
        opened.expert(1, 1, &pieces).unwrap().shape().unwrap();
        let out = work.path().join("out");
        export(&opened, &out, 1 << 30, |_, _| {}).unwrap();
        let back = Source::open(&out).unwrap();
        assert_eq!(back.layout(1, 1).unwrap().down.encoding, Encoding::Bf16);
    }
}

#[test]
fn a_folder_that_holds_something_is_not_written_over() {
    let source = Source::open(&fixture("olmoe")).unwrap();
    let work = tempfile::tempdir().unwrap();
    let store = work.path().join("store");
    let other = Options { experts: Some(Encoding::Int8), dense: None };
    import(&source, &store, &Options::default(), |_, _| {}).unwrap();
    let mut messages = Vec::new();
    let mut refuse = |e: crate::base::Error| {
        messages.push(e.to_string().replace(&work.path().display().to_string(), "WORK"));
    };
    refuse(import(&source, &store, &Options::default(), |_, _| {}).unwrap_err());
    std::fs::write(work.path().join("file"), "x").unwrap();
    refuse(import(&source, work.path(), &other, |_, _| {}).unwrap_err());
    refuse(export(&source, &store, 1 << 30, |_, _| {}).unwrap_err());
    std::fs::write(store.join(INDEX), "{").unwrap();
    refuse(Source::open(&store).unwrap_err());
    insta::assert_snapshot!(messages.join("\n"));
}

/// The environment variable that makes a test the program that is killed.
const VICTIM: &str = "SEMOE_TEST_IMPORT_TO";

/// Not a test by itself: with the variable it imports until it kills itself.
#[test]
fn victim() {
    let Ok(to) = std::env::var(VICTIM) else { return };
    let source = Source::open(&fixture("olmoe")).unwrap();
    let options = Options { experts: Some(Encoding::Int8), dense: None };
    let mut calls = 0;
    import_syncing(&source, &PathBuf::from(to), &options, 40_000, |_, _| {
        calls += 1;
        if calls == 45 {
            std::process::abort();
        }
    })
    .unwrap();
}

#[test]
fn a_killed_import_goes_on_and_ends_with_the_same_bytes() {
    let work = tempfile::tempdir().unwrap();
    let (killed, whole) = (work.path().join("killed"), work.path().join("whole"));
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "model::checkpoint::store::tests::victim"])
        .env(VICTIM, &killed)
        .output()
        .unwrap()
        .status;
    assert!(!status.success() && killed.join("import.log").exists());
    let logged = std::fs::read_to_string(killed.join("import.log")).unwrap().lines().count();
    assert!((10..45).contains(&logged), "{logged}");
    assert!(Source::open(&killed).is_err());
    // A block that is not what was written is written again, with all behind it.
    let path = killed.join("experts-00000.bin");
    let mut damaged = std::fs::read(&path).unwrap();
    damaged[4100] ^= 1;
    std::fs::write(&path, damaged).unwrap();

    let source = Source::open(&fixture("olmoe")).unwrap();
    let options = Options { experts: Some(Encoding::Int8), dense: None };
    let mut first = None;
    let a = import(&source, &killed, &options, |done, _| {
        first.get_or_insert(done);
    })
    .unwrap();
    let b = import(&source, &whole, &options, |_, _| {}).unwrap();
    assert_eq!(a, b);
    for entry in std::fs::read_dir(&whole).unwrap() {
        let name = entry.unwrap().file_name();
        let [a, b] = [&killed, &whole].map(|dir| std::fs::read(dir.join(&name)).unwrap());
        assert!(a == b, "{name:?}");
    }
    assert_eq!(
        std::fs::read_dir(&killed).unwrap().count(),
        std::fs::read_dir(&whole).unwrap().count()
    );
}
