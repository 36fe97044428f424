//! How long a piece of work takes: the median of some runs, within some patience.

use super::Result;
use std::time::{Duration, Instant};

/// Median seconds of `body` over at most `most` runs, begun within `patience`, after one that
/// warms up: it may wait for the disk, so it counts nothing, however long it took.
///
/// # Errors
/// The first error of `body`.
pub fn median_seconds(
    patience: Duration,
    most: usize,
    mut body: impl FnMut() -> Result<()>,
) -> Result<f64> {
    body()?;
    let begun = Instant::now();
    let mut seconds = Vec::with_capacity(most);
    while seconds.is_empty() || (begun.elapsed() < patience && seconds.len() < most) {
        let start = Instant::now();
        body()?;
        seconds.push(start.elapsed().as_secs_f64());
    }
    seconds.sort_by(f64::total_cmp);
    Ok(seconds[seconds.len() / 2])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_run_at_least_twice_and_at_most_so_often() {
        let runs = |patience, most| {
            let mut runs = 0;
            let seconds = median_seconds(patience, most, || {
                runs += 1;
                Ok(())
            });
            assert!(seconds.unwrap() >= 0.0);
            runs
        };
        assert_eq!(runs(Duration::from_secs(60), 5), 6);
        assert_eq!(runs(Duration::ZERO, 5), 2);
    }
}
