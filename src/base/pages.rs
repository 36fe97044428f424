//! Zeroed memory mapped for itself: in huge pages where they are asked for and the kernel has them, so
//! that a sweep over it misses the TLB a five-hundredth as often.

use super::units::round_up;
use memmap2::{Advice, MmapMut, MmapOptions};

const PAGE: u64 = 4096;

/// What a huge page holds.
pub const HUGE_PAGE: u64 = 2 << 20;

/// `len` bytes that begin on a page, a huge one where huge pages are asked for.
#[derive(Debug)]
pub struct Pages {
    map: MmapMut,
    skip: usize,
    len: usize,
    huge: bool,
}

impl Pages {
    /// Whether `huge` pages came about is told by [`Self::are_huge`]. Of the last, incomplete one small
    /// pages take the place: no memory is taken beyond `len`.
    ///
    /// # Errors
    /// The system refuses the mapping.
    pub fn zeroed(len: u64, huge: bool) -> std::io::Result<Self> {
        let align = if huge { HUGE_PAGE } else { PAGE };
        let mut map = MmapOptions::new().len((round_up(len, PAGE) + align) as usize).map_anon()?;
        let skip = map.as_mut_ptr().align_offset(align as usize);
        let whole = (len / HUGE_PAGE * HUGE_PAGE) as usize;
        // Advice that the kernel may decline: slower, never wrong.
        let huge = huge && whole > 0 && map.advise_range(Advice::HugePage, skip, whole).is_ok();
        Ok(Self { map, skip, len: len as usize, huge })
    }

    /// Whether the kernel was asked for huge pages and agreed.
    pub fn are_huge(&self) -> bool {
        self.huge
    }
}

impl std::ops::Deref for Pages {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.map[self.skip..self.skip + self.len]
    }
}

impl std::ops::DerefMut for Pages {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.map[self.skip..self.skip + self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_bytes_are_zero_and_begin_on_a_page() {
        for (len, huge) in [(1, false), (4097, true), (3 << 20, true), (5 << 20, false)] {
            let mut pages = Pages::zeroed(len, huge).unwrap();
            let align = if huge { HUGE_PAGE } else { PAGE };
            assert!((pages.as_ptr() as u64).is_multiple_of(align));
            assert_eq!(pages.len() as u64, len);
            assert!(pages.iter().all(|byte| *byte == 0));
            pages.fill(1);
            assert!(!pages.are_huge() || len >= HUGE_PAGE);
        }
    }
}
