//! From chosen experts to rows: which rows of which tensor an expert takes, and where it puts
//! what it makes.
//!
//! Law 3: a (token, choice) pair that was not dropped appears exactly once. The order of rows
//! depends on the choices alone: by expert, then by token and choice; from several ranks, by
//! rank first. So results do not depend on arrival.

use crate::model::gate::Assignments;
use tch::Tensor;

/// Where one local expert's rows come from and go to.
#[derive(Debug)]
pub struct Rows {
    /// Rows of the input, i64 `[N]`.
    pub take_n: Tensor,
    /// Rows of the output, i64 `[N]`.
    pub put_n: Tensor,
    pub count: usize,
}

impl Rows {
    fn new(take: &[i64], put: &[i64]) -> Self {
        let count = take.len();
        Self { take_n: Tensor::from_slice(take), put_n: Tensor::from_slice(put), count }
    }
}

/// Rows of every local expert when all experts are local: token rows in, (token, choice) rows out.
pub fn local_rows(assigned: &Assignments) -> Vec<Rows> {
    (0..assigned.offsets.len() - 1)
        .map(|e| Rows::new(&assigned.tokens[assigned.rows(e)], &assigned.slots[assigned.rows(e)]))
        .collect()
}

/// Rows of every local expert in what arrived: `counts[source][local expert]`, each source's rows
/// sorted by expert, sources one after another.
pub fn arrived_rows(counts: &[Vec<i64>]) -> Vec<Rows> {
    let local = counts.first().map_or(0, Vec::len);
    let mut of_expert: Vec<Vec<i64>> = vec![Vec::new(); local];
    let mut at = 0;
    for source in counts {
        for (rows, &n) in of_expert.iter_mut().zip(source) {
            rows.extend(at..at + n);
            at += n;
        }
    }
    of_expert.iter().map(|rows| Rows::new(rows, rows)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_from_several_ranks_are_taken_rank_by_rank() {
        let rows = arrived_rows(&[vec![2, 1], vec![1, 2]]);
        assert_eq!(Vec::<i64>::try_from(&rows[0].take_n).unwrap(), [0, 1, 3]);
        assert_eq!(Vec::<i64>::try_from(&rows[1].take_n).unwrap(), [2, 4, 5]);
    }
}
