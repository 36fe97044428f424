//! The memory of all slots: one mapping, made once, so that memory neither grows nor fragments.
//!
//! Each slot starts at a multiple of 4096 bytes, which O_DIRECT and 64-byte operands need. What is
//! in a slot, and who may touch it when, is the hierarchy's to say: the arena lends addresses.

use super::hierarchy::{SlotClass, SlotId};
use crate::base::pages::{HUGE_PAGE, Pages};
use crate::base::units::{Bytes, round_up};
use crate::base::{Error, ErrorKind, Part, Result};
use std::sync::Arc;

/// The alignment and granularity of slots.
pub const SLOT_ALIGN: u64 = 4096;

/// An address range in the arena: one slot.
///
/// A plain address, valid while the arena lives. To touch the bytes is `unsafe`: the toucher must
/// hold a lease that allows it, or be the I/O that the hierarchy has ordered.
#[derive(Debug, Clone, Copy)]
pub struct SlotBytes {
    pub ptr: *mut u8,
    pub len: usize,
}

// SAFETY: an address is not an access; who may dereference it is governed by leases.
unsafe impl Send for SlotBytes {}
// SAFETY: as above; sharing the address gives no access either.
unsafe impl Sync for SlotBytes {}

impl SlotBytes {
    /// The bytes for reading.
    ///
    /// # Safety
    /// The arena outlives `'a`, and for as long nobody writes to the slot: a read lease is held.
    pub unsafe fn as_slice<'a>(self) -> &'a [u8] {
        // SAFETY: the range lies in the arena's mapping; the caller rules out writers.
        unsafe { std::slice::from_raw_parts(self.ptr, self.len) }
    }

    /// The bytes for writing.
    ///
    /// # Safety
    /// The arena outlives `'a`, and for as long nobody else touches the slot: an exclusive lease
    /// is held.
    pub unsafe fn as_mut_slice<'a>(self) -> &'a mut [u8] {
        // SAFETY: the range lies in the arena's mapping; the caller rules out other users.
        unsafe { std::slice::from_raw_parts_mut(self.ptr, self.len) }
    }
}

/// The slots of one part inside the mapping.
#[derive(Debug, Clone, Copy)]
struct Region {
    class: SlotClass,
    offset: usize,
}

/// One aligned anonymous mapping that holds every slot.
#[derive(Debug)]
pub struct Arena {
    base: SlotBytes,
    regions: Vec<Region>,
    // Held for its drop; `base` points into it.
    pages: Pages,
}

impl Arena {
    /// Bytes that the slots of `classes` take, without mapping anything.
    pub fn required(classes: &[SlotClass]) -> u64 {
        classes.iter().map(|class| class.slot_bytes * u64::from(class.slots)).sum()
    }

    /// Maps the slots of `classes`.
    ///
    /// # Errors
    /// `Bug` for a slot size that is no multiple of 4096 or a part named twice; `Budget` if the
    /// system refuses the mapping.
    pub fn new(classes: &[SlotClass]) -> Result<Arc<Self>> {
        let mut regions: Vec<Region> = Vec::with_capacity(classes.len());
        let mut total = 0;
        for class in classes {
            if class.slot_bytes == 0 || !class.slot_bytes.is_multiple_of(SLOT_ALIGN) {
                return Err(Error::bug("a slot's size must be a multiple of 4096 bytes")
                    .with("bytes", class.slot_bytes));
            }
            if regions.iter().any(|region| region.class.part == class.part) {
                return Err(Error::bug("a part has two slot classes"));
            }
            regions.push(Region { class: *class, offset: total as usize });
            total += class.slot_bytes * u64::from(class.slots);
        }
        // Under a few huge pages the rounding would cost more than they give.
        let huge = total >= 8 * HUGE_PAGE;
        let len = round_up(total.max(SLOT_ALIGN), if huge { HUGE_PAGE } else { SLOT_ALIGN });
        let mut pages = Pages::zeroed(len, huge).map_err(|e| {
            Error::new(ErrorKind::Budget, "the system refuses the memory for the slots")
                .with("size", Bytes(len))
                .from_source(e)
        })?;
        let base = SlotBytes { ptr: pages.as_mut_ptr(), len: len as usize };
        Ok(Arc::new(Self { base, regions, pages }))
    }

    /// The whole range, for registration with the kernel.
    pub fn whole(&self) -> SlotBytes {
        self.base
    }

    /// Whether the kernel was asked for huge pages and agreed.
    pub fn has_huge_pages(&self) -> bool {
        self.pages.are_huge()
    }

    /// The classes it was made of.
    pub fn classes(&self) -> impl Iterator<Item = SlotClass> + '_ {
        self.regions.iter().map(|region| region.class)
    }

    /// Bytes of one slot of `part`, if it has slots.
    pub fn slot_bytes(&self, part: Part) -> Option<u64> {
        self.regions.iter().find(|r| r.class.part == part).map(|r| r.class.slot_bytes)
    }

    /// The address range of a slot.
    ///
    /// # Errors
    /// `Bug` if there is no such slot.
    pub fn slot(&self, id: SlotId) -> Result<SlotBytes> {
        let region = self.regions.iter().find(|region| region.class.part == id.part);
        let Some(region) = region.filter(|region| id.index < region.class.slots) else {
            return Err(Error::bug("the arena has no such slot")
                .with("part", format!("{:?}", id.part))
                .with("index", id.index));
        };
        let len = region.class.slot_bytes as usize;
        let offset = region.offset + id.index as usize * len;
        Ok(SlotBytes { ptr: self.base.ptr.wrapping_add(offset), len })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class(part: Part, slot_bytes: u64, slots: u32) -> SlotClass {
        SlotClass { part, slot_bytes, slots }
    }

    #[test]
    fn slots_are_aligned_disjoint_and_usable() {
        let classes = [class(Part::Weights, 3 << 20, 5), class(Part::Grad, 8192, 3)];
        let arena = Arena::new(&classes).unwrap();
        let mut ranges = Vec::new();
        for class in classes {
            for index in 0..class.slots {
                let slot = arena.slot(SlotId { part: class.part, index }).unwrap();
                assert!((slot.ptr as u64).is_multiple_of(SLOT_ALIGN));
                // SAFETY: the test is the only user of the arena.
                unsafe { slot.as_mut_slice() }.fill(index as u8 + 1);
                ranges.push((slot.ptr as usize, slot.len, index as u8 + 1));
            }
        }
        ranges.sort_unstable();
        assert!(ranges.windows(2).all(|w| w[0].0 + w[0].1 <= w[1].0));
        for (at, len, value) in ranges {
            let slot = SlotBytes { ptr: at as *mut u8, len };
            // SAFETY: as above.
            assert!(unsafe { slot.as_slice() }.iter().all(|byte| *byte == value));
        }
    }

    #[test]
    fn what_is_not_there_is_refused() {
        let arena = Arena::new(&[class(Part::State, 4096, 2)]).unwrap();
        assert!(arena.slot(SlotId { part: Part::State, index: 2 }).is_err());
        assert!(arena.slot(SlotId { part: Part::Grad, index: 0 }).is_err());
        assert!(Arena::new(&[class(Part::State, 100, 2)]).is_err());
        let twice = [class(Part::State, 4096, 1), class(Part::State, 4096, 1)];
        assert!(Arena::new(&twice).is_err());
    }
}
