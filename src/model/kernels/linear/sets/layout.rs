//! Where the columns of a stretch lie: as an encoding unpacks most easily, in four vectors of 64, and
//! gathered in sixteen sets of sixteen columns that share their scales.
//!
//! Activations are laid out the same way, so that weights need no sorting.

/// Columns of a stretch.
pub const STRETCH: usize = 256;
/// Columns that neighbours in a vector's 32-bit lane sum.
pub const QUAD: usize = 4;
/// Sets of a stretch, and quads of a set.
pub const SETS: usize = 16;
pub const QUADS: usize = STRETCH / SETS / QUAD;

/// An encoding's order of columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// As they are; a set is sixteen neighbours.
    Plain,
    /// Vector v has columns 32v.. of both halves of the stretch; a set is a lane.
    Halves,
    /// Chunks of 64, 32 low nibbles before 32 high ones; a set is a lane.
    Nibbles,
    /// As `Nibbles`; a set has low nibbles only, or high ones.
    SplitNibbles,
    /// Blocks of 32, sixteen low nibbles before sixteen high ones; a set is a lane.
    Blocks,
    /// Blocks of 32 in pairs of a low and a high nibble; a set is a lane.
    Pairs,
}

impl Layout {
    pub const ALL: [Self; 6] =
        [Self::Plain, Self::Halves, Self::Nibbles, Self::SplitNibbles, Self::Blocks, Self::Pairs];

    /// The column at byte `at` of vector `v`.
    pub const fn column(self, v: usize, at: usize) -> usize {
        // Two vectors of bytes are joined eight bytes in turn, their even eights, then their odd ones;
        // low nibbles are vectors 0 and 2.
        let (eight, byte) = (at / 8, at % 8);
        let (source, from) = (eight % 2, eight / 2 * 2 + v / 2);
        let high = v % 2;
        match self {
            Self::Plain => 64 * v + at,
            Self::Halves => 32 * v + at % 32 + at / 32 * 128,
            Self::Nibbles | Self::SplitNibbles => {
                64 * (source * 2 + from / 4) + 32 * high + from % 4 * 8 + byte
            }
            Self::Blocks => 32 * (source * 4 + from / 2) + 16 * high + from % 2 * 8 + byte,
            Self::Pairs => 32 * (source * 4 + from / 2) + 2 * (from % 2 * 8 + byte) + high,
        }
    }

    /// The set that 32-bit lane `lane` of vector `v` belongs to, and which of its quads it is.
    pub const fn set(self, v: usize, lane: usize) -> (usize, usize) {
        match self {
            Self::Plain => (lane / 4 * 4 + v, lane % 4),
            Self::SplitNibbles => {
                let (quarter, low) = (lane / 4, lane % 4);
                (v % 2 * 8 + quarter / 2 * 4 + low, v / 2 * 2 + quarter % 2)
            }
            _ => (lane, v),
        }
    }

    /// For each set the group of `columns` neighbours that it is of.
    pub const fn groups(self, columns: usize) -> [i32; SETS] {
        let mut groups = [0; SETS];
        let mut i = 0;
        while i < 4 * SETS {
            let (v, lane) = (i / SETS, i % SETS);
            groups[self.set(v, lane).0] = (self.column(v, lane * QUAD) / columns) as i32;
            i += 1;
        }
        groups
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [(Layout, usize); 7] = [
        (Layout::Plain, 16),
        (Layout::Halves, 128),
        (Layout::Nibbles, 64),
        (Layout::Nibbles, 128),
        (Layout::SplitNibbles, 32),
        (Layout::Blocks, 32),
        (Layout::Pairs, 32),
    ];

    #[test]
    fn every_column_is_in_one_set_of_its_own_group() {
        for (layout, group) in ALL {
            let groups = layout.groups(group);
            let mut seen = [[0; QUADS]; SETS];
            let mut columns = [0; STRETCH];
            for v in 0..4 {
                for lane in 0..16 {
                    let (set, quad) = layout.set(v, lane);
                    seen[set][quad] += 1;
                    for at in lane * QUAD..(lane + 1) * QUAD {
                        let column = layout.column(v, at);
                        columns[column] += 1;
                        assert_eq!(column / group, groups[set] as usize, "{layout:?} {column}");
                    }
                }
            }
            assert_eq!(seen, [[1; QUADS]; SETS], "{layout:?}");
            assert_eq!(columns, [1; STRETCH], "{layout:?}");
        }
    }
}
