//! Blocks at unaligned offsets come whole, aligned, and cost what the disk really gave.

use super::*;
use crate::base::{ErrorKind, Part};
use crate::storage::arena::Arena;
use crate::storage::disk::{
    DirectChoice, EngineChoice, IoBuf, IoDone, IoOp, IoOptions, IoRequest, IoService,
};
use crate::storage::hierarchy::{SlotClass, SlotId};
use std::sync::Arc;

/// Bytes that differ from their neighbours and from those a page away.
fn content(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at ^ (at >> 8) ^ (at >> 16)) as u8).collect()
}

fn options(engine: EngineChoice, direct: DirectChoice) -> IoOptions {
    IoOptions { engine, direct, chunk: 8192, ..IoOptions::default() }
}

/// Reads every block of `store` through `options` and compares it with the file.
fn read_all(store: &InPlace, blocks: &[(BlockId, Vec<Piece>)], bytes: &[u8], options: &IoOptions) {
    let class = SlotClass { part: Part::Weights, slot_bytes: store.slot_bytes(), slots: 1 };
    let arena = Arena::new(&[class]).unwrap();
    let slot = arena.slot(SlotId { part: Part::Weights, index: 0 }).unwrap();
    let (send, receive) = std::sync::mpsc::channel();
    let on_done = Arc::new(move |done: IoDone| send.send(done).unwrap());
    let whole = arena.whole();
    let service =
        IoService::start(options, store.files(), Some((whole.ptr, whole.len)), on_done).unwrap();
    let direct = options.direct != DirectChoice::Off;
    assert_eq!(service.effective().direct, direct, "{:?}", service.effective());
    let mut expected_bytes = 0;
    for (block, pieces) in blocks {
        let fetches = store.fetches(*block).unwrap();
        for (tag, fetch) in fetches.iter().enumerate() {
            // SAFETY: the arena outlives the service, and fetches of a block are disjoint.
            let buf =
                unsafe { IoBuf::new(slot.ptr.wrapping_add(fetch.at), fetch.extent.len as usize) };
            let tag = tag as u64;
            let (op, extent, lift) = (IoOp::Read, fetch.extent, Some(fetch.lift));
            service
                .submit(IoRequest { tag, op, extent, buf, urgency: 0, check: false, lift })
                .unwrap();
            expected_bytes += (extent.offset + extent.len).min(bytes.len() as u64) - extent.offset;
        }
        for _ in fetches {
            let done = receive.recv().unwrap();
            assert_eq!(done.result.unwrap(), 0);
        }
        let mut views = Vec::new();
        // SAFETY: all reads of the block have been answered.
        store.pieces(*block, unsafe { slot.as_slice() }, &mut views).unwrap();
        assert_eq!(views.len(), pieces.len());
        for (view, piece) in views.iter().zip(pieces) {
            assert!((view.as_ptr() as u64).is_multiple_of(OPERAND_ALIGN));
            let range = piece.offset as usize..(piece.offset + piece.len) as usize;
            assert!(**view == bytes[range], "{piece:?} of {block}");
        }
    }
    assert_eq!(service.counters().bytes_read, expected_bytes);
    service.shutdown();
}

#[test]
fn pieces_at_any_offset_come_whole_and_aligned() {
    let dir = tempfile::tempdir_in(".").unwrap();
    let path = dir.path().join("model.safetensors");
    let bytes = content(3 * 65536 + 123);
    std::fs::write(&path, &bytes).unwrap();
    let mut blocks = Vec::new();
    for (expert, past) in [0, 1, 7, 64, 4095].into_iter().enumerate() {
        let piece = |nth: u64, len| Piece { file: 0, offset: 8192 * nth + past, len };
        // Two that follow one another, one elsewhere, and one that no page holds alone.
        let pieces = vec![piece(1, 4096), piece(3, 8192), piece(4, 5000), piece(0, 1)];
        blocks.push((BlockId::weights(0, expert), pieces));
    }
    let tail = bytes.len() as u64 - 30_001;
    let last = vec![Piece { file: 0, offset: tail, len: 30_001 }];
    blocks.push((BlockId::weights(1, 0), last));
    let store = InPlace::new(&[path], blocks.clone()).unwrap();
    for engine in [EngineChoice::Auto, EngineChoice::Pool] {
        for direct in [DirectChoice::On, DirectChoice::Off] {
            read_all(&store, &blocks, &bytes, &options(engine, direct));
        }
    }
}

#[test]
fn neighbours_are_one_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    std::fs::write(&path, content(65536)).unwrap();
    let piece = |offset, len| Piece { file: 0, offset, len };
    let block = BlockId::weights(0, 0);
    let joined = vec![piece(100, 640), piece(740, 64), piece(804, 10), piece(814, 64)];
    let store = InPlace::new(&[path], [(block, joined)]).unwrap();
    let lengths: Vec<_> = store.fetches(block).unwrap().iter().map(|f| f.lift.len).collect();
    assert_eq!(lengths, [714, 64]);
}

#[test]
fn what_lies_outside_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    std::fs::write(&path, content(1000)).unwrap();
    for (offset, len) in [(900, 101), (u64::MAX, 2), (2000, 1)] {
        let pieces = vec![Piece { file: 0, offset, len }];
        let refused = InPlace::new(std::slice::from_ref(&path), [(BlockId::weights(2, 3), pieces)]);
        let refused = refused.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Input);
        let text = refused.to_string();
        assert!(text.contains("model.safetensors") && text.contains("layer2.expert3"), "{text}");
    }
    let gone = InPlace::new(&[dir.path().join("none")], []).unwrap_err();
    assert_eq!(gone.kind(), ErrorKind::Io);
}

#[test]
fn a_file_that_shrank_is_named() {
    let dir = tempfile::tempdir_in(".").unwrap();
    let path = dir.path().join("model.safetensors");
    std::fs::write(&path, content(65536)).unwrap();
    let block = BlockId::weights(0, 0);
    let pieces = vec![Piece { file: 0, offset: 60_000, len: 5000 }];
    let store = InPlace::new(std::slice::from_ref(&path), [(block, pieces)]).unwrap();
    std::fs::File::options().write(true).open(&path).unwrap().set_len(61_000).unwrap();
    for engine in [EngineChoice::Auto, EngineChoice::Pool] {
        let (send, receive) = std::sync::mpsc::channel();
        let on_done = Arc::new(move |done: IoDone| send.send(done).unwrap());
        let options = options(engine, DirectChoice::Auto);
        let service = IoService::start(&options, store.files(), None, on_done).unwrap();
        let class = SlotClass { part: Part::Weights, slot_bytes: store.slot_bytes(), slots: 1 };
        let arena = Arena::new(&[class]).unwrap();
        let fetch = store.fetches(block).unwrap()[0];
        // SAFETY: the arena outlives the service, which has one request.
        let buf = unsafe { IoBuf::new(arena.whole().ptr, fetch.extent.len as usize) };
        let (op, extent, lift) = (IoOp::Read, fetch.extent, Some(fetch.lift));
        service
            .submit(IoRequest { tag: 0, op, extent, buf, urgency: 0, check: false, lift })
            .unwrap();
        let error = receive.recv().unwrap().result.unwrap_err().to_string();
        assert!(error.contains("model.safetensors") && error.contains("truncated"), "{error}");
        service.shutdown();
    }
}
