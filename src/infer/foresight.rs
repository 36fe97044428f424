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
use std::time::{Duration, Instant};

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

/// Weight of the newest layer in what is averaged.
const NEWEST: f64 = 0.02;
/// Share of reads ahead that is taken to be used before anything was seen: too small to pay.
const UNKNOWN: f64 = 0.3;

/// Measures a predictor and says how much it may read.
///
/// Between the arrival of a layer's experts and the next gate the disk has nothing to do. A read
/// ahead saves at most that time, where it is used; where it is not, it keeps the disk from what is
/// needed for as long as a read takes. So reads ahead pay up to as many as end in that time, at least
/// one, while share · saved ≥ (1 − share) · read.
#[derive(Debug, Clone, Copy)]
pub struct Governor {
    /// Running share of what was, or would have been, read ahead and then used.
    share: f64,
    /// Running seconds that the disk has nothing to do before a gate, and that a read of an expert
    /// takes; None: not seen yet.
    free: Option<f64>,
    read: Option<f64>,
}

impl Default for Governor {
    fn default() -> Self {
        Self { share: UNKNOWN, free: None, read: None }
    }
}

impl Governor {
    /// Reads that end while the disk is free, by what was seen so far.
    fn fit(&self) -> f64 {
        match (self.free, self.read) {
            (Some(free), Some(read)) if read > 0.0 => free / read,
            _ => 1.0,
        }
    }

    /// Experts that are considered for a layer.
    pub fn most(&self) -> usize {
        self.fit().max(1.0) as usize
    }

    pub fn pays(&self) -> bool {
        let saved = self.fit().min(1.0);
        self.share * saved >= 1.0 - self.share
    }

    /// Of `lacking` experts that were guessed, considered and not in memory, `used` were chosen.
    pub fn learn(&mut self, lacking: usize, used: usize) {
        if lacking > 0 {
            self.share += NEWEST * (used as f64 / lacking as f64 - self.share);
        }
    }

    /// `reads` experts came in `waited`, and from then on it took `free` to the next gate that lacked
    /// some.
    pub fn time(&mut self, reads: usize, waited: Duration, free: Duration) {
        let average =
            |old: Option<f64>, new: f64| old.map_or(new, |old| old + NEWEST * (new - old));
        self.read = Some(average(self.read, waited.as_secs_f64() / reads.max(1) as f64));
        self.free = Some(average(self.free, free.as_secs_f64()));
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
    /// What was guessed for the layer at hand, ascending, and the likeliest first.
    guess: Vec<usize>,
    ranked: Vec<usize>,
    weighed: Vec<(f32, usize)>,
    /// The likeliest that were not in memory, as many as may be read ahead, and whether they were.
    lacking: Vec<usize>,
    read: bool,
    /// When a gate lacked experts, and how many; when they had come.
    asked: Option<(Instant, usize)>,
    came: Option<(Instant, usize, Duration)>,
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
            ranked: Vec::new(),
            weighed: Vec::new(),
            lacking: Vec::new(),
            read: false,
            asked: None,
            came: None,
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
        self.ranked.clear();
        match self.kind {
            PredictorKind::None => {}
            PredictorKind::GateLookahead => {
                if forward.guess(layer, x_th, &mut self.routes, work)? {
                    self.routes.by_weight(&mut self.weighed);
                    self.ranked.extend(self.weighed.iter().map(|(_, expert)| *expert));
                }
            }
            PredictorKind::Transitions => {
                let most = self.before.len().max(self.top_k);
                locked(&self.habits).likely(layer, &self.before, most, &mut self.ranked);
            }
        }
        self.guess.clear();
        self.guess.extend_from_slice(&self.ranked);
        self.guess.sort_unstable();
        Ok(&self.guess)
    }

    /// `lacking` of what was guessed (ascending) are not in memory; which are to be read ahead.
    pub fn lacks(&mut self, lacking: &[usize]) -> Option<Vec<usize>> {
        let absent = self.ranked.iter().filter(|expert| lacking.binary_search(expert).is_ok());
        self.lacking.clear();
        self.lacking.extend(absent.take(self.governor.most()));
        self.read = !self.lacking.is_empty() && self.governor.pays();
        self.read.then(|| self.lacking.clone())
    }

    /// A gate has chosen `missing` experts, over 0, that are not in memory.
    pub fn asks(&mut self, missing: usize) {
        let now = Instant::now();
        if let Some((came, reads, waited)) = self.came.take() {
            self.governor.time(reads, waited, now - came);
        }
        self.asked = Some((now, missing));
    }

    /// All that the last gate lacked has come.
    pub fn arrived(&mut self) {
        if let Some((asked, reads)) = self.asked.take() {
            let now = Instant::now();
            self.came = Some((now, reads, now - asked));
        }
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
        assert_eq!(governor.most(), 1, "one at a time, before reads were timed");
        (0..100).for_each(|_| governor.learn(4, 1));
        assert!(!governor.pays());
        let before = governor.share;
        governor.learn(0, 0);
        assert_eq!(governor.share, before, "what is in memory says nothing about reads");
    }

    #[test]
    fn a_slow_disk_has_to_be_asked_more_carefully() {
        let ms = Duration::from_millis;
        let governor = |free, share| {
            let mut governor = Governor { share, ..Governor::default() };
            governor.time(2, ms(20), ms(free));
            governor
        };
        // A read takes 10 ms. Seven of ten used: saves 0.7 of the free time, costs 3 ms.
        assert!(governor(5, 0.7).pays() && !governor(4, 0.7).pays());
        assert!(governor(40, 0.5).pays() && !governor(40, 0.49).pays());
        assert_eq!([4, 19, 40].map(|free| governor(free, 0.7).most()), [1, 1, 4]);
    }

    #[test]
    fn the_tally_counts_guesses_against_choices() {
        let config = ModelConfig { layers: 2, experts: 8, ..ModelConfig::of_family(Family::Olmoe) };
        let habits = Arc::new(Mutex::new(Habits::new(&config, false)));
        let mut foresight = Foresight::new(PredictorKind::GateLookahead, 2, habits);
        (0..200).for_each(|_| foresight.governor.learn(1, 1));
        foresight.chose(0, &[0, 1]);
        foresight.guess = vec![2, 5, 7];
        foresight.ranked = vec![5, 2, 7];
        assert_eq!(foresight.lacks(&[5, 7]), Some(vec![5]), "the likeliest alone");
        foresight.chose(1, &[2, 3]);
        let expected = Tally { guessed: 3, chosen: 2, right: 1, read: 1, useful: 0 };
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
