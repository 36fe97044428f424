//! Every engine moves the same bytes, gives the same checksums and answers every request.

use super::faulty::Fault;
use super::*;
use crate::base::checksum;
use crossbeam_channel::{Receiver, unbounded};
use memmap2::MmapMut;
use std::path::Path;

const LEN: u64 = 3 << 20;
const BLOCKS: u64 = 8;

fn data_file(dir: &Path) -> DataFile {
    let file = DataFile {
        id: FileId(4),
        path: dir.join("weights.dat"),
        len: LEN * BLOCKS,
        read_only: false,
    };
    direct::create_reserved(&file).unwrap();
    file
}

fn channel() -> (OnDone, Receiver<IoDone>) {
    let (send, receive) = unbounded();
    (Arc::new(move |done| send.send(done).unwrap()), receive)
}

fn request(tag: u64, op: IoOp, memory: &mut MmapMut, urgency: u64) -> IoRequest {
    let extent = Extent { file: FileId(4), offset: (tag % BLOCKS) * LEN, len: LEN };
    let at = ((tag % BLOCKS) * LEN) as usize;
    // SAFETY: every test keeps the memory until all answers have come, one block a request.
    let buf = unsafe { IoBuf::new(memory.as_mut_ptr().wrapping_add(at), LEN as usize) };
    IoRequest { tag, op, extent, buf, urgency, check: true, lift: None }
}

fn fill(memory: &mut MmapMut) {
    for (at, word) in memory.chunks_exact_mut(8).enumerate() {
        word.copy_from_slice(&faulty::scramble(at as u64).to_le_bytes());
    }
}

fn round_trip(options: &IoOptions, register: bool) -> IoEffective {
    let dir = tempfile::tempdir().unwrap();
    let file = data_file(dir.path());
    let mut memory = MmapMut::map_anon((LEN * BLOCKS) as usize).unwrap();
    fill(&mut memory);
    let original = memory.to_vec();
    let (on_done, answers) = channel();
    let registered = register.then(|| (memory.as_mut_ptr(), memory.len()));
    let io = IoService::start(options, vec![file], registered, on_done).unwrap();
    for op in [IoOp::Write, IoOp::Read] {
        for tag in 0..BLOCKS {
            io.submit(request(tag, op, &mut memory, tag)).unwrap();
        }
        let mut seen = [false; BLOCKS as usize];
        for _ in 0..BLOCKS {
            let done = answers.recv().unwrap();
            assert!(done.op == op && done.bytes == LEN && done.started <= done.finished);
            let at = (done.tag * LEN) as usize;
            let block = &original[at..at + LEN as usize];
            assert_eq!(done.result.unwrap(), checksum::crc32c(block));
            assert!(!std::mem::replace(&mut seen[done.tag as usize], true));
        }
        assert!(memory[..] == original[..]);
        memory.fill(0);
    }
    let counters = io.counters();
    assert_eq!((counters.bytes_read, counters.bytes_written), (LEN * BLOCKS, LEN * BLOCKS));
    assert!(counters.busy_nanos > 0 && counters.requests == 2 * BLOCKS);
    let effective = io.effective().clone();
    io.shutdown();
    effective
}

#[test]
fn uring_moves_bytes_with_plain_and_registered_buffers() {
    let options = IoOptions { chunk: 1 << 18, depth: 5, ..IoOptions::default() };
    let plain = round_trip(&options, false);
    assert!(!plain.registered);
    let registered = round_trip(&options, true);
    if registered.engine == "uring" {
        assert!(registered.registered || !registered.notes.is_empty());
    } else {
        assert!(registered.notes.iter().any(|note| note.contains("io_uring cannot be had")));
    }
}

#[test]
fn pool_moves_bytes_through_the_page_cache_too() {
    let pool = IoOptions { engine: EngineChoice::Pool, threads: 3, ..IoOptions::default() };
    assert_eq!(round_trip(&pool, false).engine, "pool");
    let buffered = IoOptions { direct: DirectChoice::Off, ..pool };
    assert!(!round_trip(&buffered, false).direct);
}

#[test]
fn what_nobody_asked_the_checksum_of_moves_all_the_same() {
    for engine in [EngineChoice::Auto, EngineChoice::Pool] {
        let dir = tempfile::tempdir().unwrap();
        let mut memory = MmapMut::map_anon((LEN * BLOCKS) as usize).unwrap();
        fill(&mut memory);
        let original = memory[..LEN as usize].to_vec();
        let (on_done, answers) = channel();
        let options = IoOptions { engine, ..IoOptions::default() };
        let io = IoService::start(&options, vec![data_file(dir.path())], None, on_done).unwrap();
        for op in [IoOp::Write, IoOp::Read] {
            io.submit(IoRequest { check: false, ..request(0, op, &mut memory, 0) }).unwrap();
            assert_eq!(answers.recv().unwrap().result.unwrap(), 0);
            assert!(op == IoOp::Write || memory[..LEN as usize] == original[..]);
            memory.fill(0);
        }
    }
}

#[test]
fn tmpfs_is_not_taken_for_a_disk() {
    let Ok(dir) = tempfile::tempdir_in("/dev/shm") else { return };
    let file = data_file(dir.path());
    let (on_done, _answers) = channel();
    let io = IoService::start(&IoOptions::default(), vec![file.clone()], None, on_done).unwrap();
    assert!(!io.effective().direct);
    assert!(io.effective().notes[0].contains("tmpfs"));
    let (on_done, _answers) = channel();
    let options = IoOptions { direct: DirectChoice::On, ..IoOptions::default() };
    let refused = IoService::start(&options, vec![file], None, on_done).unwrap_err();
    assert_eq!(refused.exit_status(), 2);
}

#[test]
fn a_truncated_file_and_a_wrong_extent_are_named() {
    for engine in [EngineChoice::Auto, EngineChoice::Pool] {
        let dir = tempfile::tempdir().unwrap();
        let file = data_file(dir.path());
        let path = file.path.clone();
        let mut memory = MmapMut::map_anon((LEN * BLOCKS) as usize).unwrap();
        let (on_done, answers) = channel();
        let options = IoOptions { engine, ..IoOptions::default() };
        let io = IoService::start(&options, vec![file], None, on_done).unwrap();
        std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(LEN + 4096).unwrap();
        io.submit(request(1, IoOp::Read, &mut memory, 0)).unwrap();
        let error = answers.recv().unwrap().result.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        assert!(error.to_string().contains("weights.dat is shorter"), "{error}");
        let mut outside = request(1, IoOp::Read, &mut memory, 0);
        outside.extent.offset = LEN * BLOCKS;
        assert_eq!(io.submit(outside).unwrap_err().kind(), ErrorKind::Bug);
        let mut unknown = request(1, IoOp::Read, &mut memory, 0);
        unknown.extent.file = FileId(0);
        assert_eq!(io.submit(unknown).unwrap_err().kind(), ErrorKind::Bug);
    }
}

fn target() -> queue::Target {
    let mut memory = MmapMut::map_anon((LEN * BLOCKS) as usize).unwrap();
    queue::Target::of(&[], &request(0, IoOp::Read, &mut memory, 0))
}

#[test]
fn the_queue_gives_urgent_chunks_first() {
    let mut memory = MmapMut::map_anon((LEN * BLOCKS) as usize).unwrap();
    let mut queue = queue::Queue::new(1 << 20);
    queue.push(request(1, IoOp::Read, &mut memory, 9), target());
    let first = queue.next().unwrap();
    queue.push(request(2, IoOp::Read, &mut memory, 0), target());
    queue.push(request(3, IoOp::Read, &mut memory, 5), target());
    queue.promote(1);
    // The promoted one came first; the demand is next; the speculative one last.
    let order: Vec<u64> = std::iter::from_fn(|| queue.next()).map(|chunk| chunk.request).collect();
    assert_eq!(order, [0, 0, 1, 1, 1, 2, 2, 2]);
    assert_eq!((first.offset, first.len), (LEN, 1 << 20));
}

#[test]
fn idle_requests_have_few_small_chunks_and_go_on_in_large_ones_once_they_are_waited_for() {
    let mut memory = MmapMut::map_anon((LEN * BLOCKS) as usize).unwrap();
    let mut queue = queue::Queue::new(1 << 20);
    queue.push(request(1, IoOp::Read, &mut memory, IDLE), target());
    let idle: Vec<_> = std::iter::from_fn(|| queue.next()).collect();
    assert_eq!(idle.iter().map(|chunk| chunk.len).collect::<Vec<_>>(), [256 << 10; 4]);
    assert!(!queue.has_next(), "the device has enough to do");
    assert!(queue.finish(&idle[0], Ok(0)).is_none());
    assert!(queue.has_next());
    // What is asked for goes first, and leaves no room for more of a guess.
    queue.push(request(2, IoOp::Read, &mut memory, 0), target());
    let asked: Vec<_> = std::iter::from_fn(|| queue.next()).collect();
    assert_eq!(asked.iter().map(|c| (c.request, c.len)).collect::<Vec<_>>(), [(1, 1 << 20); 3]);
    queue.promote(1);
    let rest: Vec<_> = std::iter::from_fn(|| queue.next()).collect();
    assert_eq!(rest.iter().map(|c| (c.request, c.len)).collect::<Vec<_>>(), [(0, 1 << 20); 2]);
    for chunk in idle[1..].iter().chain(&asked).chain(&rest[..1]) {
        queue.finish(chunk, Ok(0));
    }
    let done = queue.finish(&rest[1], Ok(0)).unwrap().done;
    assert_eq!((done.tag, done.bytes, done.idle, done.given_up), (1, LEN, 1 << 20, false));
}

#[test]
fn a_request_that_is_given_up_ends_with_what_is_under_way() {
    let mut memory = MmapMut::map_anon((LEN * BLOCKS) as usize).unwrap();
    let mut queue = queue::Queue::new(2 << 20);
    queue.push(request(1, IoOp::Read, &mut memory, IDLE), target());
    queue.push(request(2, IoOp::Read, &mut memory, IDLE), target());
    let idle: Vec<_> = std::iter::from_fn(|| queue.next()).collect();
    queue.give_up(2);
    let done = queue.next_given_up().unwrap().done;
    assert!(done.given_up && done.result.is_ok() && (done.tag, done.bytes) == (2, 0));
    queue.give_up(1);
    assert!(queue.next_given_up().is_none(), "four chunks are with the device");
    assert!(queue.next().is_none());
    let ended: Vec<_> = idle.iter().filter_map(|chunk| queue.finish(chunk, Ok(3))).collect();
    let [ended] = &ended[..] else { panic!("one answer") };
    assert!(ended.done.given_up && ended.done.result.is_ok());
    assert_eq!((ended.done.tag, ended.done.bytes, ended.done.idle), (1, 1 << 20, 1 << 20));
    assert!(queue.is_empty());
    // Too late: all of it is with the device.
    queue.push(request(3, IoOp::Read, &mut memory, 0), target());
    let chunks: Vec<_> = std::iter::from_fn(|| queue.next()).collect();
    queue.give_up(3);
    let ended = chunks.iter().find_map(|chunk| queue.finish(chunk, Ok(3))).unwrap();
    assert!(!ended.done.given_up && ended.done.bytes == LEN);
}

#[test]
fn engines_answer_what_is_given_up_and_read_what_becomes_urgent() {
    for engine in [EngineChoice::Auto, EngineChoice::Pool] {
        let dir = tempfile::tempdir().unwrap();
        let mut memory = MmapMut::map_anon((LEN * BLOCKS) as usize).unwrap();
        let (on_done, answers) = channel();
        let options = IoOptions { engine, ..IoOptions::default() };
        let io = IoService::start(&options, vec![data_file(dir.path())], None, on_done).unwrap();
        let mut given_up = 0;
        for round in 0..20 {
            for tag in 0..4 {
                io.submit(request(tag, IoOp::Read, &mut memory, IDLE)).unwrap();
            }
            io.promote(2).unwrap();
            for tag in [1, 3] {
                io.give_up(tag);
            }
            let mut ended: Vec<IoDone> = (0..4).map(|_| answers.recv().unwrap()).collect();
            ended.sort_by_key(|done| done.tag);
            for done in &ended {
                assert!(done.result.is_ok(), "round {round}");
                assert_eq!(done.given_up, done.bytes < LEN, "round {round}, {}", done.tag);
                assert!(!done.given_up || [1, 3].contains(&done.tag));
            }
            given_up += ended.iter().filter(|done| done.given_up).count();
        }
        assert!(given_up > 0, "the last one has hardly begun when it is given up");
        io.shutdown();
    }
}

#[test]
fn a_failed_chunk_ends_its_request_once() {
    let mut memory = MmapMut::map_anon((LEN * BLOCKS) as usize).unwrap();
    let mut queue = queue::Queue::new(1 << 20);
    queue.push(request(1, IoOp::Read, &mut memory, 0), target());
    let (one, two) = (queue.next().unwrap(), queue.next().unwrap());
    assert!(queue.finish(&one, Err(Error::corrupt("boom"))).is_none());
    assert!(queue.next().is_none(), "the third chunk is not worth reading");
    let done = queue.finish(&two, Ok(7)).unwrap().done;
    assert_eq!(done.bytes, 1 << 20);
    assert_eq!(done.result.unwrap_err().message(), "boom");
    assert!(queue.is_empty());
}

#[test]
fn twins_answer_and_fail_as_planned() {
    let dir = tempfile::tempdir().unwrap();
    let file = data_file(dir.path());
    let mut memory = MmapMut::map_anon((LEN * BLOCKS) as usize).unwrap();
    fill(&mut memory);
    let (on_done, answers) = channel();
    let plan: faulty::FaultPlan = Box::new(|nth, _| match nth {
        1 => Some(Fault::Full),
        3 => Some(Fault::BitFlip),
        4 => Some(Fault::Late(2)),
        _ => None,
    });
    let io = IoService::faulty(vec![file.clone()], plan, on_done);
    let write = |tag, op, memory: &mut MmapMut| io.submit(request(tag, op, memory, 0)).unwrap();
    write(0, IoOp::Write, &mut memory);
    let crc = answers.recv().unwrap().result.unwrap();
    write(1, IoOp::Write, &mut memory);
    let full = answers.recv().unwrap().result.unwrap_err().to_string();
    assert!(full.contains("the disk is full") && full.contains("weights.dat"), "{full}");
    write(0, IoOp::Read, &mut memory);
    assert_eq!(answers.recv().unwrap().result.unwrap(), crc);
    write(0, IoOp::Read, &mut memory);
    assert_ne!(answers.recv().unwrap().result.unwrap(), crc);
    for tag in [8, 16, 24] {
        write(tag, IoOp::Read, &mut memory);
    }
    let order: Vec<u64> = answers.try_iter().map(|done| done.tag).collect();
    assert_eq!(order, [16, 24, 8]);
    let (on_done, answers) = channel();
    let noop = IoService::noop(vec![file], on_done);
    noop.submit(request(5, IoOp::Write, &mut memory, 0)).unwrap();
    assert_eq!(answers.recv().unwrap().tag, 5);
}

#[test]
fn a_failing_service_fails_the_reads_of_its_plan_and_no_others() {
    let dir = tempfile::tempdir().unwrap();
    let file = data_file(dir.path());
    let (on_done, receive) = channel();
    let options = IoOptions { direct: DirectChoice::Off, ..IoOptions::default() };
    let service = IoService::start(&options, vec![file], None, on_done.clone()).unwrap();
    let plan = Box::new(|nth: u64, _: &IoRequest| (nth == 1).then_some(Fault::Broken));
    let service = service.failing(plan, on_done);
    let mut memory = MmapMut::map_anon((LEN * BLOCKS) as usize).unwrap();
    for tag in 0..3 {
        service.submit(request(tag, IoOp::Read, &mut memory, 0)).unwrap();
    }
    let mut failed: Vec<(u64, bool)> = (0..3)
        .map(|_| receive.recv().unwrap())
        .map(|done| (done.tag, done.result.is_err()))
        .collect();
    failed.sort_unstable();
    assert_eq!(failed, [(0, false), (1, true), (2, false)]);
    service.shutdown();
}
