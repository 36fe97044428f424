//! A plain read of memory: what the kernels are measured against.

use super::work::Work;
use crate::base::Result;
use crate::model::kernels::dispatch::dispatched;
use crate::model::kernels::view::cast;
use std::sync::atomic::{AtomicU32, Ordering};

/// Bytes of a task.
const TASK: usize = 256 << 10;

/// Reads the whole tasks of 256 KiB in `bytes` (which begin on a word) with all threads and does nothing
/// else. Answers all words joined, which needs every byte.
///
/// # Errors
/// [`crate::base::ErrorKind::Bug`] when the bytes are misaligned or a thread panicked.
pub fn read(bytes: &[u8], work: &mut Work) -> Result<u32> {
    let words = cast::<f32>(bytes)?;
    let all = AtomicU32::new(0);
    let task = TASK / size_of::<f32>();
    work.pool().run(words.len() / task, &|_, index| {
        all.fetch_xor(joined(&words[index * task..(index + 1) * task]), Ordering::Relaxed);
    })?;
    Ok(all.into_inner())
}

dispatched! {
    /// In vectors as wide as there are.
    fn joined(words: &[f32]) -> u32 = joined_body;
}

#[inline(always)]
fn joined_body(words: &[f32]) -> u32 {
    let mut lanes = [0u32; 64];
    for words in words.as_chunks::<64>().0 {
        for (lane, word) in lanes.iter_mut().zip(words) {
            *lane ^= word.to_bits();
        }
    }
    lanes.iter().fold(0, |a, b| a ^ b)
}
