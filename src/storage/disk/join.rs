//! Joins CRC32Cs of consecutive parts.
//!
//! The CRC of A‖B is that of A moved on by |B| zero bytes, xor that of B; moving on is linear over
//! the bits of a CRC. For a length given once the move is four table look-ups, where working it out
//! anew is a chain of matrix products.

use crate::base::checksum;

/// Joins parts that, but for the last, all have one length.
#[derive(Debug)]
pub(super) struct Joiner {
    len: usize,
    /// What each value of each byte of a CRC becomes.
    tables: Box<[[u32; 256]; 4]>,
}

impl Joiner {
    /// For parts of `len` bytes.
    pub fn new(len: usize) -> Self {
        let mut tables = Box::new([[0; 256]; 4]);
        for (at, table) in tables.iter_mut().enumerate() {
            let bits: [u32; 8] =
                std::array::from_fn(|bit| checksum::crc32c_combine(1 << (8 * at + bit), 0, len));
            for (value, moved) in table.iter_mut().enumerate() {
                *moved =
                    (0..8).filter(|bit| value >> bit & 1 == 1).fold(0, |sum, bit| sum ^ bits[bit]);
            }
        }
        Self { len, tables }
    }

    /// The checksum of a whole from those of its consecutive parts, each with its length.
    pub fn join(&self, parts: &[(u32, usize)]) -> u32 {
        let Some(((first, _), rest)) = parts.split_first() else {
            return 0;
        };
        rest.iter().fold(*first, |crc, (next, len)| match *len == self.len {
            true => {
                let bytes = crc.to_le_bytes().into_iter();
                let moved = self.tables.iter().zip(bytes);
                moved.fold(*next, |sum, (table, byte)| sum ^ table[usize::from(byte)])
            }
            false => checksum::crc32c_combine(crc, *next, *len),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn parts_join_to_the_whole(
            bytes in prop::collection::vec(any::<u8>(), 0..3000), len in 1usize..900
        ) {
            let parts: Vec<(u32, usize)> =
                bytes.chunks(len).map(|part| (checksum::crc32c(part), part.len())).collect();
            prop_assert_eq!(Joiner::new(len).join(&parts), checksum::crc32c(&bytes));
        }
    }
}
