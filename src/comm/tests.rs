//! Collectives between threads: what they bring, and how they end when a rank misbehaves.

use super::*;
use crate::base::{Error, Result};
use std::time::Duration;
use tch::{Kind, Tensor};

fn options() -> LocalOptions {
    LocalOptions { timeout: Duration::from_secs(60), ahead: 8 }
}

/// Runs `body` on a thread a rank and gives what each returned.
fn on_ranks<T: Send>(
    size: usize,
    options: LocalOptions,
    body: impl Fn(LocalCollective) -> T + Sync,
) -> Vec<T> {
    let group = local::group(size, options).unwrap();
    std::thread::scope(|scope| {
        let body = &body;
        let threads: Vec<_> = group.into_iter().map(|end| scope.spawn(move || body(end))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

fn numbers(tensor: &Tensor) -> Vec<f32> {
    Vec::try_from(&tensor.flatten(0, -1)).unwrap()
}

#[test]
fn all_to_all_v_moves_each_part_to_its_rank() {
    let got = on_ranks(3, options(), |mut end| {
        let me = end.rank() as i64;
        // Rank r sends r*10 + to, (to) rows of it: some parts are empty.
        let part = |to: i64| Tensor::full([to, 2], me * 10 + to, (Kind::Float, tch::Device::Cpu));
        let parts: Vec<Tensor> = (0..3).map(part).collect();
        let sent: Vec<usize> = parts.iter().map(|part| part.data_ptr() as usize).collect();
        let got = end.all_to_all_v(parts).unwrap().wait().unwrap();
        let pointers: Vec<usize> = got.iter().map(|part| part.data_ptr() as usize).collect();
        end.barrier().unwrap().wait().unwrap();
        let got: Vec<_> = got.iter().map(|part| (part.size(), numbers(part))).collect();
        (got, sent, pointers)
    });
    for (to, (parts, _, pointers)) in got.iter().enumerate() {
        for (from, (size, values)) in parts.iter().enumerate() {
            assert_eq!(size, &[to as i64, 2]);
            assert!(values.iter().all(|value| *value == (from * 10 + to) as f32));
            assert_eq!(pointers[from], got[from].1[to], "a part was copied");
        }
    }
}

#[test]
fn all_gather_and_broadcast_give_every_rank_its_own_copy() {
    let got = on_ranks(3, options(), |mut end| {
        let me = end.rank();
        let all = end.all_gather(Tensor::from_slice(&[me as f32])).unwrap();
        let one = (me == 1).then(|| Tensor::from_slice(&[7.0f32]));
        let one = end.broadcast(one, 1).unwrap();
        // Waited for in the other order than called.
        let one = one.wait_one().unwrap();
        let mut all = all.wait().unwrap();
        let values: Vec<f32> = all.iter().flat_map(numbers).collect();
        // Writing to what came must not show anywhere else.
        let _ = all[0].fill_(100 + me as i64);
        end.barrier().unwrap().wait().unwrap();
        (values, numbers(&one), numbers(&all[0])[0])
    });
    for (rank, (all, one, written)) in got.into_iter().enumerate() {
        assert_eq!((all, one), (vec![0.0, 1.0, 2.0], vec![7.0]));
        assert_eq!(written, 100.0 + rank as f32);
    }
}

#[test]
fn sums_are_taken_in_rank_order_and_equal_on_every_rank() {
    for (size, elements) in [(2, 10), (3, 4096), (3, 10_001), (4, 4097), (1, 5)] {
        let value = |rank: usize, i: usize| {
            // Values of very different sizes, so that another order would give other bits.
            let scale = [1.0e8f32, 1.0, -1.0e8, 3.0e-3][(rank + i) % 4];
            scale * (1.0 + (i as f32 * 0.37 + rank as f32).sin())
        };
        let got = on_ranks(size, options(), |mut end| {
            let values: Vec<f32> = (0..elements).map(|i| value(end.rank(), i)).collect();
            end.all_reduce_sum_f32(&values).unwrap()
        });
        let expected: Vec<u32> = (0..elements)
            .map(|i| (1..size).fold(value(0, i), |sum, rank| sum + value(rank, i)).to_bits())
            .collect();
        for sum in got {
            let bits: Vec<u32> = sum.iter().map(|value| value.to_bits()).collect();
            assert!(bits == expected, "{size} ranks, {elements} elements");
        }
    }
}

#[test]
fn a_sum_leaves_the_callers_buffer_alone() {
    on_ranks(2, options(), |mut end| {
        let buffer = Tensor::ones([8], (Kind::Float, tch::Device::Cpu));
        let sum = end.all_reduce_sum(buffer.narrow(0, 0, 4)).unwrap();
        assert_eq!(numbers(&sum), [2.0; 4]);
        assert_eq!(numbers(&buffer), [1.0; 8]);
        let parts = vec![buffer.narrow(0, 0, 4), buffer.narrow(0, 4, 4)];
        assert_eq!(numbers(&end.reduce_scatter_sum(parts).unwrap()), [2.0; 4]);
        let doubles = end.all_reduce_sum_f64(&[0.5, end.rank() as f64]).unwrap();
        assert_eq!(doubles, [1.0, 1.0]);
    });
}

#[test]
fn a_rank_may_run_ahead_and_drop_handles() {
    on_ranks(2, options(), |mut end| {
        for i in 0..50 {
            let tensor = Tensor::from_slice(&[i as f32]);
            let gathered = end.all_gather(tensor).unwrap();
            if i % 3 == 0 {
                drop(gathered);
                continue;
            }
            let gathered = gathered.wait().unwrap();
            assert_eq!(numbers(&gathered[1 - end.rank()]), [i as f32]);
        }
    });
}

#[test]
fn test_does_not_block_and_tells_when_wait_will_not() {
    let mut group = local::group(2, options()).unwrap();
    let (mut one, mut zero) = (group.pop().unwrap(), group.pop().unwrap());
    let mut at_zero = zero.barrier().unwrap();
    assert!(!at_zero.test().unwrap());
    let mut at_one = one.barrier().unwrap();
    assert!(at_zero.test().unwrap() && at_one.test().unwrap());
    at_zero.wait().unwrap();
    at_one.wait().unwrap();
}

#[test]
fn a_rank_that_dies_is_named_to_all_and_nobody_hangs() {
    // Rank 2 dies in operation 1. The others wait for different ranks; both name rank 2.
    let got = on_ranks(3, options(), |end| {
        let at = if end.rank() == 2 { 1 } else { u64::MAX };
        let mut end = Faulty::new(end, Fault::Death, at);
        let run = |end: &mut Faulty<LocalCollective>| -> Result<()> {
            end.barrier()?.wait()?;
            let tensor = Tensor::from_slice(&[1.0f32]);
            end.all_gather(tensor)?.wait()?;
            Ok(())
        };
        let first = run(&mut end).unwrap_err();
        let later = end.barrier().and_then(|handle| handle.wait().map(drop)).unwrap_err();
        (first.to_string(), later.to_string())
    });
    for (rank, (first, later)) in got.iter().enumerate().take(2) {
        let expected = "rank 2 is gone, so all_gather (operation 1) cannot complete";
        assert!(first.starts_with(expected) && first.contains(&format!("rank={rank}")), "{first}");
        assert!(later.contains("broken since an earlier operation: rank 2 is gone"), "{later}");
    }
    assert!(got[2].0.contains("planned fault"), "{}", got[2].0);
}

#[test]
fn a_rank_that_leaves_after_its_last_operation_hurts_nobody() {
    let mut group = local::group(2, options()).unwrap();
    let (mut one, mut zero) = (group.pop().unwrap(), group.pop().unwrap());
    let gathered = one.all_gather(Tensor::from_slice(&[5.0f32])).unwrap();
    drop(gathered);
    drop(one);
    let gathered = zero.all_gather(Tensor::from_slice(&[4.0f32])).unwrap().wait().unwrap();
    assert_eq!(numbers(&gathered[1]), [5.0]);
    let error = zero.barrier().and_then(|handle| handle.wait().map(drop)).unwrap_err();
    assert!(error.to_string().contains("rank 1 is gone, so barrier (operation 1)"), "{error}");
}

#[test]
fn a_silent_rank_ends_the_wait_at_the_timeout() {
    let brief = LocalOptions { timeout: Duration::from_millis(30), ahead: 8 };
    let mut group = local::group(2, brief).unwrap();
    let mut one = Faulty::new(group.pop().unwrap(), Fault::Silence, 0);
    let mut zero = group.pop().unwrap();
    let _ = one.barrier().unwrap();
    let error: Error = zero.barrier().unwrap().wait().unwrap_err();
    let text = error.to_string();
    assert!(text.contains("rank 1 sent nothing for 0.0 s, so barrier (operation 0)"), "{text}");
}

#[test]
fn ranks_out_of_step_are_told_so() {
    let mut group = local::group(2, options()).unwrap();
    let (mut one, mut zero) = (group.pop().unwrap(), group.pop().unwrap());
    let _dropped = one.barrier().unwrap();
    let gathered = zero.all_gather(Tensor::from_slice(&[1.0f32])).unwrap();
    let text = gathered.wait().unwrap_err().to_string();
    let expected = "as operation 0 rank 0 called all_gather and rank 1 called barrier";
    assert!(text.contains(expected), "{text}");
}

#[test]
fn a_rank_too_far_ahead_is_stopped_with_an_error() {
    let brief = LocalOptions { timeout: Duration::from_millis(10), ahead: 2 };
    let mut group = local::group(2, brief).unwrap();
    let (_one, mut zero) = (group.pop().unwrap(), group.pop().unwrap());
    let mut send = || zero.broadcast(Some(Tensor::from_slice(&[1.0f32])), 0).map(drop);
    send().unwrap();
    send().unwrap();
    let text = send().unwrap_err().to_string();
    assert!(text.contains("rank 1 is 2 operations behind"), "{text}");
}

#[test]
fn wrong_calls_are_errors() {
    let mut group = local::group(2, options()).unwrap();
    assert!(group[0].all_to_all_v(vec![]).is_err());
    assert!(group[0].broadcast(None, 0).is_err());
    assert!(group[0].broadcast(Some(Tensor::from_slice(&[1.0f32])), 1).is_err());
    assert!(group[0].broadcast(None, 2).is_err());
    assert!(Solo.broadcast(None, 0).is_err());
    assert!(Solo.all_to_all_v(vec![]).is_err());
    assert!(local::group(0, options()).is_err());
    assert_eq!(Solo.all_reduce_sum_f32(&[1.5]).unwrap(), [1.5]);
}
