//! The smallest budget that works: the largest single acquire must fit.

use super::message::SlotClass;
use crate::base::units::Bytes;
use crate::base::{BlockId, Error, ErrorKind, Part, Result};

/// Slots of each part that the largest acquire takes. With these and no more a run ends (law 8).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Minimum {
    slots: [u32; super::PARTS],
}

impl Minimum {
    /// Takes in one acquire, given as the blocks it names (each once).
    pub fn add(&mut self, blocks: impl IntoIterator<Item = BlockId>) {
        let mut counts = [0; super::PARTS];
        for block in blocks {
            counts[block.part as usize] += 1;
        }
        for (most, count) in self.slots.iter_mut().zip(counts) {
            *most = count.max(*most);
        }
    }

    /// Slots of `part` that are needed at least.
    pub fn slots(&self, part: Part) -> u32 {
        self.slots[part as usize]
    }

    /// Bytes that are needed at least, with slots of the sizes in `classes`.
    pub fn bytes(&self, classes: &[SlotClass]) -> u64 {
        classes.iter().map(|class| class.slot_bytes * u64::from(self.slots(class.part))).sum()
    }

    /// # Errors
    /// `Budget` if `classes` have too few slots of some part; the message holds the bytes that
    /// would do.
    pub fn check(&self, classes: &[SlotClass]) -> Result<()> {
        for part in Part::ALL {
            let slots = classes.iter().find(|class| class.part == part).map_or(0, |c| c.slots);
            let needed = self.slots(part);
            if slots < needed {
                let text = format!("the memory budget is too small: {part:?} needs {needed} slots");
                return Err(Error::new(ErrorKind::Budget, text)
                    .with("slots", slots)
                    .with("needed_for_all_slots", Bytes(self.bytes(classes))));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_acquire_decides() {
        let mut minimum = Minimum::default();
        minimum.add([BlockId::weights(0, 0), BlockId::grad(0, 0)]);
        minimum.add([BlockId::weights(0, 0), BlockId::weights(0, 1)]);
        let mut classes = [
            SlotClass { part: Part::Weights, slot_bytes: 8192, slots: 2 },
            SlotClass { part: Part::Grad, slot_bytes: 4096, slots: 1 },
        ];
        assert_eq!(minimum.bytes(&classes), 2 * 8192 + 4096);
        assert!(minimum.check(&classes).is_ok());
        classes[0].slots = 1;
        let refused = minimum.check(&classes).unwrap_err().to_string();
        assert!(refused.contains("Weights needs 2 slots"), "{refused}");
        assert!(refused.contains("20.0 KiB"), "{refused}");
    }
}
