//! The rows of a call, and running a loop over them on the pool.

use crate::base::{Error, Result};
use crate::model::kernels::linear::{Disjoint, Pool};
use std::sync::Mutex;

/// One token of a call: which sequence it belongs to and where it stands in it. Rows of one
/// sequence stand in the order of their positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// Index into the call's caches.
    pub sequence: usize,
    pub position: usize,
}

/// Consecutive rows of one sequence.
#[derive(Debug, Clone, Copy)]
pub(super) struct Run {
    pub first: usize,
    pub rows: usize,
    pub sequence: usize,
    /// Position of the first row.
    pub position: usize,
}

/// Divides the rows of a call.
pub(super) fn divide(
    rows: impl Iterator<Item = Row>,
    caches: usize,
    runs: &mut Vec<Run>,
) -> Result<()> {
    runs.clear();
    for (i, row) in rows.enumerate() {
        if row.sequence >= caches {
            return Err(Error::bug("a row belongs to no cache of its call")
                .with("sequence", row.sequence)
                .with("caches", caches));
        }
        match runs.last_mut() {
            Some(run)
                if run.sequence == row.sequence && run.position + run.rows == row.position =>
            {
                run.rows += 1;
            }
            _ => {
                runs.push(Run { first: i, rows: 1, sequence: row.sequence, position: row.position })
            }
        }
    }
    Ok(())
}

/// Numbers that one thread works through faster than a second one is woken.
const ALONE: usize = 16 * 1024;

/// Runs `body(row, out)` for every row of `width` numbers of `out`.
pub fn each_row(
    pool: &mut Pool,
    out: &mut [f32],
    width: usize,
    body: impl Fn(usize, &mut [f32]) + Sync,
) -> Result<()> {
    let width = width.max(1);
    if out.len() <= ALONE {
        out.chunks_mut(width).enumerate().for_each(|(row, out)| body(row, out));
        return Ok(());
    }
    let per_task = (ALONE / 2 / width).max(1);
    let mut none = vec![(); pool.threads()];
    each_part(pool, &mut none, out, width * per_task, |(), task, part| {
        for (i, out) in part.chunks_mut(width).enumerate() {
            body(task * per_task + i, out);
        }
        Ok(())
    })
}

/// Runs `body(state, task, part)` for every part of `part` numbers of `out`, each thread with a
/// state of its own.
///
/// # Errors
/// Whichever error a body gave; Bug for fewer states than threads.
pub(super) fn each_part<S: Send>(
    pool: &mut Pool,
    states: &mut [S],
    out: &mut [f32],
    part: usize,
    body: impl Fn(&mut S, usize, &mut [f32]) -> Result<()> + Sync,
) -> Result<()> {
    let part = part.max(1);
    let tasks = out.len().div_ceil(part);
    let out = Disjoint::new(out);
    each_task(pool, states, tasks, |state, task| {
        // SAFETY: each task has a part of its own.
        body(state, task, unsafe { out.range(task * part, part) })
    })
}

/// Runs `body(state, task)` for every task, each thread with a state of its own.
///
/// # Errors
/// As [`each_part`].
pub(super) fn each_task<S: Send>(
    pool: &mut Pool,
    states: &mut [S],
    tasks: usize,
    body: impl Fn(&mut S, usize) -> Result<()> + Sync,
) -> Result<()> {
    if states.len() < pool.threads() {
        return Err(Error::bug("there are more threads than states"));
    }
    let states = Disjoint::new(states);
    let failed = Mutex::new(None);
    pool.run(tasks, &|thread, task| {
        // SAFETY: a thread runs one task at a time, and only it has the state of its index.
        let state = unsafe { states.range(thread, 1) };
        if let [state] = state
            && let Err(error) = body(state, task)
            && let Ok(mut failed) = failed.lock()
        {
            *failed = Some(error);
        }
    })?;
    match failed.into_inner() {
        Ok(None) => Ok(()),
        Ok(Some(error)) => Err(error),
        Err(_) => Err(Error::bug("a part of a region panicked")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_divide_into_runs_of_one_sequence() {
        let row = |sequence, position| Row { sequence, position };
        let rows = [row(1, 5), row(0, 3), row(0, 4), row(0, 9), row(1, 6)];
        let mut runs = Vec::new();
        divide(rows.iter().copied(), 2, &mut runs).unwrap();
        let found: Vec<_> =
            runs.iter().map(|r| (r.first, r.rows, r.sequence, r.position)).collect();
        assert_eq!(found, [(0, 1, 1, 5), (1, 2, 0, 3), (3, 1, 0, 9), (4, 1, 1, 6)]);
        assert!(divide(rows.iter().copied(), 1, &mut runs).is_err());
    }

    #[test]
    fn every_row_is_visited_once_and_errors_come_back() {
        let mut pool = Pool::new(3).unwrap();
        for rows in [1, 100, 4000] {
            let mut out = vec![-1.0; rows * 7];
            each_row(&mut pool, &mut out, 7, |row, out| out.fill(row as f32)).unwrap();
            assert!(out.iter().enumerate().all(|(i, v)| *v == (i / 7) as f32));
        }
        let mut out = vec![0.0; 10];
        let mut states = vec![(); 3];
        let fail = |(): &mut (), task: usize, _: &mut [f32]| match task {
            3 => Err(Error::bug("on purpose")),
            _ => Ok(()),
        };
        assert!(each_part(&mut pool, &mut states, &mut out, 2, fail).is_err());
        assert!(each_part(&mut pool, &mut states[..2], &mut out, 2, fail).is_err());
    }
}
