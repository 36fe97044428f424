//! What use has taught of a checkpoint: how often its experts were chosen, and which follow which.
//!
//! Kept in the checkpoint's index, and so gone when its files change. Law 4: habits change when
//! bytes come, never what is computed.

use crate::base::{BlockId, Result};
use crate::model::config::ModelConfig;
use crate::storage::catalog;
use std::path::Path;

const HEAT: &str = "habits/heat";
const FOLLOWS: &str = "habits/follows";
/// Uses that a policy is told of the hottest expert.
const USES: f64 = 4.0;

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Habits {
    experts: usize,
    /// Passes in which an expert was chosen, `[layer][expert]`, those of earlier runs fading.
    heat: Vec<Vec<u32>>,
    /// How often an expert followed one of the layer before, `[layer][before][after]`; empty where
    /// nobody asks for it.
    follows: Vec<Vec<u16>>,
    /// Whether anything was noted since it was loaded.
    noted: bool,
}

impl Habits {
    /// Of a checkpoint that was never used; `follows`: whether it is counted what follows what.
    pub fn new(config: &ModelConfig, follows: bool) -> Self {
        let (layers, experts) = (config.layers, config.experts);
        let follows = if follows { vec![vec![0; experts * experts]; layers] } else { Vec::new() };
        Self { experts, heat: vec![vec![0; experts]; layers], follows, noted: false }
    }

    /// What is known of a checkpoint with the index `folder`. What cannot be read is told in the
    /// log, and learned anew.
    pub fn known(config: &ModelConfig, follows: bool, folder: Option<&Path>) -> Self {
        let loaded = folder.map(|folder| Self::load(config, follows, folder)).transpose();
        let loaded = loaded.unwrap_or_else(|error| {
            tracing::warn!(%error, "what was learned of the checkpoint is lost");
            None
        });
        loaded.unwrap_or_else(|| Self::new(config, follows))
    }

    /// Keeps it for the next run, where there is an index and anything was noted; a failure is told
    /// in the log.
    pub fn keep(&self, folder: Option<&Path>) {
        if let Some(Err(error)) = folder.filter(|_| self.noted).map(|folder| self.save(folder)) {
            tracing::warn!(%error, "what was learned of the checkpoint is not kept");
        }
    }

    /// What is not there, or not of this shape, is as new.
    fn load(config: &ModelConfig, follows: bool, folder: &Path) -> Result<Self> {
        let mut habits = Self::new(config, follows);
        let heat = catalog::kept(folder, &names(HEAT, habits.heat.len()))?;
        for (counts, bytes) in habits.heat.iter_mut().zip(heat) {
            take(counts, &bytes.unwrap_or_default(), u32::from_le_bytes);
            // Of two runs the last counts twice; what was used once is not forgotten.
            counts.iter_mut().for_each(|count| *count = count.div_ceil(2));
        }
        let kept = catalog::kept(folder, &names(FOLLOWS, habits.follows.len()))?;
        for (counts, bytes) in habits.follows.iter_mut().zip(kept) {
            take(counts, &bytes.unwrap_or_default(), u16::from_le_bytes);
        }
        Ok(habits)
    }

    /// In place of what was there; what follows what stays where nobody counted it.
    fn save(&self, folder: &Path) -> Result<()> {
        let bytes = |counts: &Vec<u32>| counts.iter().flat_map(|n| n.to_le_bytes()).collect();
        let heat = names(HEAT, self.heat.len()).into_iter().zip(self.heat.iter().map(bytes));
        let bytes = |counts: &Vec<u16>| counts.iter().flat_map(|n| n.to_le_bytes()).collect();
        let follows = names(FOLLOWS, self.follows.len());
        catalog::keep(folder, heat.chain(follows.into_iter().zip(self.follows.iter().map(bytes))))
    }

    /// Bytes that it takes.
    pub fn bytes(config: &ModelConfig, follows: bool) -> u64 {
        let each = config.experts * (4 + usize::from(follows) * 2 * config.experts);
        (config.layers * each) as u64
    }

    /// A pass chose `chosen` in `layer`, and `before` in the layer before.
    pub fn note(&mut self, layer: usize, before: &[usize], chosen: &[usize]) {
        self.noted = true;
        for expert in chosen {
            let count = &mut self.heat[layer][*expert];
            *count = count.saturating_add(1);
        }
        let Some(counts) = self.follows.get_mut(layer).filter(|_| layer > 0) else { return };
        for from in before {
            let row = &mut counts[from * self.experts..][..self.experts];
            for to in chosen {
                row[*to] = row[*to].saturating_add(1);
            }
            if row.contains(&u16::MAX) {
                row.iter_mut().for_each(|count| *count /= 2);
            }
        }
    }

    /// Adds the `most` experts of `layer` that followed `before` most often.
    pub fn likely(&self, layer: usize, before: &[usize], most: usize, into: &mut Vec<usize>) {
        let Some(counts) = self.follows.get(layer) else { return };
        let score = |to: usize| -> u64 {
            before.iter().map(|from| u64::from(counts[from * self.experts + to])).sum()
        };
        let mut scored: Vec<(u64, usize)> =
            (0..self.experts).map(|to| (score(to), to)).filter(|(score, _)| *score > 0).collect();
        scored.sort_unstable_by(|a, b| b.cmp(a));
        into.extend(scored.into_iter().take(most).map(|(_, to)| to));
    }

    /// The `most` experts that were chosen most often, the hottest first, none that was never
    /// chosen. With each the uses that a policy is told of: few, so that a new text soon weighs more
    /// than those before.
    pub fn hottest(&self, most: usize) -> Vec<(BlockId, u32)> {
        let layers = self.heat.iter().enumerate();
        let mut hot: Vec<(u32, BlockId)> = layers
            .flat_map(|(layer, heat)| {
                let block =
                    move |(expert, count): (usize, &u32)| (*count, BlockId::weights(layer, expert));
                heat.iter().enumerate().map(block)
            })
            .filter(|(count, _)| *count > 0)
            .collect();
        hot.sort_unstable_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(&b.1)));
        hot.truncate(most);
        let top = hot.first().map_or(1.0, |(count, _)| f64::from(*count));
        let uses = |count| (USES * f64::from(count) / top).ceil() as u32;
        hot.into_iter().map(|(count, block)| (block, uses(count))).collect()
    }
}

/// The names of the layers' counts in the index.
fn names(what: &str, layers: usize) -> Vec<String> {
    (0..layers).map(|layer| format!("{what}/{layer:05}")).collect()
}

/// Reads counts; those of another number are of another model.
fn take<T, const N: usize>(counts: &mut [T], bytes: &[u8], read: fn([u8; N]) -> T) {
    if bytes.len() == counts.len() * N {
        for (count, bytes) in counts.iter_mut().zip(bytes.as_chunks().0) {
            *count = read(*bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::family::Family;

    fn config(layers: usize, experts: usize) -> ModelConfig {
        ModelConfig { layers, experts, ..ModelConfig::of_family(Family::Olmoe) }
    }

    #[test]
    fn what_follows_what_is_learned() {
        let mut habits = Habits::new(&config(2, 4), true);
        for _ in 0..20 {
            habits.note(0, &[3], &[1]);
            habits.note(1, &[1], &[3]);
        }
        let mut likely = Vec::new();
        habits.likely(1, &[1], 1, &mut likely);
        assert_eq!(likely, [3]);
        // Counts that would overflow are halved, and keep their order.
        for _ in 0..200_000 {
            habits.note(1, &[0], &[2]);
        }
        habits.note(1, &[0], &[1]);
        likely.clear();
        habits.likely(1, &[0], 2, &mut likely);
        assert_eq!(likely, [2, 1]);
    }

    #[test]
    fn the_hottest_come_first_and_the_unused_not_at_all() {
        let mut habits = Habits::new(&config(2, 4), false);
        (0..4).for_each(|_| habits.note(1, &[], &[2]));
        (0..2).for_each(|_| habits.note(0, &[], &[0, 3]));
        let block = BlockId::weights;
        let all = [(block(1, 2), 4), (block(0, 0), 2), (block(0, 3), 2)];
        assert_eq!(habits.hottest(9), all);
        assert_eq!(habits.hottest(2), all[..2]);
    }

    #[test]
    fn they_are_kept_and_fade() {
        let dir = tempfile::tempdir().unwrap();
        let (folder, config) = (dir.path().join("index"), config(2, 4));
        assert_eq!(Habits::load(&config, true, &folder).unwrap(), Habits::new(&config, true));
        catalog::write(&folder, "who", []).unwrap();
        let mut habits = Habits::new(&config, true);
        (0..6).for_each(|_| habits.note(1, &[0], &[2]));
        habits.save(&folder).unwrap();
        let again = Habits::load(&config, true, &folder).unwrap();
        assert_eq!((again.heat[1][2], again.follows[1][2]), (3, 6));
        // The catalogue itself is as it was, and of another shape nothing is taken.
        assert_eq!(catalog::read(&folder).unwrap(), Some(("who".to_owned(), Vec::new())));
        let other = self::config(2, 5);
        assert_eq!(Habits::load(&other, true, &folder).unwrap(), Habits::new(&other, true));
        // A run that does not count what follows leaves it, and one without a token leaves all.
        let mut plain = Habits::load(&config, false, &folder).unwrap();
        plain.keep(Some(&folder));
        assert_eq!(Habits::load(&config, true, &folder).unwrap(), again);
        plain.note(1, &[0], &[1]);
        plain.keep(Some(&folder));
        let after = Habits::load(&config, true, &folder).unwrap();
        assert_eq!((&after.heat[1][1..3], after.follows[1][2]), (&[1, 2][..], 6));
    }
}
