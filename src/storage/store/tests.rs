//! A store over real files: versions, commits, checkpoints, slots, and what is refused.

use super::*;
use crate::storage::twin::Recorder;

fn spec(keep: u32) -> StoreSpec {
    let class = |part, block_bytes, blocks| ClassSpec { part, block_bytes, blocks };
    StoreSpec {
        classes: vec![
            class(Part::Weights, 5000, 2),
            class(Part::Grad, 4096, 1),
            class(Part::Dense, 100, 1),
        ],
        keep,
        identity: serde_json::json!({"model": "tiny"}),
    }
}

const A: BlockId = BlockId { layer: 0, expert: 0, part: Part::Weights };
const B: BlockId = BlockId { layer: 0, expert: 1, part: Part::Weights };
const G: BlockId = BlockId { layer: 0, expert: 0, part: Part::Grad };

/// Writes a version of a block, its bytes all `fill`.
fn write(store: &Store, dir: &Path, block: BlockId, version: Step, fill: u8) -> Extent {
    use std::os::unix::fs::FileExt;
    let extent = store.place(block, version).unwrap();
    let bytes = vec![fill; extent.len as usize];
    let files = store.files();
    let path = &files.iter().find(|file| file.id == extent.file).unwrap().path;
    assert!(path.starts_with(dir));
    OpenOptions::new().write(true).open(path).unwrap().write_all_at(&bytes, extent.offset).unwrap();
    store.written(block, version, checksum::crc32c(&bytes), version).unwrap();
    extent
}

#[test]
fn commits_survive_and_later_writes_do_not() {
    let dir = tempfile::tempdir().unwrap();
    let options = StoreOptions::default();
    let store = Store::create(dir.path(), &spec(1), &options).unwrap();
    assert_eq!((store.committed(), store.meta().unwrap()), (None, Vec::new()));
    let first = write(&store, dir.path(), A, 0, 1);
    assert_eq!(first.len, 8192);
    write(&store, dir.path(), B, 0, 2);
    store.commit(0, b"zero").unwrap();
    let fresh = write(&store, dir.path(), A, 1, 3);
    assert_ne!(first.offset, fresh.offset);
    assert_eq!(write(&store, dir.path(), A, 2, 4).offset, fresh.offset);
    store.commit(2, b"two").unwrap();
    assert_eq!(write(&store, dir.path(), A, 3, 5).offset, first.offset);
    drop(store);
    let store = Store::open(dir.path(), &options).unwrap();
    assert_eq!((store.committed(), store.meta().unwrap()), (Some(2), b"two".to_vec()));
    let located = store.locate(A).unwrap().unwrap();
    assert_eq!((located.version, located.applied, located.extent), (2, 2, fresh));
    assert_eq!(located.crc, checksum::crc32c(&[4; 8192]));
    assert_eq!(store.locate(B).unwrap().unwrap().version, 0);
    assert!(store.check().unwrap().is_sound());
    assert_eq!(store.list().usage[0].free, 6 - 2);
    assert_eq!(store.spec(), &spec(1));
}

#[test]
fn checkpoints_hold_their_versions_until_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let options = StoreOptions::default();
    let store = Store::create(dir.path(), &spec(1), &options).unwrap();
    for step in 0..6 {
        write(&store, dir.path(), A, step, step as u8);
        if step == 0 {
            write(&store, dir.path(), B, 0, 9);
        }
        store.commit(step, &[step as u8]).unwrap();
        if step == 1 {
            store.keep("one", 1).unwrap();
            store.keep("one", 1).unwrap();
        }
    }
    assert_eq!(store.keep("two", 5).unwrap_err().kind(), ErrorKind::Budget);
    assert_eq!(store.keep("bad/name", 5).unwrap_err().kind(), ErrorKind::Config);
    assert_eq!(store.keep("three", 4).unwrap_err().kind(), ErrorKind::Bug);
    drop(store);
    let store = Store::open(dir.path(), &options).unwrap();
    let one = store.open_checkpoint("one").unwrap();
    assert_eq!((one.step, one.meta.as_slice()), (1, [1].as_slice()));
    assert_eq!(one.locate(A).unwrap().crc, checksum::crc32c(&[1; 8192]));
    assert_eq!(one.blocks().count(), 2);
    let report = store.check().unwrap();
    assert!(report.is_sound());
    assert_eq!(report.blocks, 3);
    store.drop_checkpoint("one").unwrap();
    assert!(store.open_checkpoint("one").unwrap_err().to_string().contains("no such checkpoint"));
    assert_eq!(store.list().usage[0].free, 6 - 2);
    store.keep("two", 5).unwrap();
    drop(store);
    let store = Store::open(dir.path(), &options).unwrap();
    assert_eq!(store.checkpoints(), [("two".to_owned(), 5)]);
    assert_eq!(store.gc().unwrap().usage[0].free, 4);
}

#[test]
fn the_next_step_may_write_while_a_commit_is_prepared() {
    let store = Store::over(Box::new(Recorder::default()), &spec(0)).unwrap();
    let put = |block, version| {
        let extent = store.place(block, version)?;
        store.written(block, version, 0, version).map(|()| extent)
    };
    put(A, 0).unwrap();
    put(B, 0).unwrap();
    store.commit(0, b"").unwrap();
    let first = put(A, 1).unwrap();
    store.prepare_commit(1).unwrap();
    let second = put(A, 2).unwrap();
    assert_ne!(first.offset, second.offset);
    let full = put(B, 2).unwrap_err();
    assert_eq!(full.kind(), ErrorKind::Busy, "{full}");
    assert_eq!(store.prepare_commit(2).unwrap_err().kind(), ErrorKind::Bug);
    store.commit(1, b"").unwrap();
    put(B, 2).unwrap();
    store.commit(2, b"").unwrap();
    assert_eq!(store.locate(A).unwrap().unwrap().version, 2);
    assert_eq!(put(A, 2).unwrap_err().kind(), ErrorKind::Bug);
    // Without an announcement, a later step that overwrote an earlier one is noticed.
    put(A, 3).unwrap();
    put(A, 4).unwrap();
    assert_eq!(store.commit(3, b"").unwrap_err().kind(), ErrorKind::Bug);
    store.commit(4, b"").unwrap();
    store.place(A, 5).unwrap();
    assert_eq!(store.commit(5, b"").unwrap_err().kind(), ErrorKind::Bug);
}

#[test]
fn scratch_keeps_one_slot_and_is_never_committed() {
    let store = Store::over(Box::new(Recorder::default()), &spec(0)).unwrap();
    assert_eq!(store.locate(G).unwrap(), None);
    let place = store.place(G, 1).unwrap();
    assert_eq!(store.locate(G).unwrap_err().kind(), ErrorKind::Bug);
    store.written(G, 1, 77, 1).unwrap();
    assert_eq!(store.place(G, 1).unwrap(), place);
    store.written(G, 1, 78, 1).unwrap();
    assert_eq!(store.locate(G).unwrap().unwrap().crc, 78);
    let other = BlockId::grad(5, 5);
    assert_eq!(store.place(other, 1).unwrap_err().kind(), ErrorKind::Bug);
    store.drop_scratch(G).unwrap();
    store.drop_scratch(G).unwrap();
    assert_eq!(store.place(other, 1).unwrap(), place);
    assert_eq!(store.drop_scratch(A).unwrap_err().kind(), ErrorKind::Bug);
}

#[test]
fn disk_required_counts_generations_and_scratch() {
    let slots = |keep: u64| 2 * 8192 * (2 + keep) + 4096 + 4096 * (2 + keep);
    let growth = Store::disk_required(&spec(1)) - Store::disk_required(&spec(0));
    assert_eq!(growth, slots(1) - slots(0) + 3 * 1024);
}
