//! Which experts the next layer will likely choose, and whether reading them ahead pays.
//!
//! A guess costs little, and it is read only while the disk would rest; but a wrong one takes a slot,
//! and bytes. So every predictor is always measured, against what the gates then choose, and may read
//! only what was right often enough of late. What was guessed changes when bytes come, never what is
//! computed.

use super::figures::Passes;
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
    /// Guessed, not in memory, and thought worth reading; and those of them that were then chosen.
    pub wanted: u64,
    pub useful: u64,
}

impl Tally {
    /// The lines that people read; empty where nothing was guessed. `read`: what was read ahead.
    pub fn lines(&self, read: &Passes) -> String {
        if self.guessed == 0 {
            return String::new();
        }
        let share = |part: u64, of: u64| 100.0 * part as f64 / of.max(1) as f64;
        format!(
            "predictor: {:.0}% of guesses right, {:.0}% of choices guessed\n\
             read ahead: begun {} times for {} guesses that were worth it, {:.1} MB of use and {:.1} MB in vain\n",
            share(self.right, self.guessed),
            share(self.right, self.chosen),
            read.read_ahead,
            self.wanted,
            read.bytes_ahead.saturating_sub(read.bytes_in_vain) as f64 * 1e-6,
            read.bytes_in_vain as f64 * 1e-6,
        )
    }
}

/// Weight of the newest layer in what is averaged.
const NEWEST: f64 = 0.02;
/// Share of guesses that is taken to be right before any was judged: too small to pay.
const UNKNOWN: f64 = 0.3;
/// Share of guesses that has to be right. A guess is read in time that the disk has to spare, so a
/// wrong one costs little time; but it takes a slot from a block that had earned it.
const PAYS: f64 = 0.5;

/// Measures a predictor and says which of its guesses are worth reading ahead.
///
/// Among guesses that are not in memory those that the predictor thinks likeliest are right far more
/// often than the last, so each rank has a share of its own; and the more rows a pass has, the more
/// experts it chooses, so each doubling of rows has.
#[derive(Debug, Clone, Default)]
pub struct Governor {
    /// By doublings of rows and by rank: the running share of guesses that were right.
    shares: Vec<Vec<f64>>,
}

impl Governor {
    fn share(&mut self, rows: usize, rank: usize) -> &mut f64 {
        let class = rows.max(1).ilog2() as usize;
        if self.shares.len() <= class {
            self.shares.resize(class + 1, Vec::new());
        }
        let shares = &mut self.shares[class];
        if shares.len() <= rank {
            shares.resize(rank + 1, UNKNOWN);
        }
        &mut shares[rank]
    }

    /// Whether guesses of this rank, 0 the likeliest, are read in passes of so many rows.
    pub fn pays(&mut self, rows: usize, rank: usize) -> bool {
        *self.share(rows, rank) >= PAYS
    }

    /// A guess that was not in memory was judged.
    pub fn learn(&mut self, rows: usize, rank: usize, right: bool) {
        let share = self.share(rows, rank);
        *share += NEWEST * (f64::from(u8::from(right)) - *share);
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
    /// Rows of the pass.
    rows: usize,
    /// What was guessed for the layer at hand, ascending, and the likeliest first.
    guess: Vec<usize>,
    ranked: Vec<usize>,
    weighed: Vec<(f32, usize)>,
    /// Those of them that were not in memory, the likeliest first, each with its rank and whether it
    /// was worth reading.
    lacking: Vec<(usize, usize, bool)>,
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
            rows: 0,
            guess: Vec::new(),
            ranked: Vec::new(),
            weighed: Vec::new(),
            lacking: Vec::new(),
            before: Vec::new(),
            tally: Tally::default(),
        }
    }

    pub fn tally(&self) -> Tally {
        self.tally
    }

    /// Layer `layer` chose `chosen` (ascending): judges what was guessed for it.
    pub fn chose(&mut self, layer: usize, chosen: &[usize]) {
        let used = |expert: &usize| chosen.binary_search(expert).is_ok();
        if self.kind != PredictorKind::None && layer > 0 {
            for (rank, expert, worth) in self.lacking.drain(..) {
                let right = used(&expert);
                self.governor.learn(self.rows, rank, right);
                self.tally.wanted += u64::from(worth);
                self.tally.useful += u64::from(worth && right);
            }
            self.tally.guessed += self.guess.len() as u64;
            self.tally.right += self.guess.iter().filter(|expert| used(expert)).count() as u64;
            self.tally.chosen += chosen.len() as u64;
        }
        locked(&self.habits).note(layer, &self.before, chosen);
        self.guess.clear();
        self.lacking.clear();
        self.before.clear();
        self.before.extend_from_slice(chosen);
    }

    /// Guesses the experts of `layer`, ascending, for the rows `asked` of the residual stream of the layer
    /// before, or for all `rows` of it.
    ///
    /// # Errors
    /// As [`Forward::guess`].
    pub fn guess(
        &mut self,
        forward: &Forward,
        layer: usize,
        rows: usize,
        asked: Option<&[usize]>,
        x_th: &[f32],
        work: &mut Work,
    ) -> Result<&[usize]> {
        self.rows = asked.map_or(rows, <[usize]>::len);
        self.ranked.clear();
        match self.kind {
            PredictorKind::None => {}
            _ if self.rows == 0 => {}
            PredictorKind::GateLookahead => {
                if forward.guess(layer, x_th, asked, &mut self.routes, work)? {
                    self.routes.by_weight(&mut self.weighed);
                    self.ranked.extend(self.weighed.iter().map(|(_, expert)| *expert));
                }
            }
            PredictorKind::Transitions => {
                let most = self.before.len().min(self.rows * self.top_k).max(self.top_k);
                locked(&self.habits).likely(layer, &self.before, most, &mut self.ranked);
            }
        }
        self.guess.clear();
        self.guess.extend_from_slice(&self.ranked);
        self.guess.sort_unstable();
        Ok(&self.guess)
    }

    /// `lacking` of what was guessed (ascending) are not in memory; which are to be read ahead, the
    /// likeliest first.
    pub fn lacks(&mut self, lacking: &[usize]) -> impl Iterator<Item = usize> {
        self.lacking.clear();
        for (rank, expert) in self.ranked.iter().enumerate() {
            if lacking.binary_search(expert).is_ok() {
                let worth = self.governor.pays(self.rows, rank);
                self.lacking.push((rank, *expert, worth));
            }
        }
        let worth = self.lacking.iter().filter(|(_, _, worth)| *worth);
        worth.map(|(_, expert, _)| *expert)
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
    fn a_rank_is_read_while_it_is_right_often_enough() {
        let mut governor = Governor::default();
        assert!(!governor.pays(1, 0), "trust is earned");
        for _ in 0..200 {
            governor.learn(1, 0, true);
            governor.learn(1, 5, false);
        }
        assert!(governor.pays(1, 0) && !governor.pays(1, 5));
        assert!(!governor.pays(1, 1), "never judged");
        assert!(!governor.pays(2, 0), "two rows choose otherwise");
        // Right in every third case is too little.
        (0..300).for_each(|nth| governor.learn(1, 0, nth % 3 == 0));
        assert!(!governor.pays(1, 0));
    }

    #[test]
    fn the_tally_counts_guesses_against_choices() {
        let config = ModelConfig { layers: 2, experts: 8, ..ModelConfig::of_family(Family::Olmoe) };
        let habits = Arc::new(Mutex::new(Habits::new(&config, false)));
        let mut foresight = Foresight::new(PredictorKind::GateLookahead, 2, habits);
        foresight.rows = 1;
        for rank in [0, 1] {
            (0..200).for_each(|_| foresight.governor.learn(1, rank, true));
        }
        foresight.chose(0, &[0, 1]);
        foresight.guess = vec![2, 5, 7];
        foresight.ranked = vec![2, 5, 7];
        let worth: Vec<usize> = foresight.lacks(&[5, 7]).collect();
        assert_eq!(worth, [5], "the third rank was never judged");
        foresight.chose(1, &[2, 5]);
        let tally = foresight.tally();
        assert_eq!(tally, Tally { guessed: 3, chosen: 2, right: 2, wanted: 1, useful: 1 });
        let read = Passes {
            read_ahead: 1,
            bytes_ahead: 3_000_000,
            bytes_in_vain: 1_000_000,
            ..Passes::default()
        };
        let text = tally.lines(&read);
        assert!(text.contains("67% of guesses right, 100% of choices guessed"), "{text}");
        assert!(text.contains("2.0 MB of use and 1.0 MB in vain"), "{text}");
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
