//! What a training rank does next: steps, evaluations, commits, the end.

use crate::actors::message::Directive;
use crate::actors::script::{Script, StopGate};
use crate::base::Step;
use crate::graph::planner::Pass;
use std::collections::VecDeque;

/// How often things happen, in steps; 0 is never.
#[derive(Debug, Clone, Copy)]
pub struct Rhythm {
    pub commit_every: u64,
    pub keep_every: u64,
    pub eval_every: u64,
    /// Held-out batches of one evaluation.
    pub eval_batches: u32,
}

impl Rhythm {
    pub fn evaluates_after(&self, step: Step, last: bool) -> bool {
        self.eval_batches > 0
            && self.eval_every > 0
            && (last || step.is_multiple_of(self.eval_every))
    }
}

/// The name of the checkpoint that is kept of a step.
pub fn kept_name(step: Step) -> String {
    format!("step-{step}")
}

/// The script of one rank's training. All ranks of a run share the stop gate, and so end with
/// the same step.
#[derive(Debug)]
pub struct TrainScript {
    gate: StopGate,
    rhythm: Rhythm,
    /// The step that was begun last.
    step: Step,
    committed: Step,
    /// Last step of the run.
    last: Step,
    queue: VecDeque<Directive>,
    after_step: bool,
    finished: bool,
}

impl TrainScript {
    /// Goes on after `committed`, up to and with `last`.
    pub fn new(gate: StopGate, rhythm: Rhythm, committed: Step, last: Step) -> Self {
        Self {
            gate,
            rhythm,
            step: committed,
            committed,
            last,
            queue: VecDeque::new(),
            after_step: false,
            finished: false,
        }
    }

    fn queue_after_step(&mut self) {
        let (step, rhythm) = (self.step, self.rhythm);
        if rhythm.evaluates_after(step, step == self.last) {
            let passes = (0..rhythm.eval_batches).map(Pass::Forward);
            self.queue.extend(passes.map(|pass| Directive::Pass { step, pass }));
        }
        let due = |every: u64| every > 0 && step.is_multiple_of(every);
        let keep = due(rhythm.keep_every).then(|| kept_name(step));
        if due(rhythm.commit_every) || keep.is_some() {
            self.committed = step;
            self.queue.push_back(Directive::Commit { keep });
        }
    }
}

impl Script for TrainScript {
    fn next(&mut self) -> Option<Directive> {
        if std::mem::take(&mut self.after_step) {
            self.queue_after_step();
        }
        if let Some(directive) = self.queue.pop_front() {
            return Some(directive);
        }
        if self.finished {
            return None;
        }
        if self.gate.begin(self.step + 1) {
            self.step += 1;
            self.after_step = true;
            return Some(Directive::Pass { step: self.step, pass: Pass::Train });
        }
        if self.committed < self.step {
            self.committed = self.step;
            return Some(Directive::Commit { keep: None });
        }
        self.finished = true;
        Some(Directive::Finish)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(script: &mut TrainScript) -> Vec<String> {
        std::iter::from_fn(|| script.next())
            .map(|directive| match directive {
                Directive::Pass { step, pass: Pass::Train } => format!("train {step}"),
                Directive::Pass { step, pass: Pass::Forward(i) } => format!("eval {step}.{i}"),
                Directive::Commit { keep } => format!("commit {}", keep.unwrap_or_default()),
                other => format!("{other:?}").to_lowercase(),
            })
            .collect()
    }

    #[test]
    fn a_run_commits_evaluates_and_ends() {
        let rhythm = Rhythm { commit_every: 2, keep_every: 4, eval_every: 3, eval_batches: 1 };
        let mut script = TrainScript::new(StopGate::until(5), rhythm, 1, 5);
        let expected = [
            "train 2",
            "commit ",
            "train 3",
            "eval 3.0",
            "train 4",
            "commit step-4",
            "train 5",
            "eval 5.0",
            "commit ",
            "finish",
        ];
        assert_eq!(names(&mut script), expected);
    }

    #[test]
    fn a_stopped_run_commits_the_step_it_is_at() {
        let rhythm = Rhythm { commit_every: 10, keep_every: 0, eval_every: 0, eval_batches: 0 };
        let gate = StopGate::until(100);
        let mut script = TrainScript::new(gate.clone(), rhythm, 0, 100);
        assert!(matches!(script.next(), Some(Directive::Pass { step: 1, .. })));
        assert_eq!(gate.stop(), 1);
        assert_eq!(names(&mut script), ["commit ", "finish"]);
    }
}
