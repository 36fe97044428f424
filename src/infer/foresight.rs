//! Which experts the next layer will likely choose, and whether reading them ahead pays.
//!
//! A guess costs little; a wrong read costs the disk a block's time and a slot. So every predictor
//! is always measured, against what the gates then choose, and may read only while enough of what
//! it would have read was used. What was guessed changes when bytes come, never what is computed.

use super::habits::Habits;
use crate::base::{Error, Result};
use crate::model::forward::{Forward, Routes};
use crate::model::kernels::linear::Work;
use serde::Serialize;
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// How the next layer's experts are guessed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum PredictorKind {
    /// Not at all: every read waits for its gate.
    None,
    /// The next layer's gate, applied to the present hidden state.
    GateLookahead,
    /// Which experts followed which, counted while running and kept for the next run.
    Transitions,
}

impl PredictorKind {
    const ALL: [(Self, &'static str); 3] = [
        (Self::None, "none"),
        (Self::GateLookahead, "gate-lookahead"),
        (Self::Transitions, "transitions"),
    ];

    /// Whether it is to be counted which expert follows which.
    pub fn counts_follows(self) -> bool {
        self == Self::Transitions
    }

    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(kind, _)| *kind == self).map_or("none", |(_, name)| *name)
    }
}

impl FromStr for PredictorKind {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let found = Self::ALL.iter().find(|(_, name)| *name == text).map(|(kind, _)| *kind);
        found.ok_or_else(|| {
            let known = Self::ALL.map(|(_, name)| name).join(", ");
            Error::config(format!("\"{text}\" is no predictor; there are {known}"))
        })
    }
}

/// What a predictor came to, in experts of layers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Tally {
    pub guessed: u64,
    pub chosen: u64,
    /// Guessed and then chosen: over `guessed` the precision, over `chosen` the recall.
    pub right: u64,
    /// Read ahead, and those of them that were then chosen.
    pub read: u64,
    pub useful: u64,
}

impl Tally {
    /// The line that people read; empty where nothing was guessed.
    pub fn line(&self) -> String {
        if self.guessed == 0 {
            return String::new();
        }
        let share = |part: u64, of: u64| 100.0 * part as f64 / of.max(1) as f64;
        format!(
            "predictor: {:.0}% of guesses right, {:.0}% of choices guessed; {} experts read ahead, \
             {} of them used\n",
            share(self.right, self.guessed),
            share(self.right, self.chosen),
            self.read,
            self.useful,
        )
    }
}

/// Reads ahead pay while at least this share of them is used.
const WORTH: f64 = 0.6;
/// Weight of the newest layer in the running share.
const NEWEST: f64 = 0.02;

/// Measures a predictor and says whether it may read.
#[derive(Debug, Clone, Copy)]
pub struct Governor {
    /// Running share of what was, or would have been, read ahead and then used.
    share: f64,
}

impl Default for Governor {
    fn default() -> Self {
        // Not trusted before it has shown something.
        Self { share: WORTH / 2.0 }
    }
}

impl Governor {
    pub fn pays(&self) -> bool {
        self.share >= WORTH
    }

    /// Of `lacking` experts that were guessed and not in memory, `used` were chosen.
    pub fn learn(&mut self, lacking: usize, used: usize) {
        if lacking > 0 {
            self.share += NEWEST * (used as f64 / lacking as f64 - self.share);
        }
    }
}

/// See the module.
#[derive(Debug)]
pub struct Foresight {
    kind: PredictorKind,
    top_k: usize,
    governor: Governor,
    habits: Arc<Mutex<Habits>>,
    routes: Routes,
    /// What was guessed for the layer at hand, and which of it was not in memory then.
    guess: Vec<usize>,
    lacking: Vec<usize>,
    /// Whether the lacking ones were read ahead.
    read: bool,
    /// What the layer before chose.
    before: Vec<usize>,
    tally: Tally,
}

impl Foresight {
    /// `habits`: those of the checkpoint so far; what is chosen is noted there.
    pub fn new(kind: PredictorKind, top_k: usize, habits: Arc<Mutex<Habits>>) -> Self {
        Self {
            kind,
            top_k,
            governor: Governor::default(),
            habits,
            routes: Routes::default(),
            guess: Vec::new(),
            lacking: Vec::new(),
            read: false,
            before: Vec::new(),
            tally: Tally::default(),
        }
    }

    pub fn tally(&self) -> Tally {
        self.tally
    }

    /// Layer `layer` chose `chosen` (ascending): judges what was guessed for it.
    pub fn chose(&mut self, layer: usize, chosen: &[usize]) {
        let used = |expert: &&usize| chosen.binary_search(expert).is_ok();
        if self.kind != PredictorKind::None && layer > 0 {
            let useful = self.lacking.iter().filter(used).count();
            self.governor.learn(self.lacking.len(), useful);
            self.tally.guessed += self.guess.len() as u64;
            self.tally.right += self.guess.iter().filter(used).count() as u64;
            self.tally.chosen += chosen.len() as u64;
            if self.read {
                self.tally.read += self.lacking.len() as u64;
                self.tally.useful += useful as u64;
            }
        }
        locked(&self.habits).note(layer, &self.before, chosen);
        self.guess.clear();
        self.lacking.clear();
        self.read = false;
        self.before.clear();
        self.before.extend_from_slice(chosen);
    }

    /// Guesses the experts of `layer` from the residual stream of the layer before, ascending.
    ///
    /// # Errors
    /// As [`Forward::guess`].
    pub fn guess(
        &mut self,
        forward: &Forward,
        layer: usize,
        x_th: &[f32],
        work: &mut Work,
    ) -> Result<&[usize]> {
        self.guess.clear();
        match self.kind {
            PredictorKind::None => {}
            PredictorKind::GateLookahead => {
                if forward.guess(layer, x_th, &mut self.routes, work)? {
                    self.guess.extend(self.routes.experts.iter().map(|e| usize::from(*e)));
                }
            }
            PredictorKind::Transitions => {
                let most = self.before.len().max(self.top_k);
                locked(&self.habits).likely(layer, &self.before, most, &mut self.guess);
            }
        }
        self.guess.sort_unstable();
        self.guess.dedup();
        Ok(&self.guess)
    }

    /// `lacking` of what was guessed are not in memory; whether they are to be read ahead.
    pub fn lacks(&mut self, lacking: impl Iterator<Item = usize>) -> Option<Vec<usize>> {
        self.lacking.clear();
        self.lacking.extend(lacking);
        self.read = !self.lacking.is_empty() && self.governor.pays();
        self.read.then(|| self.lacking.clone())
    }
}

fn locked(habits: &Mutex<Habits>) -> MutexGuard<'_, Habits> {
    habits.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::config::ModelConfig;
    use crate::model::family::Family;

    #[test]
    fn a_predictor_reads_only_while_it_is_right_often_enough() {
        let mut governor = Governor::default();
        assert!(!governor.pays(), "trust is earned");
        (0..100).for_each(|_| governor.learn(4, 4));
        assert!(governor.pays());
        (0..100).for_each(|_| governor.learn(4, 1));
        assert!(!governor.pays());
        let before = governor.share;
        governor.learn(0, 0);
        assert_eq!(governor.share, before, "what is in memory says nothing about reads");
    }

    #[test]
    fn the_tally_counts_guesses_against_choices() {
        let config = ModelConfig { layers: 2, experts: 8, ..ModelConfig::of_family(Family::Olmoe) };
        let habits = Arc::new(Mutex::new(Habits::new(&config, false)));
        let mut foresight = Foresight::new(PredictorKind::GateLookahead, 2, habits);
        (0..200).for_each(|_| foresight.governor.learn(1, 1));
        foresight.chose(0, &[0, 1]);
        foresight.guess = vec![2, 5];
        assert_eq!(foresight.lacks([5].into_iter()), Some(vec![5]));
        foresight.chose(1, &[2, 3]);
        let expected = Tally { guessed: 2, chosen: 2, right: 1, read: 1, useful: 0 };
        assert_eq!(foresight.tally(), expected);
    }

    #[test]
    fn names_are_read_back() {
        for (kind, name) in PredictorKind::ALL {
            assert_eq!(name.parse::<PredictorKind>().unwrap(), kind);
            assert_eq!(kind.name(), name);
        }
        assert!("oracle".parse::<PredictorKind>().unwrap_err().to_string().contains("transitions"));
    }
}
