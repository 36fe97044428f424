//! CRC32C, the checksum of blocks, records and caches (Castagnoli; RFC 3720, appendix B.4).

mod joiner;

pub use joiner::Joiner;

use crc_fast::{CrcAlgorithm, Digest, checksum, checksum_combine};

const ALGORITHM: CrcAlgorithm = CrcAlgorithm::Crc32Iscsi;

/// The checksum of `bytes`.
pub fn crc32c(bytes: &[u8]) -> u32 {
    checksum(ALGORITHM, bytes) as u32
}

/// The checksum of what `crc` is the checksum of, followed by `bytes`.
pub fn crc32c_append(crc: u32, bytes: &[u8]) -> u32 {
    let mut digest = Digest::new_with_init_state(ALGORITHM, u64::from(!crc));
    digest.update(bytes);
    digest.finalize() as u32
}

/// The checksum of two parts one after the other, from their own; `len` bytes are in the second.
pub fn crc32c_combine(first: u32, second: u32, len: usize) -> u32 {
    checksum_combine(ALGORITHM, u64::from(first), u64::from(second), len as u64) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Of RFC 3720, appendix B.4, and the check value of the catalogue of CRCs.
    #[test]
    fn published_values_hold() {
        let rising: Vec<u8> = (0..32).collect();
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        assert_eq!(crc32c(&rising), 0x46dd_794e);
        assert_eq!(crc32c(b""), 0);
    }

    proptest! {
        #[test]
        fn parts_give_the_checksum_of_the_whole(
            bytes in prop::collection::vec(any::<u8>(), 0..5000),
            cut in 0usize..5000,
        ) {
            let (first, second) = bytes.split_at(cut.min(bytes.len()));
            let whole = crc32c(&bytes);
            prop_assert_eq!(crc32c_append(crc32c(first), second), whole);
            prop_assert_eq!(crc32c_combine(crc32c(first), crc32c(second), second.len()), whole);
        }
    }
}
