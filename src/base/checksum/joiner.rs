//! Joins CRC32Cs of consecutive parts.
//!
//! The CRC of A‖B is that of A moved on by |B| zero bytes, xor that of B; moving on is linear over
//! the bits of a CRC. For a length met before the move is four table look-ups, where working it out
//! anew is a chain of matrix products.

use super::crc32c_combine;

/// Lengths that tables are kept for. Who cuts blocks into pieces meets fewer.
const LENGTHS: usize = 16;

/// What each value of each byte of a CRC becomes.
type Tables = [[u32; 256]; 4];

/// Joins parts, and learns their lengths.
#[derive(Debug, Default)]
pub struct Joiner {
    known: Vec<(usize, Box<Tables>)>,
}

impl Joiner {
    /// The checksum of a whole from those of its consecutive parts, each with its length.
    pub fn join(&mut self, parts: impl IntoIterator<Item = (u32, usize)>) -> u32 {
        parts.into_iter().fold(0, |crc, (next, len)| self.moved_on(crc, len) ^ next)
    }

    fn moved_on(&mut self, crc: u32, len: usize) -> u32 {
        // The first part has nothing before it, and an empty one moves nothing.
        if crc == 0 || len == 0 {
            return crc;
        }
        let known = self.known.iter().position(|(known, _)| *known == len);
        let at = match known {
            Some(at) => at,
            None if self.known.len() == LENGTHS => return crc32c_combine(crc, 0, len),
            None => {
                self.known.push((len, tables(len)));
                self.known.len() - 1
            }
        };
        let tables = self.known[at].1.iter().zip(crc.to_le_bytes());
        tables.fold(0, |sum, (table, byte)| sum ^ table[usize::from(byte)])
    }
}

fn tables(len: usize) -> Box<Tables> {
    let mut tables = Box::new([[0; 256]; 4]);
    for (at, table) in tables.iter_mut().enumerate() {
        let bits: [u32; 8] = std::array::from_fn(|bit| crc32c_combine(1 << (8 * at + bit), 0, len));
        for (value, moved) in table.iter_mut().enumerate() {
            *moved = (0..8).filter(|bit| value >> bit & 1 == 1).fold(0, |sum, bit| sum ^ bits[bit]);
        }
    }
    tables
}

#[cfg(test)]
mod tests {
    use super::super::crc32c;
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn parts_join_to_the_whole(
            bytes in prop::collection::vec(any::<u8>(), 0..3000), len in 1usize..900
        ) {
            let parts = bytes.chunks(len).map(|part| (crc32c(part), part.len()));
            prop_assert_eq!(Joiner::default().join(parts), crc32c(&bytes));
        }

        #[test]
        fn parts_of_any_lengths_join_to_the_whole(
            parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..60)
        ) {
            let mut joiner = Joiner::default();
            let whole = parts.concat();
            for _ in 0..2 {
                let sums = parts.iter().map(|part| (crc32c(part), part.len()));
                prop_assert_eq!(joiner.join(sums), crc32c(&whole));
            }
            prop_assert!(joiner.known.len() <= LENGTHS);
        }
    }
}
